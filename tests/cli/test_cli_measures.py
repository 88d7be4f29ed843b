"""Evaluate and bench, on a model in the working folder."""

import sys
from pathlib import Path

import pytest

from fxquant.models.example import Preprocessing
from fxquant.models.images import load_image
from fxquant.timing import FEWEST
from tests.cli.tiny import CLASSES, MODULE, SPEC, invoke, succeed


def test_evaluate_by_class_folder(home: Path) -> None:
    text = succeed("evaluate", "x86.fxq", "--images", "images", "--executor", "eager").output
    assert "images" in text
    assert "int8 top-1" in text
    assert "float top-1" not in text
    assert "mean (0.485, 0.456, 0.406)" in text


def test_evaluate_against_float(home: Path, tmp_path: Path) -> None:
    """Labels made by the float model itself: its top-1 is 100 %."""
    model = sys.modules[MODULE].build().eval()
    labels = tmp_path / "labels.csv"
    rows = ["file,label"]
    for index in CLASSES:
        path = home / "images" / str(index) / "0.png"
        x = load_image(path, Preprocessing(size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3))
        rows.append(f"{index}/0.png,{int(model(x[None]).argmax())}")
    labels.write_text("\n".join(rows) + "\n", encoding="utf-8")
    command = ["evaluate", "ref.fxq", "--images", "images", "--labels", labels, "--batch", "3"]
    text = succeed(*command, "--against", SPEC, "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5")
    rows = {line[:21].strip(): line[21:].strip() for line in text.output.splitlines()}
    assert rows["images"] == "2"
    assert rows["float top-1"] == "100.00 %"
    assert rows["same class as float"].endswith("%")
    assert rows["SQNR of the logits"].endswith("dB")


def test_evaluate_needs_something_to_compare_with(home: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes((home / "images" / "3" / "0.png").read_bytes())
    result = invoke("evaluate", "ref.fxq", "--images", tmp_path)
    assert result.exit_code == 2
    assert "nothing to compare with" in result.stderr


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("name,class\na,1\n", "cannot be read"),
        ("file,label\n3/0.png,one\n", "cannot be read"),
        ("file,label\n", "name no image"),
        ("file,label\nno.png,1\n", "does not exist"),
        ("file,label\n3/0.png,99\n", "beyond the 16 classes"),
    ],
)
def test_evaluate_refuses_labels(home: Path, tmp_path: Path, text: str, what: str) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text(text, encoding="utf-8")
    result = invoke("evaluate", "ref.fxq", "--images", "images", "--labels", labels)
    assert result.exit_code == 2
    assert what in result.stderr


def test_bench_reports_ratio_and_distance(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference stands in for int8 and the eager model for the compiled one: no compiler."""
    monkeypatch.setattr("fxquant.timing.float_baseline", lambda model, x: model)
    command = ["bench", "ref.fxq", "--against", SPEC, "--batch", "1,2", "--seconds", "0.01"]
    result = succeed(*command)
    assert "float / int8" in result.output
    assert f"of {FEWEST}" in result.output
    assert "SQNR of the logits" in result.output
    assert "simulates int8" in result.stderr
    assert "MKL's fast path" in result.output


def test_bench_of_an_artifact_alone(home: Path) -> None:
    result = succeed("bench", "ref.fxq", "--batch", "1", "--seconds", "0.01")
    assert "no float model" in result.stderr
    assert "SQNR" not in result.output
