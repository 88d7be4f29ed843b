"""The quick start, in pieces and whole."""

import os
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import fxquant
from fxquant.backends.base import Support
from fxquant.backends.x86 import machine
from fxquant.cli.main import app
from fxquant.quickstart import run as quickstart
from fxquant.quickstart.run import Outcome, run
from fxquant.quickstart.show import show
from fxquant.timing import Timed

NO_X86 = Support(ok=False, reason="the CPU is of another kind")


def printed(outcome: Outcome) -> str:
    console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    show(outcome, console)
    console.file.close()
    return console.export_text()


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Without compiling: the int8 kernels are called one by one."""
    folder = tmp_path_factory.mktemp("quickstart")
    return run(report=folder / "r.html", artifact=folder / "d.fxq", batches=())


def test_it_computes_in_int8_and_keeps_the_accuracy(outcome: Outcome) -> None:
    totals = outcome.report.totals
    assert outcome.report.backend == "x86"
    assert totals.int8_layers == totals.layers - 1  # the head has too few classes to pay
    assert totals.int8_linear_share > 0.99
    fidelity = outcome.fidelity
    assert fidelity.images == 600
    assert fidelity.float_top1 is not None
    assert fidelity.float_top1 > 98.5
    assert fidelity.drop is not None
    assert abs(fidelity.drop) <= 0.5
    assert fidelity.agreement >= 99.0
    assert fidelity.sqnr_db > 25


def test_it_writes_a_report_and_an_artifact(outcome: Outcome) -> None:
    page, artifact = outcome.files
    assert "DigitsViT" in page.read_text(encoding="utf-8")
    assert outcome.reload_equal
    assert outcome.artifact_bytes < outcome.float_bytes / 2.5
    made = fxquant.load(artifact, executor="eager")
    assert made(torch.zeros(5, 1, 8, 8)).shape == (5, 10)
    assert sorted(path.name for path in page.parent.iterdir()) == ["d.fxq", "r.html"]


def test_it_prints_what_it_measured(outcome: Outcome) -> None:
    text = printed(outcome)
    assert f"{outcome.fidelity.agreement:.2f} % get the same class" in text
    assert "reads back bit-equal" in text
    assert "as fast" not in text


def test_it_says_when_int8_is_slower() -> None:
    slower = {1: {"float": Timed(1e-3, 1e-3, 9, 9), "int8": Timed(2e-3, 2e-3, 9, 9)}}
    assert "at batch 1 int8 is slower here" in quickstart._timing_notes(slower)[0]
    faster = {64: {"float": Timed(2e-3, 2e-3, 9, 9), "int8": Timed(1e-3, 1e-3, 9, 9)}}
    assert not any("slower" in note for note in quickstart._timing_notes(faster))


def test_it_distrusts_times_of_a_busy_machine() -> None:
    busy = {1: {"float": Timed(1e-3, 1e-3, 9, 1), "int8": Timed(2e-3, 2e-3, 9, 1)}}
    notes = quickstart._timing_notes(busy)
    assert "distrust" in notes[0]
    assert not any("slower" in note for note in notes)


def test_it_simulates_where_there_are_no_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "available", lambda: NO_X86)
    outcome = run(report=tmp_path / "r.html", artifact=tmp_path / "d.fxq", batches=())
    assert outcome.report.simulated
    assert outcome.reload_equal
    assert "SIMULATED" in printed(outcome)
    assert NO_X86.reason in printed(outcome)


def test_it_does_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    outcome = run(report=tmp_path / "r.html", artifact=tmp_path / "d.fxq")
    assert outcome.times == {}
    assert any("no C++ compiler" in note for note in outcome.notes)


@pytest.mark.slow
def test_the_whole_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["quickstart"])
    assert result.exit_code == 0, f"{result.output}{result.exception}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits.fxq", "report.html"]
    for part in ("batch 1 ", "batch 64", "reads back bit-equal", "wrote report.html"):
        assert part in result.output
