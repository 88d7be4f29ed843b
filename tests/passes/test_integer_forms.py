"""What becomes integers: the arithmetic between layers of all the architectures."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxquant
from fxquant import Pipeline
from fxquant.errors import PipelineError
from fxquant.graph.text import print_graph
from fxquant.passes.integers.convert import to_integer
from fxquant.passes.integers.proof import prove_integer
from fxquant.passes.integers.values import Clipped, Constant, Leaf, Moved, moved_back, scaled
from fxquant.quant.metrics import sqnr_db
from tests.backends.tiny import MODELS, ResMlp, images, made
from tests.graph.captured import graph_of
from tests.graph.test_golden import compare, rounded
from tests.passes.running import run

ZOO = sorted(set(MODELS) - {"vit"})


def pipeline(method: str = "i-bert") -> Pipeline:
    steps = fxquant.recipe("integer-only").pipeline
    chosen = replace(steps["nonlinear"], method=method, images=6)  # type: ignore[type-var]
    return steps.replace("nonlinear", chosen)


def logits(graph: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = graph(x)
    return out


@cache
def quantized(name: str) -> tuple[nn.Module, Any, Tensor]:
    build, side = MODELS[name]
    x = images(12, side=side)
    model = made(build)
    q = fxquant.quantize(model, calibration=x, pipeline=pipeline(), backend="reference")
    return model, q, x


@pytest.mark.parametrize("name", ZOO)
def test_every_architecture_becomes_integers_that_equal_their_simulation(name: str) -> None:
    model, q, x = quantized(name)
    prove_integer(q)
    assert not q.report.simulated
    assert not any("float" in row.kernel or row.reason for row in q.report.rows)
    steps = pipeline()
    state = run(model, x, Pipeline(steps.passes[: steps.position("integer")]))
    simulated = logits(state.graph, x)
    float_db = sqnr_db(logits(model, x), simulated)
    assert float_db > 35
    integers = logits(to_integer(state.graph), x)
    assert torch.equal(integers, logits(q, x))
    assert sqnr_db(simulated, integers) > float_db - 1
    assert abs(sqnr_db(logits(model, x), integers) - float_db) < 1.5


def test_affine_maps_layer_scales_and_relus_are_free() -> None:
    _, q, _ = quantized("resmlp")
    kernels = {row.layer: row.kernel for row in q.report.rows}
    targets = [str(n.target) for n in q.graph.nodes if n.op == "call_function"]
    assert kernels["mlp.act"] == "integers: in the next requantization"
    assert not any("mul" in t for t in targets if "matmul" not in t)
    relu = next(
        n for n in q.graph.nodes if "requantize_channels" in str(n.target) and n.args[5] == 0
    )
    assert relu.args[4] == 0


def test_a_gate_is_a_product_of_codes() -> None:
    _, q, x = quantized("gmlp")
    assert sum("int_product" in str(n.target) for n in q.graph.nodes) == 1
    compiled = torch.compile(q, dynamic=True)
    for batch in (2, 1, 7):
        with torch.no_grad():
            assert torch.equal(compiled(x[:batch]), q(x[:batch]))


@pytest.mark.parametrize("name", ["gmlp", "resmlp", "swin"])
def test_the_view_for_training_has_the_same_bits_and_gradients_everywhere(name: str) -> None:
    _, q, x = quantized(name)
    view = fxquant.trainable(q)
    assert torch.equal(logits(view, x), logits(q, x))
    view(x).square().sum().backward()
    held = dict(view.named_parameters())
    assert held
    assert all(p.grad is not None and bool(p.grad.any()) for p in held.values())


def test_the_graph_prints_as_stored(*, update_golden: bool) -> None:
    _, q, _ = quantized("resmlp")
    # Multipliers have 31 bits, and the last of them depend on the machine.
    text = re.sub(r"\b\d{7,}\b", "m", rounded(print_graph(q)))
    compare("resmlp-integer-only", text, update=update_golden)


class Head(nn.Module):
    """A convolution, what a test puts behind it, and a linear."""

    def __init__(self, middle: Any, features: int = 12) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv2d(3, 12, 4, 4), nn.Linear(features, 5)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.middle(self.patch(x)))
        return out


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


SIGNED, MANY = torch.linspace(-1.5, 1.5, 12), torch.linspace(1.0, 2.0, 192)
FORMS: dict[str, Any] = {
    "negative factors": lambda x: tokens(x).mean(1) * SIGNED,
    "division by a tensor": lambda x: tokens(x).mean(1) / SIGNED,
    "a negative number": lambda x: tokens(x).mean(1) * -0.3,
    "a pool of the image": lambda x: nn.functional.adaptive_avg_pool2d(x, 1).flatten(1),
    "relu6": lambda x: nn.functional.hardtanh(4 * tokens(x).mean(1), 0.0, 6.0),
    "a clamp below": lambda x: tokens(x).mean(1).clamp(min=-0.1),
    "a ceiling": lambda x: torch.clamp_max(tokens(x).mean(1), 0.2),
    "a floor": lambda x: torch.clamp_min(tokens(x).mean(1), -0.2),
    "differences": lambda x: tokens(x).mean(1) - 0.3 - torch.relu(tokens(x).mean(1) - SIGNED),
    "a negation": lambda x: -torch.relu(tokens(x).mean(1) + 0.1),
    "a scaled clip": lambda x: -2.0 * nn.functional.hardtanh(tokens(x).mean(1)),
    "a sum of clips": lambda x: torch.relu(tokens(x).mean(1)) + tokens(x).mean(1) * SIGNED,
    "a product": lambda x: tokens(x).mean(1) * torch.relu(tokens(x).mean(1)),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_and_its_float_agree(form: str) -> None:
    x = images(16, seed=3)
    model = made(lambda: Head(FORMS[form]))
    q = fxquant.quantize(model, calibration=x, recipe="integer-only", backend="reference")
    assert sqnr_db(logits(model, x), logits(q, x)) > 25


@pytest.mark.parametrize(
    ("middle", "why"),
    [
        (lambda x: tokens(x).mean(1) / (1.0 + tokens(x).amax(1)), "division by a constant"),
        (lambda x: nn.functional.adaptive_avg_pool2d(x, 2).mean((2, 3)), "the whole image"),
        (lambda x: (x.flatten(1) * MANY).reshape(-1, 12, 16).mean(2), "whose elements were moved"),
    ],
)
def test_what_has_no_form_says_why(middle: Any, why: str) -> None:
    model = made(lambda: Head(middle))
    with pytest.raises(PipelineError, match=why):
        fxquant.quantize(model, calibration=images(8), recipe="integer-only", backend="reference")


ENDS = st.floats(-20, 20)


@given(ENDS, ENDS, st.floats(0.01, 3.0), st.integers(-100, 100), st.integers(0, 2**31))
def test_to_clip_codes_at_rounded_ends_is_to_round_what_was_clipped(
    one: float, other: float, scale: float, zero: int, seed: int
) -> None:
    low, high = sorted((one, other))
    clip = Clipped(Constant(torch.zeros(1)), low, high)
    x = torch.rand(200, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x = 60 * x - 30

    def codes(values: Tensor, ends: tuple[int, int]) -> Tensor:
        return (torch.floor(values / scale + 0.5) + zero).clamp(*ends)

    wanted = codes(x.clamp(low, high), (-128, 127))
    assert torch.equal(codes(x, clip.codes(scale, zero, -128, 127)), wanted)
    open_ended = Clipped(Constant(torch.zeros(1)), -math.inf, math.inf)
    assert open_ended.codes(scale, zero, -128, 127) == (-128, 127)


@given(st.permutations(range(4)), st.integers(1, 4))
def test_factors_go_back_through_an_exchange_of_axes(order: list[int], rank: int) -> None:
    sizes = (2, 3, 4, 5)
    x = torch.rand(sizes)
    moved = x.permute(order)
    graph = torch.fx.Graph()
    node = graph.call_function(torch.ops.aten.permute.default, (graph.placeholder("x"), order))
    node.meta["val"] = moved
    factor = torch.rand(moved.shape[4 - rank :])
    back = moved_back(node, factor)
    assert back is not None
    assert torch.equal((x * back).permute(order), moved * factor)


def test_factors_per_element_are_not_followed_everywhere() -> None:
    graph = graph_of(ResMlp(), 3, 16, 16)
    nodes = {str(n.target): n for n in graph.graph.nodes}
    node = next(n for t, n in nodes.items() if "linear" in t)
    flat = next(n for t, n in nodes.items() if "flatten" in t or "reshape" in t)
    leaf = Leaf(node, torch.ones(24, dtype=torch.float64), 3)
    vector = torch.rand(24, dtype=torch.float64)
    assert scaled(Moved(flat, leaf), vector) is None
    assert scaled(Moved(flat, leaf), 2.0) is not None
    assert scaled(Clipped(leaf, 0.0, 1.0), vector) is None
    turned = scaled(Clipped(leaf, 0.0, 1.0), -2.0)
    assert isinstance(turned, Clipped)
    assert (turned.low, turned.high) == (-2.0, 0.0)
    constant = scaled(Constant(vector), vector)
    assert isinstance(constant, Constant)
    assert torch.equal(constant.tensor, vector * vector)
