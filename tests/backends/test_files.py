"""Finished models written and read back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import fxquant
from fxquant.backends.quantized import QuantizedModule
from fxquant.backends.x86 import machine
from fxquant.backends.x86.module import LoweredModule
from fxquant.errors import ArtifactError
from tests.backends.tiny import MODELS, images, shared, shared_lowered


def same(left: Any, right: Any, x: torch.Tensor) -> bool:
    with torch.inference_mode():
        return torch.equal(left(x), right(x))


@pytest.mark.parametrize("name", MODELS)
def test_a_lowered_model_comes_back_lowered_and_bit_equal(name: str, tmp_path: Path) -> None:
    model = shared_lowered(name)
    model.save(tmp_path / "model.fxq")
    again = fxquant.load(tmp_path / "model.fxq", executor="eager", strict=True)
    assert isinstance(again, LoweredModule)
    assert again.int8_kernels == model.int8_kernels
    assert again.plan == model.plan
    assert [row.kernel for row in again.report.rows] == [row.kernel for row in model.report.rows]
    for batch in (1, 7):
        assert same(again, model, images(batch, side=MODELS[name][1], seed=batch))


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_a_quantized_model_comes_back_quantized_and_bit_equal(name: str, tmp_path: Path) -> None:
    model = shared(name)[1]
    model.save(tmp_path / "model.fxq")
    again = fxquant.load(tmp_path / "model.fxq")
    assert isinstance(again, QuantizedModule)
    assert again.plan == model.plan
    assert [replace(row, source="") for row in again.report.rows] == [
        replace(row, source="")
        for row in model.report.rows  # paths are shortened in files
    ]
    assert again.pipeline_text == model.pipeline_text
    assert same(again, model, images(3, seed=1))
    before, after = model.state_dict(), again.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert same(fxquant.lower(again, executor="eager"), shared_lowered(name), images(2))


def test_a_dynamic_model_comes_back_bit_equal(tmp_path: Path) -> None:
    model = fxquant.compile(
        shared("mixer")[0], example=images(1), recipe="w8a8-dynamic", executor="eager"
    )
    model.save(tmp_path / "model.fxq")
    assert same(fxquant.load(tmp_path / "model.fxq", executor="eager"), model, images(4))


def test_equal_models_give_equal_files_and_a_second_round_changes_nothing(tmp_path: Path) -> None:
    model = shared_lowered("vit")
    model.save(tmp_path / "first.fxq")
    model.save(tmp_path / "second.fxq")
    fxquant.load(tmp_path / "first.fxq", executor="eager").save(tmp_path / "third.fxq")
    content = [(tmp_path / f"{name}.fxq").read_bytes() for name in ("first", "second", "third")]
    assert content[0] == content[1] == content[2]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_loaded_model_trains_freezes_and_saves_again(tmp_path: Path) -> None:
    shared("vit")[1].save(tmp_path / "model.fxq")
    again = fxquant.load(tmp_path / "model.fxq")
    frozen = fxquant.freeze(fxquant.trainable(again))
    frozen.save(tmp_path / "frozen.fxq")
    assert same(fxquant.load(tmp_path / "frozen.fxq"), shared("vit")[1], images(2))


def test_an_artifact_of_eight_bits_is_refused_where_they_saturate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared_lowered("vit").save(tmp_path / "model.fxq")
    monkeypatch.setattr(machine, "has_vnni", lambda: False)
    with pytest.raises(ArtifactError, match="saturate") as caught:
        fxquant.load(tmp_path / "model.fxq", executor="eager")
    assert str(tmp_path) in caught.value.where
