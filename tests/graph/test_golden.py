"""Printed graphs of tiny models, float and quantized, compared with stored texts.

The scales of the quantized graphs depend on the last bits of float arithmetic and so on the
machine: they are stored with four digits and compared with three, zero points up to one.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import fxquant
from fxquant.graph.text import print_graph
from tests.graph.captured import graph_of, tensor
from tests.graph.models import DIM, TOKENS, Classifier, MixerBlock, ResMlpBlock

FOLDER = Path(__file__).resolve().parents[1] / "golden"
MODELS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "vit": (Classifier, (3, 8, 8)),
    "mixer": (MixerBlock, (TOKENS, DIM)),
    "resmlp": (ResMlpBlock, (TOKENS, DIM)),
}
_FLOAT = re.compile(r"-?\d+\.\d+(?:e[+-]?\d+)?")
_SCALE = re.compile(rf"({_FLOAT.pattern})(?:, (\d+))?")  # and the zero point after it


def rounded(text: str) -> str:
    return _FLOAT.sub(lambda m: f"{float(m[0]):.4g}", text)


def close(line: str, stored: str) -> bool:
    """Equal but for the last digits of scales, and zero points that are one apart."""
    if _SCALE.sub("#", line) != _SCALE.sub("#", stored):
        return False
    return all(
        float(scale) == pytest.approx(float(known), rel=2e-3)
        and abs(int(zero_point or 0) - int(known_zero_point or 0)) <= 1
        for (scale, zero_point), (known, known_zero_point) in zip(
            _SCALE.findall(line), _SCALE.findall(stored), strict=True
        )
    )


def compare(name: str, text: str, *, update: bool) -> None:
    path = FOLDER / f"{name}.txt"
    if update:
        FOLDER.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    stored = path.read_text(encoding="utf-8")
    lines, known = text.splitlines(), stored.splitlines()
    if len(lines) == len(known) and all(map(close, lines, known)):
        return
    difference = "\n".join(difflib.unified_diff(known, lines, str(path), "now", lineterm="", n=1))
    pytest.fail(f"{difference}\nif this is wanted: pytest --update-golden")


@pytest.mark.parametrize("name", sorted(MODELS))
def test_float_graphs_print_as_stored(name: str, *, update_golden: bool) -> None:
    kind, shape = MODELS[name]
    torch.manual_seed(0)
    compare(f"{name}-float", rounded(print_graph(graph_of(kind(), *shape))), update=update_golden)


@pytest.mark.parametrize("recipe", ["w8a8", "w8a8-dynamic"])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_quantized_graphs_print_as_stored(name: str, recipe: str, *, update_golden: bool) -> None:
    kind, shape = MODELS[name]
    torch.manual_seed(0)
    quantized = fxquant.quantize(
        kind().eval(), calibration=tensor(8, *shape), recipe=recipe, backend="reference"
    )
    compare(f"{name}-{recipe}", rounded(print_graph(quantized)), update=update_golden)


def test_a_golden_text_forgives_last_digits_and_nothing_else() -> None:
    stored = "%3 = q(%1, 0.01234, 131, 0, 255, u8) : u8[B, 6, 8]  # fc1"
    assert close(stored.replace("0.01234", "0.01235"), stored)
    assert not close(stored.replace("0.01234", "0.0125"), stored)
    assert close(stored.replace("131", "130"), stored)
    assert not close(stored.replace("131", "129"), stored)
    assert not close(stored.replace("255", "254"), stored)
    assert not close(stored.replace("u8[B", "s8[B"), stored)
    with pytest.raises(pytest.fail.Exception, match="--update-golden"):
        compare("mixer-float", "return\n", update=False)
