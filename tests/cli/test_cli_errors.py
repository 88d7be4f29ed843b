"""A call that cannot succeed: what it prints, its exit code, and that it writes nothing."""

from pathlib import Path

import pytest

from fxquant.errors import FxquantError
from fxquant.report import Report
from tests.cli.tiny import MODULE, SPEC, contents, invoke

COMPILE = ("compile", SPEC, "--calibration", "images", "--out", "new.fxq")
WRONG = {
    "no_model": (("compile", "timm", "--out", "new.fxq"), "not a model", "timm:NAME"),
    "no_module": (("compile", "nowhere:x", "--out", "new.fxq"), "cannot import", "nowhere"),
    "no_nn_module": (("compile", f"{MODULE}:number", "--out", "x.fxq"), "not a model", "int"),
    "no_weights": ((*COMPILE, "--weights", "no.safetensors"), "weights do not load", "no.safe"),
    "recipe": ((*COMPILE, "--recipe", "w8a"), "unknown recipe", "did you mean 'w8a8'"),
    "backend": ((*COMPILE, "--backend", "x87"), "unknown backend", "'x86'"),
    "override": ((*COMPILE, "--override", "head"), "not an override", "GLOB=SCHEME"),
    "scheme": ((*COMPILE, "--override", "head=s99"), "", "override"),
    "no_site": ((*COMPILE, "--override", "tail=float"), "matches no site", "tail"),
    "all_float": ((*COMPILE, "--override", "*=float"), "not one int8 kernel", "reference"),
    "plan": ((*COMPILE, "--plan", f"{MODULE}.py"), "cannot read the plan", MODULE),
    "plan_and_override": (
        (*COMPILE, "--plan", "p.json", "--override", "head=float"),
        "takes no overrides",
        "edit the plan",
    ),
    "example": ((*COMPILE, "--example", "3,x"), "positive numbers", "--example"),
    "images": (
        ("compile", SPEC, "--calibration", "nowhere", "--out", "new.fxq"),
        "folder does not exist",
        "nowhere",
    ),
    "folder": (("compile", SPEC, "--out", "nowhere/new.fxq"), "output folder", "nowhere"),
    "out_is_folder": (("compile", SPEC, "--out", "images"), "is a folder", "images"),
    "same_name": ((*COMPILE, "--report", "new.fxq"), "same name", "new.fxq"),
    "inspect_nothing": (("inspect", "no.fxq", "--html", "new.html"), "no such artifact", "no.fxq"),
    "inspect_other": (("inspect", f"{MODULE}.py", "--plan", "new.json"), "not an artifact", MODULE),
    "bench_batch": (("bench", "ref.fxq", "--batch", "0"), "positive numbers", "--batch"),
    "bench_against": (("bench", SPEC, "--against", SPEC), "--against", "leave it out"),
    "quickstart": (("quickstart", "--report", "nowhere/r.html"), "output folder", "nowhere"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_exits_with_2_and_writes_nothing(home: Path, name: str) -> None:
    arguments, what, hint = WRONG[name]
    before = contents(home)
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert what in result.stderr
    assert hint in result.stderr
    assert "Traceback" not in result.stderr
    assert contents(home) == before


def test_a_failure_while_writing_leaves_nothing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(report: Report, path: Path) -> None:
        Path(path).write_text("half", encoding="utf-8")
        raise FxquantError("the disk is full", where=str(path))

    monkeypatch.setattr(Report, "to_html", refuse)
    old = tmp_path / "old.fxq"
    old.write_bytes(b"old")
    command = ["compile", SPEC, "--calibration", "images", "--backend", "reference", "--out", old]
    result = invoke(*command, "--report", tmp_path / "r.html")
    assert result.exit_code == 2
    assert "the disk is full" in result.stderr
    assert contents(tmp_path) == {"old.fxq": b"old"}
