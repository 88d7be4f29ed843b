"""Each lowering rule takes its region, and says why where it does not."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant import FxquantWarning
from fxquant.backends.x86 import machine
from fxquant.backends.x86.lower import lower_graph
from fxquant.graph.text import print_graph
from tests.backends.tiny import Attention, Block, Mlp, made, tensor
from tests.passes.running import plain

GOLDEN = Path(__file__).parent / "golden"


class Line(nn.Module):
    """Two linears of 16 features and a line that says what happens around them."""

    def __init__(self, line: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.line = line
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)
        self.position = nn.Parameter(torch.randn(6, 16))
        self.row = nn.Parameter(torch.randn(1, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.line(self, x)


def quantized_line(
    line: Callable[[Any, Tensor], Tensor], *overrides: tuple[str, str], recipe: str = "w8a8"
) -> Any:
    made_recipe = fxquant.recipe(recipe)
    for scheme, sites in overrides:
        made_recipe = made_recipe.override(scheme, sites=sites)
    return fxquant.quantize(
        made(lambda: Line(line)), calibration=tensor(4, 6, 16), recipe=made_recipe
    )


def kernels_of(quantized: Any) -> Counter[str]:
    return Counter(lower_graph(quantized).kernel_of.values())


REGIONS: dict[str, tuple[Callable[[Any, Tensor], Tensor], list[str]]] = {
    "plain": (lambda m, x: m.a(x), ["onednn int8, f32 out"]),
    "requantized": (
        lambda m, x: m.b(m.a(x)),
        ["onednn int8, u8 out", "onednn int8, f32 out"],
    ),
    "gelu, requantized": (
        lambda m, x: m.b(F.gelu(m.a(x))),
        ["onednn int8, gelu, u8 out", "onednn int8, f32 out"],
    ),
    "tanh gelu, requantized": (
        lambda m, x: m.b(F.gelu(m.a(x), approximate="tanh")),
        ["onednn int8, gelu, u8 out", "onednn int8, f32 out"],
    ),
    "relu, requantized": (
        lambda m, x: m.b(F.relu(m.a(x))),
        ["onednn int8, relu, u8 out", "onednn int8, f32 out"],
    ),
    "activated": (lambda m, x: F.gelu(m.a(x)), ["onednn int8, gelu, f32 out"]),
    "activated by relu": (lambda m, x: F.relu(m.a(x)), ["onednn int8, relu, f32 out"]),
    "added on the left": (lambda m, x: m.a(x) + x, ["onednn int8, + residual"]),
    "added on the right": (lambda m, x: x + m.a(x), ["onednn int8, + residual"]),
    "added to a linear": (
        lambda m, x: m.a(x) + m.b(x),
        ["onednn int8, + residual", "onednn int8, f32 out"],
    ),
    "an unknown activation": (lambda m, x: F.silu(m.a(x)), ["onednn int8, f32 out"]),
    "read twice, not requantized": (
        lambda m, x: m.b(y := m.a(x)) + y,
        ["onednn int8, f32 out", "onednn int8, + residual"],
    ),
    "an activation read twice": (
        lambda m, x: m.b(y := F.gelu(m.a(x))) * y,
        ["onednn int8, gelu, f32 out", "onednn int8, f32 out"],
    ),
}


@pytest.mark.parametrize("name", REGIONS)
def test_a_region_becomes_the_widest_kernel(name: str) -> None:
    line, expected = REGIONS[name]
    quantized = quantized_line(line)
    assert kernels_of(quantized) == Counter(expected)
    lowered, x = fxquant.lower(quantized, executor="eager", strict=True), tensor(4, 6, 16)
    with torch.inference_mode():
        worst = (lowered(x) - quantized(x)).abs().max()
    assert worst < 0.05  # a step or two of the layers' outputs, which are about 3 wide


@pytest.mark.skipif(not machine.has_bfloat16(), reason="no bf16 on this machine")
def test_a_linear_before_bf16_attention_writes_bf16() -> None:
    model = made(lambda: Attention(32, 2))
    quantized = fxquant.quantize(model, calibration=tensor(4, 6, 32), recipe=plain())
    kernels = lower_graph(quantized).kernel_of
    assert kernels["qkv"] == "onednn int8, bf16 out"
    assert kernels["proj"] == "onednn int8, f32 out"


def test_ranges_per_token_have_a_rule_of_their_own() -> None:
    quantized = quantized_line(lambda m, x: m.b(F.gelu(m.a(x))), recipe="w8a8-dynamic")
    assert kernels_of(quantized) == Counter({"onednn int8, f32 out": 2})


def test_a_patch_embedding_becomes_a_linear_over_patches() -> None:
    model = made(lambda: nn.Sequential(nn.Conv2d(3, 20, (2, 4), (2, 4)), nn.Flatten()))
    x = tensor(3, 3, 6, 8)
    lowered = fxquant.compile(model, calibration=x, executor="eager", strict=True)
    assert lowered.int8_kernels == {"0": "onednn int8, f32 out"}
    with torch.inference_mode():
        torch.testing.assert_close(lowered(x), lowered.reference(x), rtol=1e-5, atol=1e-5)


DECLINED: dict[str, tuple[Callable[[Any, Tensor], Tensor], list[tuple[str, str]], str, str]] = {
    "group-wise weights": (
        lambda m, x: m.b(F.silu(m.a(x))),
        [("s8/group8/minmax", "a:weight")],
        "no group-wise weight scales",
        "b",
    ),
    "16-bit weights": (
        lambda m, x: m.b(F.silu(m.a(x))),
        [("s16/channel/minmax", "a:weight")],
        "oneDNN takes int8 weights, not torch.int16",
        "b",
    ),
    "16-bit activations": (
        lambda m, x: m.b(F.silu(m.a(x))),
        [("a16/tensor/minmax", "a:input")],
        "oneDNN takes u8 activations, not torch.uint16",
        "b",
    ),
    "16-bit activations per token": (
        lambda m, x: m.b(F.silu(m.a(x))),
        [("a16/token/dynamic", "a:input")],
        "oneDNN takes u8 activations",
        "b",
    ),
    "6-bit codes": (
        lambda m, x: m.b(F.gelu(m.a(x))),
        [("a6/tensor/minmax", "b:input")],
        "oneDNN requantizes to u8 0..255, not torch.uint8 0..63",
        "ab",
    ),
    "a residual that broadcasts": (
        lambda m, x: x + m.a(x.mean(1, keepdim=True)),
        [],
        "the summands differ in shape",
        "a",
    ),
    "a residual that broadcasts over the batch": (
        lambda m, x: m.a(x) + x.mean(0, keepdim=True),
        [],
        "the summands differ in shape",
        "a",
    ),
    "a residual in bf16": (
        lambda m, x: x.bfloat16() + m.a(x),
        [],
        "the other summand is not float32",
        "a",
    ),
    "a constant residual": (
        lambda m, x: m.a(x) + m.position,
        [],
        "the other summand is a constant",
        "a",
    ),
}


@pytest.mark.parametrize("name", DECLINED)
def test_a_rule_declines_with_its_reason_and_the_rest_is_lowered(name: str) -> None:
    line, overrides, reason, still_int8 = DECLINED[name]
    quantized = quantized_line(line, *overrides)
    found = lower_graph(quantized)
    assert any(reason in text for texts in found.declined.values() for text in texts)
    assert set(found.kernel_of) == set(still_int8)
    planned = {site.layer for site in quantized.plan if site.slot == "weight"}
    x = tensor(4, 6, 16)
    if planned == set(found.kernel_of):
        lowered = fxquant.lower(quantized, executor="eager", strict=True)
    else:
        with pytest.warns(FxquantWarning, match=re.escape(reason)):
            lowered = fxquant.lower(quantized, executor="eager")
        row = lowered.report["a"]
        assert not row.int8
        assert row.kernel == "float32"
        assert reason in row.reason
    with torch.inference_mode():
        assert (lowered(x) - quantized(x)).abs().max() < 0.1


CONVOLUTIONS: dict[str, tuple[dict[str, Any], int, str]] = {
    "overlapping": ({"stride": 2}, 16, "patches overlap"),
    "with gaps": ({"stride": 8}, 16, "patches overlap or leave gaps"),
    "padded": ({"stride": 4, "padding": 2}, 16, "padded or grouped"),
    "grouped": ({"stride": 4, "groups": 2}, 16, "padded or grouped"),
    "dilated": ({"stride": 4, "dilation": 2}, 16, "do not tile"),
    "cut off": ({"stride": 4}, 18, "do not tile"),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_that_is_no_patch_embedding_stays_float(name: str) -> None:
    options, side, reason = CONVOLUTIONS[name]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 16, 4, **options)
            self.head = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.conv(x).mean((2, 3)))
            return out

    quantized = fxquant.quantize(made(Net), calibration=tensor(3, 4, side, side))
    with pytest.warns(FxquantWarning, match=f"conv.*{reason}"):
        lowered = fxquant.lower(quantized, executor="eager")
    assert set(lowered.int8_kernels) == {"head"}
    assert reason in lowered.report["conv"].reason


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_both_spellings_of_gelu_keep_their_algorithm(approximate: str) -> None:
    quantized = quantized_line(lambda m, x: F.gelu(m.a(x), approximate=approximate))
    graph = lower_graph(quantized).graph_module.graph
    kernel = next(node for node in graph.nodes if "qlinear" in str(node.target))
    assert kernel.args[-2:] == ("gelu", approximate)


def test_a_weight_that_two_layers_share_is_packed_once() -> None:
    quantized = quantized_line(lambda m, x: m.a(F.silu(m.a(x))))
    lowered = lower_graph(quantized)
    packed = [n for n, _ in lowered.graph_module.named_buffers() if n.endswith("__packed")]
    assert len(packed) == 1
    assert len(lowered.kernel_of) == 2


def rounded(text: str) -> str:
    """Scales to three digits: their last ones depend on the CPU that made the ranges."""
    return re.sub(r"\b\d+\.\d+(e-?\d+)?\b", lambda match: f"{float(match[0]):.3g}", text)


@pytest.mark.parametrize("kind", ["block", "mlp"])
def test_the_lowered_graph_is_the_golden_one(
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    update_golden: bool,  # noqa: FBT001
) -> None:
    monkeypatch.setattr(machine, "has_vnni", lambda: True)
    monkeypatch.setattr(machine, "has_bfloat16", lambda: True)
    build = {"block": lambda: Block(16, 32), "mlp": lambda: Mlp(16, 32, tanh=True)}[kind]
    quantized = fxquant.quantize(made(build), calibration=tensor(4, 6, 16), recipe=plain())
    text = rounded(print_graph(lower_graph(quantized).graph_module))
    path = GOLDEN / f"{kind}.txt"
    if update_golden:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
