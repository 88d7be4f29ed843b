"""Whole models as one program: the graph, every step and the results against the reference."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import Tensor

import fxquant
from fxquant.backends.x86.conformance import region_differences
from fxquant.backends.x86.program.run import run_program
from fxquant.quant import ops
from fxquant.quant.metrics import sqnr_db
from tests.backends.tiny import images, made
from tests.backends.x86.program_models import (
    MODELS,
    OneAttention,
    batch_for,
    lowered,
    quantized,
    results,
)
from tests.passes.running import plain


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_one_call_and_every_planned_layer_runs_in_it(name: str) -> None:
    model = lowered(name)
    assert (model.executor, model.native is None) == ("native", False), model.report.notes
    targets = [n.target for n in model.graph_module.graph.nodes if n.op == "call_function"]
    assert targets.count(run_program) == 1
    assert set(targets) <= {run_program, operator.getitem}
    totals = model.report.totals
    assert totals.int8_layers == totals.layers > 0
    assert totals.int8_linear_share == 1.0
    assert not any("Inductor" in text for _, text in model.report.notes)


@pytest.mark.parametrize("name", MODELS)
def test_every_step_is_within_one_step_of_the_reference(name: str) -> None:
    found = region_differences(lowered(name), (batch_for(name, 2, seed=6),))
    assert {(e.layer, e.worst_steps) for e in found if e.worst_steps > 1.0} == set()
    assert all(entry.share < 0.02 for entry in found if entry.kernel == "u8")


@pytest.mark.parametrize("name", MODELS)
def test_every_int8_step_is_compared(name: str) -> None:
    model = lowered(name)
    found = region_differences(model, (batch_for(name, 1, seed=6),))
    int8 = {step.layer for step in model.native.steps if step.int8}
    assert {entry.layer for entry in found} == int8
    assert all(entry.elements > 0 for entry in found)


def test_a_patch_embedding_is_compared_on_the_reference_s_own_codes() -> None:
    """Pixels halfway between codes: either code is right, and the linear must not pay for it."""
    model = lowered("vit")
    scale = next(
        float(node.args[1])
        for node in model.reference.graph.nodes
        if node.target is ops.quantize_per_tensor
    )
    steps = torch.randint(-100, 100, (1, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    found = region_differences(model, ((steps + 0.5) * scale,))
    assert max(entry.worst_steps for entry in found if entry.layer == "patch") <= 1.0


@pytest.mark.parametrize("name", MODELS)
def test_the_model_is_as_close_to_float_as_its_reference(name: str) -> None:
    model, reference = quantized(name)
    x = batch_for(name, 16, seed=2)
    exact, simulated, ours = (results(m, x) for m in (model, reference, lowered(name)))
    assert len(ours) == len(exact)
    for mine, theirs, float_result in zip(ours, simulated, exact, strict=True):
        assert (mine.shape, mine.dtype) == (float_result.shape, torch.float32)
        expected = float(sqnr_db(float_result, theirs))
        assert float(sqnr_db(float_result, mine)) == pytest.approx(expected, abs=1.0)
        assert float(sqnr_db(theirs, mine)) > 45.0


WHOLE = [("w8a8", 12), ("w8a8", 20), ("w8a8", 36), ("plain", 12), ("plain", 18)]
CUT = [("w8a8", 17), ("w8a8", 18), ("w8a8", 19), ("w8a8", 33), ("plain", 17), ("plain", 33)]


@pytest.mark.parametrize(("recipe", "width"), [*WHOLE, *CUT])
def test_heads_of_any_width_follow_the_reference(recipe: str, width: int) -> None:
    """``plain`` keeps attention in float."""
    model = made(lambda: OneAttention(2 * width))
    chosen = plain() if recipe == "plain" else recipe
    reference = fxquant.quantize(model, calibration=images(8), recipe=chosen)
    ours, x = fxquant.lower(reference), images(16, seed=2)
    exact, simulated, mine = (results(m, x)[0] for m in (model, reference, ours))
    assert float(sqnr_db(simulated, mine)) > 50.0
    expected = float(sqnr_db(exact, simulated))
    assert float(sqnr_db(exact, mine)) == pytest.approx(expected, abs=1.0)
    if ours.native is not None:
        found = region_differences(ours, (x[:2],))
        assert max(e.worst_steps for e in found) <= 1.0


def test_a_masked_key_has_no_part_in_the_result() -> None:
    """Causal attention: the first tokens see no later ones, whatever those hold."""
    model, ours = quantized("causal")[0], lowered("causal")
    x = images(4, seed=1)
    other = x.clone()
    other[:, :, 4:] = images(4, seed=9)[:, :, 4:]  # all patches but those of the first line

    def first(module: Any, given: Tensor) -> Tensor:
        return results(module, given)[0][:, :4]

    assert torch.equal(first(ours, x), first(ours, other))
    assert float(sqnr_db(first(model, x), first(ours, x))) > 25.0
