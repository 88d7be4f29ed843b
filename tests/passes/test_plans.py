"""How decisions are made: defaults, the target, overrides, outliers, passes of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import Decision, Fact, Pass, State
from fxquant.errors import PipelineError, PlanError
from fxquant.passes import Annotate, Assign, Measure, UsePlan, calibrate
from fxquant.pipeline.pipeline import Pipeline
from fxquant.quant.metrics import sqnr_db
from fxquant.quant.observers import make_observer
from tests.backends.tiny import Mlp, Vit, images, made, shared, tensor, vit
from tests.passes.running import run, start


def planned(model: nn.Module, data: Tensor, recipe: fxquant.Recipe | None = None, **t: Any) -> Any:
    assign = (recipe or fxquant.recipe("w8a8")).pipeline["assign"]
    return Pipeline((Annotate(), assign)).run(start(model, data, **t)).plan


def test_every_site_has_a_decision_with_a_reason() -> None:
    plan = shared("vit")[1].plan
    assert all(decision.reason for decision in plan.decisions.values())
    assert str(plan["patch:input"].scheme.text()) == "a8/tensor/minmax"
    assert plan["head:weight"].scheme.text() == "s8/channel/minmax"
    assert plan["blocks.0.norm1:input"].scheme is None
    assert "residual stream" in plan["blocks.0.norm1:input"].reason


def test_a_machine_with_seven_bits_plans_seven_bits_and_says_why() -> None:
    model, x = vit(), images(4)
    state = run(model, x, activation_bits=7)
    decision = state.plan["blocks.0.mlp.fc2:input"]
    assert decision.scheme is not None
    assert decision.scheme.bits == 7
    assert "7 bits: a test machine has no VNNI" in decision.reason
    assert state.plan["blocks.0.mlp.fc2:weight"].scheme.bits == 8
    quantizers = [n for n in state.graph.graph.nodes if "dequantize_per_tensor" in str(n.target)]
    assert {n.args[4] for n in quantizers} == {127}
    with torch.no_grad():
        assert sqnr_db(model(x), state.graph(x)) > 25.0


def test_a_plan_of_eight_bits_is_refused_by_a_machine_with_seven() -> None:
    model, x = made(lambda: Mlp(16, 32)), tensor(4, 16)
    plan = planned(model, x)
    steps = Pipeline((Annotate(), UsePlan(plan)))
    assert steps.run(start(model, x)).plan is plan
    with pytest.raises(PlanError, match="8-bit activations saturate on a test machine") as caught:
        steps.run(start(model, x, activation_bits=7))
    assert caught.value.where == "fc1:input"
    narrow = planned(model, x, activation_bits=7)
    assert Pipeline((Annotate(), UsePlan(narrow))).run(start(model, x)).plan is narrow


def test_a_target_chooses_the_roles_and_the_sizes_that_pay() -> None:
    model, x = vit(), images(4)
    plan = planned(model, x, roles=("fc1", "fc2"), smallest_features=64)
    assert plan["blocks.0.attn.qkv:weight"].scheme is None
    assert "no int8 kernel for role qkv" in plan["blocks.0.attn.qkv:weight"].reason
    assert "below 64" in plan["blocks.0.mlp.fc1:weight"].reason
    assert planned(model, x, smallest_features=18)["head:weight"].scheme is None


@pytest.mark.parametrize(
    ("scheme", "sites", "role", "changed"),
    [
        ("float", "blocks.0.*", "*", {"blocks.0."}),
        ("float", "*", "fc?", {"mlp.fc1", "mlp.fc2"}),
        ("float", "blocks.0.*", "qkv", {"blocks.0.attn.qkv"}),
        ("a6/tensor/minmax", "*", "head", {"head"}),
        ("s4/channel/mse", "blocks.*", "fc1", {"mlp.fc1"}),
        ("a8/tensor/percentile@99.9", "head:input", "*", {"head"}),
    ],
)
def test_an_override_reaches_the_sites_it_names_and_no_other(
    scheme: str, sites: str, role: str, changed: set[str]
) -> None:
    model, x = vit(), images(2)
    recipe = fxquant.recipe("w8a8").override(scheme, sites=sites, role=role)
    before, after = planned(model, x), planned(model, x, recipe)
    assert list(before) == list(after)
    different = {str(site) for site in before if before[site] != after[site]}
    assert different
    for site in map(str, before):
        if any(part in site for part in changed) and site in different:
            assert f"override {sites}" in after[site].reason
        assert (site in different) <= any(part in site for part in changed)
    if scheme != "float":
        slot = "weight" if scheme.startswith("s") else "input"
        assert all(site.endswith(f":{slot}") for site in different)
        assert all(after[site].scheme.text() == scheme for site in different)


def test_a_later_override_wins() -> None:
    recipe = fxquant.recipe("w8a8").override("float").override("a8/tensor/mse", sites="fc1:input")
    recipe = recipe.override("s8/channel/minmax", sites="fc1:weight")
    plan = planned(made(lambda: Mlp(16, 32)), tensor(4, 16), recipe)
    assert plan["fc1:input"].scheme.text() == "a8/tensor/mse"
    assert plan["fc2:input"].scheme is None


def test_a_scheme_for_all_sites_passes_by_layers_without_weights() -> None:
    recipe = fxquant.recipe("w8a8").override("a7/tensor/minmax")
    plan = planned(vit(), images(2), recipe)
    schemes = {str(site): d.scheme for site, d in plan.decisions.items() if d.scheme}
    assert {s.split(":")[0] for s in schemes} == {
        str(site.layer) for site in plan if site.slot == "weight"
    }


def test_measurements_are_the_distance_of_each_layers_output() -> None:
    model, q = shared("vit")
    x = images(8)
    wanted = ("patch", "blocks.0.attn.proj", "blocks.1.mlp.fc2", "head")
    graph = fxquant.capture(model, x)

    def outputs(graph_module: torch.fx.GraphModule) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}

        class Keep(torch.fx.Interpreter):
            def run_node(self, n: torch.fx.Node) -> Any:
                value = super().run_node(n)
                if str(n.target) in {"aten.linear.default", "aten.conv2d.default"}:
                    found[n.meta["layer"]] = value
                return value

        with torch.no_grad():
            Keep(graph_module).run(x)
        return found

    exact, simulated = outputs(graph), outputs(q)
    for layer in wanted:
        expected = sqnr_db(exact[layer], simulated[layer])
        assert q.report[layer].sqnr_db == pytest.approx(expected, abs=0.05)
    with torch.no_grad():
        assert q.report.output_sqnr_db == pytest.approx(sqnr_db(model(x), q(x)), abs=0.05)


def test_measuring_more_images_than_there_are_measures_them_all() -> None:
    model, x = made(lambda: Mlp(16, 32)), tensor(3, 16)
    few = run(model, x, fxquant.recipe("w8a8").pipeline.replace("measure", Measure(images=3)))
    many = run(model, x, fxquant.recipe("w8a8").pipeline.replace("measure", Measure(images=500)))
    assert few.measurements == many.measurements


@dataclass(frozen=True)
class KeepHeadFloat(Pass):
    """The pass of the README."""

    name = "keep_head_float"
    needs = frozenset({Fact.PLAN})
    gives = frozenset({Fact.PLAN})

    def run(self, state: State) -> State:
        keep = Decision(reason="the head stays float")
        plan = state.plan
        for slot in ("input", "weight"):
            plan = plan.with_decision(f"head:{slot}", keep)
        return state.having(Fact.PLAN, plan)


@pytest.mark.parametrize("after", ["assign", "plan"])
def test_a_pass_of_ones_own_keeps_the_head_float(after: str) -> None:
    pipeline = fxquant.recipe("w8a8").pipeline.after(after, KeepHeadFloat())
    assert "keep_head_float" in str(pipeline)
    q = fxquant.quantize(vit(), calibration=images(4), pipeline=pipeline)
    assert q.plan["head:weight"].reason == "the head stays float"
    lowered = fxquant.lower(q, strict=True, executor="eager")
    assert "head" not in lowered.int8_kernels
    assert lowered.report["head"].kernel == "float32"
    assert lowered.report["head"].reason == "the head stays float"
    assert lowered.report.totals.int8_layers == lowered.report.totals.layers - 1


def test_a_pass_sees_only_what_it_names() -> None:
    @dataclass(frozen=True)
    class Curious(Pass):
        name = "curious"
        needs = frozenset({Fact.PLAN})

        def run(self, state: State) -> State:
            assert state.graph
            return state

    pipeline = fxquant.recipe("w8a8").pipeline.after("assign", Curious())
    with pytest.raises(PipelineError, match="'graph' is not available") as caught:
        fxquant.quantize(made(lambda: Mlp(16, 32)), calibration=tensor(4, 16), pipeline=pipeline)
    assert "curious" in caught.value.where


@pytest.mark.parametrize("rule", ["minmax", "moving_average", "mse", "histogram"])
def test_observers_and_statistics_do_not_grow_with_the_data(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_observers: list[Any] = []

    def remember(scheme: Any) -> Any:
        made_observers.append(make_observer(scheme))
        return made_observers[-1]

    monkeypatch.setattr(calibrate, "make_observer", remember)
    model, held, sizes = made(lambda: Mlp(16, 32)), [], []
    recipe = fxquant.recipe("w8a8").override(f"a8/tensor/{rule}")
    for count in (160, 1600):
        made_observers.clear()
        state = run(model, tensor(count, 16).clamp(-2, 2), recipe.pipeline)
        assert len(made_observers) == 2
        held.append(sum(elements(vars(observer)) for observer in made_observers))
        sizes.append(sum(elements(vars(qparams)) for qparams in state.statistics.values()))
    assert held[0] == held[1]
    assert sizes[0] == sizes[1] == 4


def elements(values: Any) -> int:
    """Tensor elements held by a value, however nested."""
    leaves = torch.utils._pytree.tree_leaves(values)
    return sum(leaf.numel() for leaf in leaves if isinstance(leaf, Tensor))


def test_the_limit_bounds_what_is_read() -> None:
    read = []

    def stream() -> Any:
        for number in range(100):
            read.append(number)
            yield tensor(4, 16, seed=number)

    q = fxquant.quantize(made(lambda: Mlp(16, 32)), calibration=stream(), limit=12)
    assert len(read) <= 4
    again = fxquant.quantize(
        made(lambda: Mlp(16, 32)), calibration=[tensor(4, 16, seed=n) for n in range(3)]
    )
    x = tensor(5, 16)
    assert torch.equal(q(x), again(x))


def test_the_model_class_does_not_matter_to_the_plan() -> None:
    model, x = made(lambda: Vit(32, 1)), images(4)
    traced = torch.fx.symbolic_trace(model)
    assert list(planned(traced.eval(), x)) == list(planned(model, x))
    assert isinstance(fxquant.recipe("w8a8").pipeline["assign"], Assign)
