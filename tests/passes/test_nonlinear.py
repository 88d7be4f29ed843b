"""Choosing integer kernels for non-linearities."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import fxquant
from fxquant import Fact, Pipeline, Plan
from fxquant.errors import CalibrationError, PipelineError, PlanError
from fxquant.passes import BUILTIN, Nonlinear
from fxquant.passes.nonlinearity.guard import guarded
from fxquant.passes.nonlinearity.scoring import FLOAT, Score
from fxquant.passes.nonlinearity.trial import Trial
from fxquant.quant import ops
from fxquant.quant.integer.families import FAMILIES, METHODS
from fxquant.quant.metrics import mean_ratio_db, sample_ratios
from tests.backends.tiny import images, made, vit
from tests.passes.running import calls, run

BASE = (
    'annotate; open_attention{"simulate": "ask"}; assign{"matmul": "s8/tensor/minmax", '
    '"simulate": "ask", "attention": "float32", "by_role": [{"scheme": "a8/tensor/minmax", '
    '"sites": "*:lhs", "role": "attention_av"}]}; calibrate; apply'
)
X = images(12)
STEP = "nonlinear"


def pipeline(**options: Any) -> Pipeline:
    base = Pipeline.parse(BASE, BUILTIN)
    return Pipeline((*base.passes, Nonlinear(**{"images": 6, "check_images": 4, **options})))


@cache
def chosen(**options: Any) -> Any:
    return run(vit(), X, pipeline(**options))


def choices(plan: Plan) -> dict[str, Any]:
    return {
        key.removeprefix(f"{STEP}@"): dict(value)
        for key, value in plan.choices.items()
        if key.startswith(STEP) and not key.endswith("(model)")
    }


def logits(graph: Any, x: Tensor = X) -> Tensor:
    with torch.no_grad():
        out: Tensor = graph(x)
    return out


LAYERS = {"blocks.0.norm1", "blocks.0.attn.softmax", "blocks.0.norm2", "blocks.0.mlp.act", "norm"}


def test_every_non_linearity_is_chosen_by_the_least_loss_with_ties_in_order() -> None:
    made_choices = choices(chosen(select="raw").plan)
    assert set(made_choices) == LAYERS
    for layer, choice in made_choices.items():
        deltas = choice["delta_db"]
        assert set(deltas) == {*METHODS, FLOAT}
        allowed = [m for m in FAMILIES if not (layer.endswith("act") and m == "fq-vit")]
        best = min(deltas[m] for m in allowed)
        assert choice["method"] == next(m for m in allowed if deltas[m] <= best + 5e-4)
        for m in deltas:
            assert abs(choice["in_db"][m] - choice["out_db"][m] - deltas[m]) < 2e-3
        integer = {choice["in_db"][m] for m in METHODS}
        assert len(integer) == 1  # methods are held against each other on the same input
        assert choice["reason"].startswith(choice["method"])


def test_the_table_is_the_upper_bound_of_8_bit_gelus_and_softmaxes() -> None:
    for layer, choice in choices(chosen(select="raw").plan).items():
        if layer.endswith(("act", "softmax")):
            best = min(choice["delta_db"][m] for m in FAMILIES[:2])
            assert choice["delta_db"]["lut"] <= best + 0.05


@pytest.mark.parametrize("method", METHODS)
def test_a_family_is_forced_everywhere(method: str) -> None:
    state = chosen(method=method)
    assert {c["method"] for c in choices(state.plan).values()} == {method}
    names = {
        "i-bert": ("i_softmax", "i_gelu", "i_layer_norm"),
        "i-vit": ("shiftmax", "shift_gelu", "shift_layer_norm"),
        "fq-vit": ("log_int_softmax", "lookup", "power_layer_norm"),
        "lut": ("table_softmax", "lookup", "shift_layer_norm"),
    }[method]
    for name, count in zip(names, (1, 1, 3), strict=True):
        assert len(calls(state.graph, f"fxquant.{name}.")) == count
    left = {"aten.softmax.int", "aten.gelu.default", "aten.layer_norm.default"}
    assert not left & {str(n.target) for n in state.graph.graph.nodes}
    exact = logits(state.float_graph)
    error = (logits(state.graph) - exact).norm() / exact.norm()
    assert float(error) < (0.2 if method == "fq-vit" else 0.1)


def test_codes_go_from_kernels_to_readers_without_a_second_quantizer() -> None:
    state = chosen(method="i-bert")
    for name in ("requantize_channels", "requantize"):
        for node in calls(state.graph, f"fxquant.{name}."):
            stack = list(node.users)
            while stack:
                user = stack.pop()
                assert user.target not in ops.QUANTIZE
                if user.target not in ops.DEQUANTIZE and "fxquant" not in str(user.target):
                    stack += user.users


@pytest.mark.parametrize("name", ["float", "keep"])
def test_float_is_a_candidate_only_when_asked(name: str) -> None:
    state = chosen(method="float") if name == "float" else chosen(keep_float="ask", select="raw")
    found = choices(state.plan)
    kept = {layer for layer, c in found.items() if c["method"] == FLOAT}
    best = {
        la
        for la, c in found.items()
        if c["delta_db"][FLOAT] < min(v for m, v in c["delta_db"].items() if m in FAMILIES) - 1e-3
    }
    assert kept == (LAYERS if name == "float" else best)
    assert kept
    assert not any(c["method"] == FLOAT for c in choices(chosen(select="raw").plan).values())


@pytest.mark.parametrize("bits", [6, 8])
def test_input_and_output_bits(bits: int) -> None:
    state = chosen(method="i-bert", input_bits=bits, output_bits=bits, norm_bits=8)
    for layer, choice in choices(state.plan).items():
        half = 1 << ((8 if "norm" in layer else bits) - 1)
        assert choice["input"][1:] == [-half, half - 1]
        assert choice["output"][2:] == [0, (1 << bits) - 1]
    wide = chosen(method="i-bert", input_bits=8, output_bits=8, norm_bits=8)
    exact = logits(state.float_graph)
    errors = [float((logits(s.graph) - exact).norm()) for s in (state, wide)]
    assert (errors[0] > errors[1]) == (bits == 6)


def test_the_guarded_mix_is_at_least_level_with_every_family() -> None:
    plan = chosen().plan
    whole = plan.choices[f"{STEP}@(model)"]
    figures = whole["sqnr_db"]
    assert set(figures) == {"mix", *FAMILIES, "guarded"}
    assert figures["guarded"] >= max(figures.values()) - 1e-9
    assert all(c["method"] in FAMILIES for c in choices(plan).values())


def test_where_fq_vit_wins_its_table_for_gelu_stays_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def most_of_fq_vit(_: Trial, assignment: Any) -> float:
        return float(sum(method == "fq-vit" for method in assignment.values()))

    monkeypatch.setattr(Trial, "sqnr_db", most_of_fq_vit)
    state = run(vit(), X, pipeline())
    found = {layer: choice["method"] for layer, choice in choices(state.plan).items()}
    gelu = found.pop("blocks.0.mlp.act")
    assert set(found.values()) == {"fq-vit"}
    assert gelu == choices(chosen(select="raw").plan)["blocks.0.mlp.act"]["method"]
    assert not calls(state.graph, "fxquant.lookup.")


def test_swaps_that_help_are_kept_and_others_undone() -> None:
    score = {("a", m): Score(10.0, 10.0 - i, 0.0) for i, m in enumerate(("x", "y"))}
    score |= {("b", m): Score(10.0, 9.0 + i, 0.0) for i, m in enumerate(("x", "y"))}
    worth = {("x", "x"): 1.0, ("y", "y"): 3.0, ("x", "y"): 5.0, ("y", "x"): 2.0}

    def sqnr(assignment: Any) -> float:
        return worth[assignment["a"], assignment["b"]]

    families = {"fx": {"a": "x", "b": "x"}, "fy": {"a": "y", "b": "y"}}
    found = guarded({"a": "y", "b": "x"}, families, score, sqnr, swaps=9)
    assert dict(found.chosen) == {"a": "y", "b": "y"}
    assert found.figures["guarded"] == 3.0
    assert found.swapped == ()
    found = guarded({"a": "x", "b": "y"}, families, score, sqnr, swaps=9)
    assert dict(found.chosen) == {"a": "x", "b": "y"}
    worth["x", "y"] = 2.5
    worth["y", "x"] = 4.0
    found = guarded({"a": "x", "b": "x"}, {"fy": families["fy"]}, score, sqnr, swaps=9)
    assert dict(found.chosen) == {"a": "y", "b": "x"}
    assert found.swapped == ("b",)
    assert found.figures["guarded"] == 4.0
    none = guarded({"a": "x", "b": "x"}, {"fy": families["fy"]}, score, sqnr, swaps=0)
    assert none.figures["guarded"] == 3.0


def test_cost_can_outweigh_the_loss() -> None:
    plan = chosen(select="raw", objective="cost", db_per_us=1e6).plan
    for choice in choices(plan).values():
        costs = {m: choice["cost_us"][m] for m in choice["cost_us"] if m in FAMILIES}
        assert all(c > 0 for c in costs.values())
        if "fq-vit" in choice["reason"]:
            assert costs[choice["method"]] <= min(costs.values()) + 0.1


def test_a_plan_gives_the_same_bits_through_its_text() -> None:
    first = fxquant.quantize(vit(), calibration=X, pipeline=pipeline(), backend="reference")
    plan = Plan.from_json(json.loads(json.dumps(first.plan.to_json())))
    again = fxquant.quantize(vit(), calibration=X, plan=plan, backend="reference")
    assert torch.equal(logits(first), logits(again))
    assert first.plan.choices == again.plan.choices


@pytest.mark.parametrize(
    "change",
    [
        {"method": "i-berd"},
        {"input": [0.0, -128, 127]},
        {"input": [0.1, -128]},
        {"output": None},
        {"learned": {}},
    ],
)
def test_a_damaged_choice_is_refused_with_its_place(change: dict[str, Any]) -> None:
    plan = chosen(select="raw").plan
    key = "blocks.0.mlp.act"
    damaged = plan.with_choice(STEP, key, {**plan.choices[f"{STEP}@{key}"], **change})
    with pytest.raises(PlanError, match=r"nonlinear@blocks\.0\.mlp\.act"):
        fxquant.quantize(
            vit(), calibration=X, pipeline=pipeline(), plan=damaged, backend="reference"
        )


def test_a_plan_that_speaks_of_some_layers_only_is_refused() -> None:
    plan = chosen(select="raw").plan
    kept = {k: v for k, v in plan.choices.items() if "mlp.act" not in k}
    with pytest.raises(PipelineError, match="some non-linearities"):
        fxquant.quantize(
            vit(),
            calibration=X,
            pipeline=pipeline(),
            plan=replace(plan, choices=kept),
            backend="reference",
        )


@pytest.mark.parametrize(
    "option", [{"input_bits": 3}, {"images": 0}, {"output_bits": 9}, {"correct_images": -1}]
)
def test_impossible_options_are_refused(option: dict[str, int]) -> None:
    with pytest.raises(PipelineError, match="no integer kernels"):
        Nonlinear(**option)  # type: ignore[arg-type]


def test_it_needs_data() -> None:
    dynamic = 'annotate; assign{"activation": "a8/token/dynamic"}; calibrate; apply; nonlinear'
    with pytest.raises(CalibrationError, match="calibration data"):
        fxquant.quantize(
            vit(), example=X[:2], pipeline=Pipeline.parse(dynamic, BUILTIN), backend="reference"
        )


def test_the_metric_is_a_mean_of_ratios_inside_the_logarithm() -> None:
    x = torch.randn(4, 7, 9, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(4, 7, 9, generator=torch.Generator().manual_seed(2))
    noise = noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1)
    x = x / x.flatten(1).norm(dim=1).view(-1, 1, 1)
    size = torch.tensor([0.1, 0.01, 0.5, 1.0]).view(-1, 1, 1)
    ratios = sample_ratios(x, x + noise * size)
    torch.testing.assert_close(
        ratios, torch.tensor([10.0, 100.0, 2.0, 1.0]).double(), rtol=1e-5, atol=0
    )
    assert mean_ratio_db(ratios) == pytest.approx(20 * torch.log10(torch.tensor(28.25)).item())
    scaled = sample_ratios(1000 * x, 1000 * (x + noise * size))
    assert mean_ratio_db(scaled) == pytest.approx(mean_ratio_db(ratios), abs=1e-4)
    tenth = sample_ratios(x, x + noise * size / 10)
    assert mean_ratio_db(tenth) == pytest.approx(mean_ratio_db(ratios) + 20, abs=1e-3)
    assert mean_ratio_db(sample_ratios(x, x)) == 150.0


def test_a_bit_more_is_six_decibels() -> None:
    x = torch.rand(4, 20000, generator=torch.Generator().manual_seed(1))
    figures = []
    for bits in (6, 7, 8):
        step = 1.0 / (1 << bits)
        figures.append(mean_ratio_db(sample_ratios(x, torch.round(x / step) * step)))
    assert figures[1] - figures[0] == pytest.approx(6.02, abs=0.1)
    assert figures[2] - figures[1] == pytest.approx(6.02, abs=0.1)


def test_a_model_without_attention_has_its_norms_and_gelus_chosen() -> None:
    from tests.backends.tiny import Mixer

    steps = Pipeline.parse("annotate; assign; calibrate; apply", BUILTIN)
    steps = Pipeline((*steps.passes, Nonlinear(images=4, check_images=2)))
    state = run(made(Mixer), X, steps)
    assert {c["method"] for c in choices(state.plan).values()} <= set(FAMILIES)
    assert len(choices(state.plan)) == 4
    assert Fact.GRAPH in state.facts
