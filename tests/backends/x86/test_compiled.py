"""Kernels without a compiler, with a broken one, and in the cache."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import fxquant
from fxquant.backends.x86 import compiled, machine
from fxquant.errors import BackendError
from tests.backends.tiny import images, made
from tests.backends.x86.program_models import OneAttention
from tests.backends.x86.test_program_declines import NOTE, Between, program_note


@pytest.fixture
def fresh() -> Iterator[None]:
    """No library is remembered from other tests, nor by them."""
    compiled.library.cache_clear()
    yield
    compiled.library.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_without_a_compiler_models_compile_and_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (compiled, machine):
        monkeypatch.setattr(module, "compiler", lambda: None)
    assert machine.target().matmul is False
    ours = fxquant.compile(made(OneAttention), calibration=images(4))
    assert program_note(ours) == f"{NOTE}there is no C++ compiler for the x86 kernels"
    targets = [node.target for node in ours.graph_module.graph.nodes]
    assert targets.count(torch.ops.aten.scaled_dot_product_attention.default) == 1
    assert torch.ops.aten.matmul.default not in targets
    with pytest.raises(BackendError, match="there is no C\\+\\+ compiler") as found:
        compiled.library("portable")
    assert "install g++" in str(found.value)


def break_compiler(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """A compiler that is there and fails, and an empty cache."""
    broken = folder / "broken"
    broken.write_text("#!/bin/sh\necho 'fatal: the moon is full' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("FXQUANT_CACHE", str(folder / "cache"))
    assert compiled.compiler() == str(broken)


@pytest.mark.usefixtures("fresh")
def test_a_broken_compiler_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    break_compiler(monkeypatch, tmp_path)
    with pytest.raises(BackendError, match="do not compile") as found:
        compiled.library("portable")
    assert "fatal: the moon is full" in str(found.value)
    assert "set CXX" in str(found.value)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.usefixtures("fresh")
def test_the_note_about_a_broken_compiler_quotes_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    break_compiler(monkeypatch, tmp_path)
    ours = fxquant.compile(made(Between), calibration=images(4))
    assert program_note(ours).startswith(f"{NOTE}the x86 kernels do not compile")
    assert "the moon is full" in program_note(ours)


@pytest.mark.usefixtures("fresh")
def test_a_cache_that_cannot_be_written_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    taken = tmp_path / "file"
    taken.write_text("")
    monkeypatch.setenv("FXQUANT_CACHE", str(taken / "cache"))  # below a file: not even for root
    with pytest.raises(BackendError, match="cannot be written") as found:
        compiled.library("portable")
    assert "set FXQUANT_CACHE to a folder that can be written" in str(found.value)
    assert str(taken) in str(found.value)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh")
def test_kernels_are_built_once_and_found_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FXQUANT_CACHE", str(tmp_path / "cache"))
    assert isinstance(compiled.library("portable"), ctypes.CDLL)
    (file,) = (tmp_path / "cache").iterdir()
    assert file.name.startswith("kernels-portable-")
    assert file.suffix == ".so"
    built = os.stat(file)
    compiled.library.cache_clear()
    monkeypatch.setattr(compiled, "_build", lambda *_: pytest.fail("it was built again"))
    assert compiled.library("portable").fxq_panel() > 0
    after = os.stat(file)
    assert (after.st_ino, after.st_mtime_ns) == (built.st_ino, built.st_mtime_ns)
