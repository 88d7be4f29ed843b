"""OPT-m: two regions where data says they beat one step, and where the target takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import Pipeline, State
from fxquant.errors import CalibrationError, PipelineError, PlanError
from fxquant.graph.tensors import tensor_at
from fxquant.passes import Annotate, Apply, Assign, Calibrate
from fxquant.passes.open_attention import OpenAttention
from fxquant.passes.region import RegionScales
from fxquant.passes.region_choices import read, record
from fxquant.passes.region_search import Outcome, Sample, compare, largest_shift
from fxquant.pipeline.state import Fact
from fxquant.quant import ops
from fxquant.quant.qparams import QParams, qparams_from_range
from fxquant.quant.quantizer import fake_quantize
from fxquant.quant.scheme import Scheme
from fxquant.quant.search import search_qparams
from fxquant.quant.search.objective import make_objectives
from tests.backends.tiny import Block, Mlp, Vit, images, made, tensor
from tests.passes.running import calls, start
from tests.passes.smoothing import randomized

DIM, TOKENS = 16, 6
FC2 = "mlp.fc2:input"
ROLES = ("qkv", "proj", "fc1", "fc2", "head", "patch_embed", "linear")


def passes(scheme: str = "s6/tensor/minmax", matmul: str = "", **options: Any) -> tuple[Any, ...]:
    assign = Assign(
        activation=Scheme.parse(scheme),
        matmul=Scheme.parse(matmul) if matmul else None,
        attention="float32",
    )
    return Annotate(), assign, Calibrate(), RegionScales(**options)


def block() -> nn.Module:
    return randomized(made(lambda: Block(DIM, 2 * DIM)))


def planned(scheme: str = "s6/tensor/minmax", *, here: Any = None, **options: Any) -> State:
    state = start(block(), tensor(16, TOKENS, DIM), **(here or {}))
    return Pipeline(passes(scheme, **options)).run(state)


def choice(state: State, site: str = FC2) -> dict[str, Any]:
    found = state.plan.choice("region", site)
    assert found is not None
    return dict(found)


def sample(rows: Tensor, scheme: Scheme, weight: Tensor | None = None) -> Sample:
    objectives = make_objectives(scheme, rows, weight, None)
    low, high = rows.aminmax()
    return Sample(objectives, (float(low),), (float(high),))


def plain(rows: Tensor, text: str) -> QParams:
    return qparams_from_range(Scheme.parse(text), *rows.aminmax())


def error(rows: Tensor, qparams: QParams, weight: Tensor | None = None) -> float:
    difference = fake_quantize(rows, qparams) - rows
    if weight is not None:
        difference = difference @ weight.t()
    return float(difference.double().square().sum())


@pytest.mark.parametrize("rule", ["mse", "output"])
@pytest.mark.parametrize("bits", [4, 6])
def test_no_fixed_m_is_better_than_the_chosen_one(rule: str, bits: int) -> None:
    rows = torch.nn.functional.gelu(tensor(300, 24) * 1.5)
    weight = tensor(10, 24, seed=1) if rule == "output" else None
    scheme = Scheme.parse(f"region_{bits}/tensor/{rule}")
    current = plain(rows, f"s{bits}/tensor/minmax")
    outcome = compare(scheme, sample(rows, scheme, weight), current, float("inf"))
    assert set(outcome.errors) == set(range(9))
    assert outcome.qparams is not None
    best = outcome.errors[outcome.qparams.shift]
    assert best == min(outcome.errors.values()) == outcome.after
    signal = float((rows if weight is None else rows @ weight.t()).double().square().sum())
    assert error(rows, outcome.qparams, weight) / signal == pytest.approx(best, rel=1e-4)
    assert error(rows, current, weight) / signal == pytest.approx(outcome.before, rel=1e-4)
    low, high = rows.aminmax()
    searched = search_qparams(scheme, rows, low=low, high=high, output=weight)
    assert (searched.shift, searched.scale) == (outcome.qparams.shift, outcome.qparams.scale)


def test_m_zero_is_the_symmetric_quantizer() -> None:
    rows = torch.nn.functional.gelu(tensor(300, 24))
    scheme = Scheme.parse("region_6/tensor/mse")
    outcome = compare(scheme, sample(rows, scheme), plain(rows, "s4/tensor/minmax"), span=0)
    assert set(outcome.errors) == {0}
    assert outcome.qparams is not None
    scale = float(outcome.qparams.scale)
    symmetric = QParams(Scheme.parse("s6/tensor/mse"), torch.tensor(scale), torch.tensor(0))
    assert torch.equal(fake_quantize(rows, outcome.qparams), fake_quantize(rows, symmetric))


def test_after_gelu_two_regions_beat_one_step_at_six_bits() -> None:
    rows = torch.nn.functional.gelu(tensor(2000, 32) * 1.5 - 1)
    scheme = Scheme.parse("region_6/tensor/mse")
    low, high = rows.aminmax()
    rival = search_qparams(Scheme.parse("s6/tensor/mse"), rows, low=low, high=high)
    outcome = compare(scheme, sample(rows, scheme), rival, float("inf"))
    assert outcome.qparams is not None
    assert outcome.qparams.shift > 0
    assert outcome.after < 0.6 * outcome.before


def test_data_that_is_symmetric_keeps_its_one_step() -> None:
    rows = tensor(300, 24).clamp(-2, 2)
    rows[0, :2] = torch.tensor([-2.0, 2.0])
    scheme = Scheme.parse("region_6/tensor/mse")
    low, high = rows.aminmax()
    rival = search_qparams(Scheme.parse("s6/tensor/mse"), rows, low=low, high=high)
    outcome = compare(scheme, sample(rows, scheme), rival, float("inf"))
    assert outcome.qparams is None
    assert outcome.after == outcome.before
    said = record(outcome)
    assert said["declined"]
    assert "the quantizer there is" in said["reason"]


def test_the_pass_sets_scheme_and_parameters_and_apply_takes_them() -> None:
    state = planned(objective="mse")
    found = choice(state)
    assert found["m"] > 0
    assert found["split"] == "sign"
    assert found["error_after"] < found["error_before"]
    scheme = state.plan[FC2].scheme
    assert scheme is not None
    assert scheme.text() == found["scheme"] == "region_6/tensor/mse"
    assert state.plan[FC2].reason == found["reason"]
    assert state.statistics[FC2].shift == found["m"]
    assert float(state.statistics[FC2].scale) == found["scale"]
    assert state.plan["mlp.fc1:input"].scheme == Scheme.parse("s6/tensor/minmax")
    graph = Apply().run(state).graph
    node = next(n for n in graph.graph.nodes if n.target is ops.quantize_region)
    assert node.args[1:] == (found["scale"], found["m"], 6, "sign")
    assert len(calls(graph, "dequantize_region")) == 1


@pytest.mark.parametrize("objective", ["mse", "output", "fisher"])
def test_every_objective_chooses_and_records(objective: str) -> None:
    model, x = made(lambda: Vit(DIM, 1)), images(8)
    pipeline = Pipeline(passes(objective=objective, images=4))
    state = pipeline.run(start(model, x))
    found = choice(state, "blocks.0.mlp.fc2:input")
    assert found["scheme"] == f"region_6/tensor/{objective}"
    assert 0 < found["error_after"] < found["error_before"]


def test_what_kernels_take_bounds_m_and_none_fitting_declines() -> None:
    assert [largest_shift(bits, "sign", 255) for bits in (4, 5, 6, 7, 8)] == [5, 3, 2, 1, 0]
    assert [largest_shift(bits, "magnitude", 255) for bits in (4, 6, 8)] == [5, 3, 1]
    assert largest_shift(6, "sign", 127) == 1
    assert largest_shift(6, "sign", float("inf")) == 8
    x86 = {"roles": ROLES, "kinds": ("uniform", "region")}
    free, bound = choice(planned()), choice(planned(here=x86))
    assert bound["m"] <= 2 < free["m"]
    assert bound["error_after"] >= free["error_after"]
    asked = choice(planned(here=x86, simulate="ask"))
    assert asked["m"] == free["m"]
    declined = planned("s8/tensor/minmax", here=x86)
    assert choice(declined)["declined"]
    assert "aligned codes of 8 bits span more than 255" in choice(declined)["reason"]
    assert declined.plan[FC2].scheme == Scheme.parse("s8/tensor/minmax")
    assert any("aligned codes" in note.text and note.layer == "mlp.fc2" for note in declined.log)


def test_a_target_without_such_kernels_declines_unless_asked() -> None:
    here = {"roles": ROLES, "kinds": ("uniform",)}
    state = planned(here=here)
    assert choice(state)["reason"] == "test has no kernel for region codes"
    assert state.plan[FC2].scheme == Scheme.parse("s6/tensor/minmax")
    assert choice(planned(here=here, simulate="ask"))["m"] > 0


def test_post_softmax_operands_are_split_by_magnitude() -> None:
    model, x = block(), tensor(8, 40, DIM)

    def state(**options: Any) -> State:
        steps = passes(**options)
        return Pipeline((OpenAttention(), *steps, Apply())).run(start(model, x))

    for granularity in ("tensor", "head"):
        after = state(matmul=f"a4/{granularity}/minmax")
        site = next(str(s) for s in after.plan if str(s).endswith(":lhs") and "av" in str(s))
        found = choice(after, site)
        assert found["split"] == "magnitude"
        assert found["scheme"] == f"region_4/{granularity}/output"
        assert isinstance(found["scale"], list) == (granularity == "head")
        assert found["error_after"] < found["error_before"]
        assert len(calls(after.graph, "fxquant.quantize_region")) == 2  # this one and fc2's
    float_products = state()
    assert not any(key.endswith(":lhs") for key in float_products.plan.choices)
    assert choice(state(matmul="a4/tensor/minmax", objective="fisher"), site)["scheme"].endswith(
        "/output"
    )


def test_a_saved_plan_gives_the_same_bits_without_a_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = block(), tensor(16, TOKENS, DIM)
    pipeline = Pipeline((*passes(), Apply()))
    q = fxquant.quantize(model, calibration=x, pipeline=pipeline, backend="reference")
    q.plan.save(tmp_path / "plan.json")
    plan = fxquant.Plan.load(tmp_path / "plan.json")

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("searched although the plan says what to do")

    monkeypatch.setattr("fxquant.passes.region.gathered", never)
    again = fxquant.quantize(
        model, calibration=x, plan=plan, pipeline=pipeline, backend="reference"
    )
    with torch.no_grad():
        assert torch.equal(q(x), again(x))
    q.save(tmp_path / "q.fxq")
    with torch.no_grad():
        assert torch.equal(q(x), fxquant.load(tmp_path / "q.fxq")(x))


def test_an_edited_choice_is_followed_and_an_unsound_one_refused() -> None:
    state = start(block(), tensor(16, TOKENS, DIM))
    edited = {"m": 1, "scale": 0.03125, "split": "sign", "scheme": "region_6/tensor/mse"}

    def followed(data: dict[str, Any]) -> State:
        plan = state.plan.with_choice("region", FC2, data)
        return Pipeline(passes()).run(state.having(Fact.PLAN, plan))

    after = followed(edited)
    assert after.statistics[FC2].shift == 1
    assert float(after.statistics[FC2].scale) == 0.03125
    assert after.plan[FC2].reason == "edited plan"
    assert followed({"declined": True, "reason": "no"}).plan[FC2].scheme == Scheme.parse(
        "s6/tensor/minmax"
    )
    wrong = {"m": 9, "scale": -1.0, "split": "both", "scheme": "s6/tensor/mse"}
    for key, value in wrong.items():
        with pytest.raises(PlanError, match=r"choice region@mlp\.fc2:input"):
            followed({**edited, key: value})
    for scale in ([0.1], "wide", None, float("inf")):
        with pytest.raises(PlanError, match="scale cannot be"):
            read({**edited, "scale": scale}, FC2)
    with pytest.raises(PlanError, match="cannot be read"):
        read({**edited, "scheme": "six bits"}, FC2)


def test_parameters_survive_being_written_down() -> None:
    for text, scale in (("region_6/tensor/mse", 0.1), ("region_4/head/mse", [0.1, 0.3])):
        values = torch.tensor(scale)
        zeros = torch.zeros_like(values, dtype=torch.int64)
        qparams = QParams(Scheme.parse(text), values, zeros, shift=3, split="magnitude")
        again = read(record(Outcome(qparams, 0.2, {3: 0.1})), FC2)
        assert again.scheme == qparams.scheme
        assert torch.equal(again.scale, values)
        assert (again.shift, again.split) == (3, "magnitude")


def test_sites_of_other_kinds_and_float_sites_are_left() -> None:
    state = planned("region_6/tensor/mse")
    assert not state.plan.choices
    model, x = made(lambda: Mlp(16, 32)), tensor(8, 16)
    dynamic = fxquant.recipe("w8a8").override("a8/token/dynamic", sites="fc2:input").pipeline
    state = dynamic.without("plan").after("calibrate", RegionScales()).run(start(model, x))
    assert not any(key.startswith("region@") for key in state.plan.choices)


def test_data_is_needed_to_search_and_options_must_make_sense() -> None:
    with pytest.raises(PipelineError, match="cannot search on 0 images"):
        RegionScales(images=0)
    with pytest.raises(PipelineError, match="0 rows"):
        RegionScales(rows=0)
    state = Pipeline(passes()[:3]).run(start(block(), tensor(16, TOKENS, DIM)))
    step = RegionScales()
    without = state.having(Fact.CALIBRATION, None)
    with pytest.raises(CalibrationError, match="searched on calibration data"):
        step.run(without.view(step.name, step.needs))


def test_the_x86_graph_runs_region_codes_in_int8_without_losing_accuracy() -> None:
    x, model = tensor(16, TOKENS, 32), randomized(made(lambda: Block(32, 64)))
    recipe = fxquant.recipe("w8a8").override("a6/tensor/minmax", sites="*:input")
    pipeline = recipe.pipeline.without("plan").after("calibrate", RegionScales())
    q = fxquant.quantize(model, calibration=x, pipeline=pipeline, backend="x86")
    found = q.plan.choice("region", FC2)
    assert found is not None
    if found.get("declined"):  # an affine quantizer has no sign to waste
        assert found["error_before"] <= found["error_after"]
    lowered = fxquant.lower(q, executor="eager", strict=True)
    assert "mlp.fc2" in lowered.int8_kernels
    weight = tensor_at(q, "mlp_fc2__weight")
    assert weight.dtype is torch.int8
