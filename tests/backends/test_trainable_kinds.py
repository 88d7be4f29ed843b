"""The straight-through view of quantizers that are not uniform, or have a scale per head."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import fxquant
from fxquant.passes.assign import Assign
from fxquant.passes.open_attention import OpenAttention
from fxquant.passes.plan import SpareOutliers
from fxquant.pipeline.pipeline import Pipeline
from fxquant.quant import ops
from fxquant.quant.scheme import Scheme
from tests.backends.tiny import Block, Mlp, made, tensor

INPUTS = [
    "s8/tensor/minmax",
    "s6/tensor/mse",
    "region_6/tensor/mse",
    "log2_8/tensor/mse",
    "log_sqrt2_6/tensor/mse",
    "adalog_6/tensor/output",
]
OPERANDS = [
    "a8/tensor/minmax",
    "a8/head/minmax",
    "s6/head/mse",
    "region_6/head/mse",
    "log_sqrt2_8/head/mse",
    "adalog_6/head/mse",
]


def quantized(model: Any, x: Tensor, scheme: str, *, heads: bool) -> Any:
    """Quantized by ``w8a8`` without the pass that spares what a scheme does not suit."""
    recipe = fxquant.recipe("w8a8")
    if not heads:
        recipe = recipe.override(scheme, sites="*:input")
    steps: list[Any] = []
    for step in recipe.pipeline.passes:
        if heads and isinstance(step, Assign):
            steps += [OpenAttention(), replace(step, matmul=Scheme.parse(scheme))]
        elif not isinstance(step, SpareOutliers):
            steps.append(step)
    recipe = replace(recipe, pipeline=Pipeline(tuple(steps)))
    return fxquant.quantize(made(model), calibration=x, recipe=recipe, backend="reference")


@cache
def of_linears(scheme: str) -> tuple[Any, Tensor]:
    x = tensor(8, 16)
    return quantized(lambda: Mlp(16, 32), x, scheme, heads=False), x


@cache
def of_attention(scheme: str) -> tuple[Any, Tensor]:
    x = tensor(8, 6, 16)
    return quantized(lambda: Block(16, 32), x, scheme, heads=True), x


def quantizers(module: torch.fx.GraphModule) -> list[tuple[str, tuple[Any, ...]]]:
    """Quantizers and dequantizers with their numbers, in the order of the graph."""
    return [
        (str(node.target), tuple(a for a in node.args if not isinstance(a, torch.fx.Node)))
        for node in module.graph.nodes
        if node.target in ops.QUANTIZE | ops.DEQUANTIZE
    ]


CASES = [(of_linears, text) for text in INPUTS] + [(of_attention, text) for text in OPERANDS]


@pytest.mark.parametrize(("build", "scheme"), CASES)
def test_the_view_has_the_same_outputs_and_freezes_to_the_same_quantizers(
    build: Any, scheme: str
) -> None:
    q, x = build(scheme)
    assert scheme in {d.scheme.text() for d in q.plan.decisions.values() if d.scheme is not None}
    view = fxquant.trainable(q)
    assert not quantizers(view)
    with torch.no_grad():
        torch.testing.assert_close(view(x), q(x), rtol=1e-5, atol=1e-6)
    frozen = fxquant.freeze(view)
    assert quantizers(frozen) == quantizers(q)
    with torch.no_grad():
        assert torch.equal(frozen(x), q(x))
    before, after = q.state_dict(), frozen.state_dict()
    assert {n: t.dtype for n, t in before.items()} == {n: t.dtype for n, t in after.items()}


@pytest.mark.parametrize(("build", "scheme"), CASES)
def test_gradients_reach_every_master_and_scales_are_no_parameters(build: Any, scheme: str) -> None:
    q, x = build(scheme)
    view = fxquant.trainable(q)
    names = dict(view.named_parameters())
    assert not [name for name in names if name.endswith("scale")]
    x = x.clone().requires_grad_()
    view(x).square().mean().backward()
    for parameter in [*names.values(), x]:
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
        assert bool((parameter.grad != 0).any())


@pytest.mark.parametrize(("build", "scheme"), [CASES[2], CASES[5], CASES[7], CASES[9], CASES[11]])
def test_training_moves_the_loss_down_through_the_quantizers(build: Any, scheme: str) -> None:
    q, x = build(scheme)
    view = fxquant.trainable(q)
    optimizer = torch.optim.Adam(view.parameters(), lr=0.01)
    losses = []
    for _ in range(15):
        loss = (view(x) - 0.5).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
    frozen = fxquant.freeze(view)
    with torch.no_grad():
        torch.testing.assert_close(frozen(x), view(x), rtol=1e-4, atol=1e-5)
