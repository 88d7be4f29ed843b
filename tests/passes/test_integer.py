"""The integer-only graph: equal to its quantize-dequantize form, free of floats, compiled alike."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxquant
from fxquant import Pipeline, Plan
from fxquant.errors import PipelineError, PlanError, VerificationError
from fxquant.passes import CorrectBias, Nonlinear, Residual
from fxquant.passes.integers.convert import to_integer
from fxquant.passes.integers.proof import prove_integer
from fxquant.quant import ops
from fxquant.quant.integer.operators import OPERATORS
from fxquant.quant.metrics import sqnr_db
from tests.asset_models import data
from tests.backends.tiny import Attention, Mixer, images, made, vit
from tests.passes.running import run

X = images(12)


def integer_pipeline(*, bits: int = 16, method: str = "i-bert", until: str = "") -> Pipeline:
    steps = fxquant.recipe("integer-only").pipeline
    steps = steps.replace("residual", Residual(bits=bits))
    steps = steps.replace("nonlinear", Nonlinear(method=method, images=6))  # type: ignore[arg-type]
    return steps if not until else Pipeline(steps.passes[: steps.position(until)])


@cache
def quantized(bits: int = 16, method: str = "i-bert") -> Any:
    steps = integer_pipeline(bits=bits, method=method)
    return fxquant.quantize(vit(), calibration=X, pipeline=steps, backend="reference")


def logits(graph: Any, x: Tensor = X) -> Tensor:
    with torch.no_grad():
        out: Tensor = graph(x)
    return out


@pytest.mark.parametrize("method", ["i-bert", "i-vit", "fq-vit", "lut"])
def test_the_integer_graph_is_its_simulation_up_to_rounding(method: str) -> None:
    steps = integer_pipeline(method=method, until="integer")
    state = run(vit(), X, steps)
    simulated, integers = logits(state.graph), logits(to_integer(state.graph))
    float_db = sqnr_db(logits(vit()), simulated)
    assert sqnr_db(simulated, integers) > float_db
    assert abs(sqnr_db(logits(vit()), integers) - float_db) < 1.5


@pytest.mark.parametrize("bits", [16, 8])
def test_it_holds_nothing_but_integers_between_the_first_codes_and_the_logits(bits: int) -> None:
    q = quantized(bits)
    proof = prove_integer(q)
    assert proof.integer > 100
    assert proof.roots == 3
    assert proof.after <= 4
    nodes = [n for n in q.graph.nodes if n.op == "call_function"]
    assert sum(n.target in ops.QUANTIZE for n in nodes) == 1
    assert sum(n.target in ops.DEQUANTIZE for n in nodes) == 1
    assert {n.target for n in nodes if "fxquant" in str(n.target)} <= OPERATORS
    held = [v for v in q.state_dict().values() if v.is_floating_point()]
    assert held == [] or {tuple(v.shape) for v in held} <= {(1, 3, 1, 1), (3, 1, 1)}
    notes = " ".join(text for _, text in q.report.notes)
    assert "integer-only, proven on the decomposed graph" in notes


def test_the_residual_stream_has_16_bits_unless_8_are_asked_for() -> None:
    def kinds(q: Any) -> set[Any]:
        norms = [n for n in q.graph.nodes if "layer_norm" in str(n.target)]
        return {n.args[0].meta["val"].dtype for n in norms}

    assert kinds(quantized(16)) == {torch.int16}
    assert kinds(quantized(8)) == {torch.int8}
    exact = logits(vit())
    assert sqnr_db(exact, logits(quantized(16))) > sqnr_db(exact, logits(quantized(8))) + 3


def with_float_between(graph_module: GraphModule) -> GraphModule:
    """One code tensor goes through float and back."""
    twin = GraphModule(graph_module, fxquant.graph.tensors.copy_graph(graph_module.graph))
    node = next(n for n in twin.graph.nodes if "int_linear" in str(n.target))
    with twin.graph.inserting_after(node):
        wide = twin.graph.call_function(torch.ops.aten.to.dtype, (node, torch.float32))
    with twin.graph.inserting_after(wide):
        back = twin.graph.call_function(torch.ops.aten.to.dtype, (wide, torch.int32))
    node.replace_all_uses_with(back, delete_user_cb=lambda user: user is not wide)
    for made_node in (wide, back):
        made_node.meta.update(node.meta)
    twin.recompile()
    return twin


def test_the_verifier_finds_a_float_between_codes_and_arithmetic_after_them() -> None:
    q = quantized()
    with pytest.raises(VerificationError, match="not integer-only"):
        prove_integer(with_float_between(q))
    state = run(vit(), X, integer_pipeline(until="integer"))
    with pytest.raises(VerificationError, match="float between codes"):
        prove_integer(state.graph)
    twin = GraphModule(q, fxquant.graph.tensors.copy_graph(q.graph))
    output = next(n for n in twin.graph.nodes if n.op == "output")
    value = output.all_input_nodes[0]
    with twin.graph.inserting_before(output):
        doubled = twin.graph.call_function(torch.ops.aten.mul.Tensor, (value, 2.0))
    doubled.meta.update(value.meta)
    output.replace_input_with(value, doubled)
    with pytest.raises(VerificationError, match="more than a dequantization"):
        prove_integer(twin)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_it_runs_at_any_batch_and_images_do_not_meet(batch: int) -> None:
    for method in ("i-bert", "fq-vit"):
        q = quantized(16, method)
        alone = torch.cat([logits(q, x[None]) for x in X[:batch]])
        assert torch.equal(logits(q, X[:batch]), alone)


def test_the_report_says_that_every_layer_runs_in_integers() -> None:
    report = quantized().report
    assert not report.simulated
    kernels = {row.layer: row.kernel for row in report.rows}
    assert kernels["blocks.0.norm1"] == "integers: i_layer_norm"
    assert kernels["blocks.0.attn.softmax"] == "integers: i_softmax"
    assert kernels["blocks.0.attn.qk"].startswith("bmm of int8 codes")
    assert kernels["blocks.0.mlp.fc1"].startswith("torch._int_mm int8")
    assert kernels["blocks.0.add"] == "integers: add, requantize"
    assert not any(row.reason or "float" in row.kernel for row in report.rows)
    assert report["blocks.0.add"].input_scheme == "s16/tensor"
    assert report["blocks.0.mlp.act"].input_scheme == "s8/tensor"
    assert report.totals.int8_linear_share == 1.0
    stream = quantized(8).report["blocks.0.add"]
    assert stream.input_scheme == "s8/tensor"


def test_without_the_last_pass_the_report_still_says_simulated() -> None:
    steps = fxquant.recipe("integer-only").pipeline.without("integer")
    report = fxquant.quantize(vit(), calibration=X, pipeline=steps, backend="reference").report
    assert report.simulated
    assert report["blocks.0.attn.softmax"].kernel.startswith("integers: ")
    assert report["blocks.0.mlp.fc1"].kernel == "float32, int8 simulated"
    assert report["blocks.0.add"].kernel == "float32"


def test_compiled_it_gives_the_same_bits_at_batch_1_2_and_7() -> None:
    q = quantized(16, "i-vit")
    compiled = torch.compile(q, dynamic=True)
    for batch in (2, 1, 7):
        with torch.no_grad():
            assert torch.equal(compiled(X[:batch]), q(X[:batch]))


@cache
def small(method: str, *, corrected: int = 64) -> Any:
    """The recipe with one choice by few images, and biases corrected for it or not (0)."""
    steps = fxquant.recipe("integer-only").pipeline
    chosen = {
        "method": method,
        "images": 4,
        "check_images": 8,
        "correct_images": corrected,
        "swaps": 2,
    }
    steps = steps.replace("nonlinear", replace(steps["nonlinear"], **chosen))  # type: ignore[type-var]
    if not corrected:
        steps = Pipeline(tuple(step for step in steps.passes if step != CorrectBias(images=64)))
    return fxquant.quantize(vit(), calibration=X, pipeline=steps, backend="reference")


@pytest.mark.parametrize("corrected", [64, 0])
def test_the_guard_judges_the_integers_that_come_of_each_choice(corrected: int) -> None:
    mixed = small("mix", corrected=corrected)
    figures = mixed.plan.choices["nonlinear@(model)"]["sqnr_db"]
    for family in ("i-bert", "i-vit"):  # FQ-ViT's column has tables for GELUs, the guard has not
        found = small(family, corrected=corrected).report.output_sqnr_db
        assert figures[family] == pytest.approx(found, abs=2e-3)
    assert mixed.report.output_sqnr_db == pytest.approx(figures["guarded"], abs=2e-3)
    assert figures["guarded"] >= max(figures.values())


def test_biases_are_corrected_for_what_the_integer_functions_err() -> None:
    corrected, uncorrected = small("i-vit"), small("i-vit", corrected=0)
    assert corrected.report.output_sqnr_db > uncorrected.report.output_sqnr_db + 1.0


def test_a_plan_and_a_file_give_the_same_bits(tmp_path: Path) -> None:
    q = quantized()
    plan = Plan.from_json(json.loads(json.dumps(q.plan.to_json())))
    again = fxquant.quantize(vit(), calibration=X, plan=plan, backend="reference")
    assert torch.equal(logits(q), logits(again))
    q.save(tmp_path / "integer.fxq")
    loaded = fxquant.load(tmp_path / "integer.fxq")
    assert torch.equal(logits(loaded), logits(q))


def test_images_taken_as_bytes() -> None:
    pixels = torch.randint(0, 256, (6, 3, 16, 16), generator=torch.Generator().manual_seed(3))
    floats = (pixels / 255 - 0.5) / 0.25
    given: dict[str, Any] = {
        "calibration": floats,
        "pipeline": integer_pipeline(),
        "backend": "reference",
        "input_normalization": ((0.5,) * 3, (0.25,) * 3),
    }
    q = fxquant.quantize(vit(), **given)
    raw = fxquant.quantize(vit(), entry="uint8", **given)
    assert torch.equal(logits(raw, pixels.to(torch.uint8)), logits(q, floats))
    proof = prove_integer(raw)
    assert proof.before == 0


def test_a_mixer_with_global_pooling_becomes_integer() -> None:
    steps = integer_pipeline(method="i-vit")
    q = fxquant.quantize(made(Mixer), calibration=X, pipeline=steps, backend="reference")
    assert prove_integer(q).roots == 2
    assert sqnr_db(logits(made(Mixer)), logits(q)) > 20
    assert any("int_sum" in str(n.target) for n in q.graph.nodes)


class Sines(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.sin(self.first(x)))
        return out


def test_what_has_no_integer_form_is_named() -> None:
    with pytest.raises(PipelineError, match=r"aten\.sin\.default has no integer form"):
        fxquant.quantize(
            made(Sines), calibration=torch.randn(8, 16), recipe="integer-only", backend="reference"
        )
    recipe = fxquant.recipe("integer-only").override("s8/head/minmax", role="attention_*")
    with pytest.raises(PipelineError, match="one step per tensor"):
        fxquant.quantize(vit(), calibration=X, recipe=recipe, backend="reference")


def test_a_damaged_residual_choice_is_refused() -> None:
    q = quantized()
    key = next(k for k in q.plan.choices if k.startswith("residual@"))
    step, _, place = key.partition("@")
    damaged = q.plan.with_choice(step, place, {"scale": -1.0, "bits": 16, "reason": ""})
    with pytest.raises(PlanError, match="cannot be carried out"):
        fxquant.quantize(vit(), calibration=X, plan=damaged, backend="reference")
    with pytest.raises(PipelineError, match="residual stream"):
        Residual(bits=12)


def test_a_sum_with_the_input_itself_has_no_integer_form() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.attn = nn.LayerNorm(32), Attention(32, 2, separate=True)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = x + self.attn(self.norm(x))
            return out

    x = torch.randn(8, 5, 32, generator=torch.Generator().manual_seed(2))
    with pytest.raises(PipelineError, match="no integer form"):
        # the sum reads the model's input, which nothing quantizes
        fxquant.quantize(made(Model), calibration=x, recipe="integer-only", backend="reference")


@pytest.mark.slow
def test_deit_tiny_compiled_gives_the_same_bits(assets: Path) -> None:
    model = data.load_deit_tiny()
    given = (data.DEIT_TINY_MEAN, data.DEIT_TINY_STD)
    x, _ = data.imagenet_images(data.CALIBRATION_FOLDER, 16, *given)
    q = fxquant.quantize(model, calibration=x, recipe="integer-only", backend="reference")
    assert prove_integer(q).roots == 25
    assert q.report.output_sqnr_db > 14
    compiled = torch.compile(q, dynamic=True)
    for batch in (2, 1, 7):
        with torch.no_grad():
            assert torch.equal(compiled(x[:batch]), q(x[:batch]))
