"""Schemes at the operands of attention's products: assigned, put into the graph, replayed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import Plan, Scheme
from fxquant.errors import PlanError, RecipeError
from fxquant.passes import (
    Annotate,
    Apply,
    Assign,
    Calibrate,
    Measure,
    OpenAttention,
    Override,
    SpareOutliers,
)
from fxquant.pipeline.pipeline import Pipeline
from fxquant.quant.quantizer import fake_quantize
from tests.backends.tiny import Attention, Vit, images, made, tensor
from tests.passes.running import calls, run, start

parse = Scheme.parse
OPERANDS = ("qk:lhs", "qk:rhs", "av:lhs", "av:rhs")


def steps(**given: Any) -> Pipeline:
    return Pipeline((Annotate(), OpenAttention(), Assign(**given), Calibrate(rows=32), Apply()))


def planned(model: nn.Module, data: Tensor, assign: Assign, **target: Any) -> Plan:
    opening = (Annotate(), OpenAttention(simulate="ask"))
    return Pipeline((*opening, assign)).run(start(model, data, **target)).plan


def attention_plan(assign: Assign, **target: Any) -> Plan:
    return planned(made(lambda: Attention(16, 2)), tensor(4, 5, 16), assign, **target)


def schemes(plan: Plan) -> dict[str, str]:
    return {str(site): d.scheme.text() for site, d in plan.decisions.items() if d.scheme}


def test_both_operands_of_both_products_take_the_recipes_scheme() -> None:
    plan = attention_plan(Assign(matmul=parse("a6/head/mse")))
    assert {site: schemes(plan)[site] for site in OPERANDS} == dict.fromkeys(
        OPERANDS, "a6/head/mse"
    )
    assert plan["qk:lhs"].reason == "default for attention products"
    assert plan["softmax:input"].scheme is None
    float_plan = attention_plan(Assign())
    assert not set(OPERANDS) & set(schemes(float_plan))
    assert "stay float in this recipe" in float_plan["av:rhs"].reason


def test_roles_name_single_sites() -> None:
    by_role = (
        Override("adalog_4/head/mse", "*:lhs", "attention_av"),
        Override("region_6/tensor/output", "*:input", "proj"),
        Override("s4/channel/mse", role="qkv"),
        Override("a4/tensor/minmax", role="fc9"),  # silent: there is no such role
    )
    plan = attention_plan(Assign(matmul=parse("a4/head/minmax"), by_role=by_role))
    assert schemes(plan) == {
        "qkv:input": "a8/tensor/minmax",
        "qkv:weight": "s4/channel/mse",
        "qk:lhs": "a4/head/minmax",
        "qk:rhs": "a4/head/minmax",
        "av:lhs": "adalog_4/head/mse",
        "av:rhs": "a4/head/minmax",
        "proj:input": "region_6/tensor/output",
        "proj:weight": "s8/channel/minmax",
    }


def test_overrides_come_after_the_recipes_own_exceptions() -> None:
    by_role = (Override("a4/tensor/minmax", role="proj"), Override("float", role="attention_av"))
    overrides = (Override("a5/tensor/minmax", "proj"), Override("a3/tensor/minmax", "av:rhs"))
    plan = attention_plan(
        Assign(matmul=parse("a8/tensor/minmax"), by_role=by_role, overrides=overrides)
    )
    assert schemes(plan)["proj:input"] == "a5/tensor/minmax"
    assert schemes(plan)["av:rhs"] == "a3/tensor/minmax"
    assert plan["av:lhs"].scheme is None
    assert plan["av:lhs"].reason == "default of the recipe for attention_av"


@pytest.mark.parametrize(
    ("override", "sites"),
    [
        (Override("a4/tensor/minmax"), {"qkv:input", "proj:input"}),
        (Override("s4/tensor/minmax"), {"qkv:weight", "proj:weight"}),
        (Override("s4/tensor/minmax", "*:input"), {"qkv:input", "proj:input"}),
        (Override("a4/tensor/minmax", role="attention_av"), {"av:lhs", "av:rhs"}),
        (Override("s4/tensor/minmax", role="attention_qk"), {"qk:lhs", "qk:rhs"}),
        (Override("a4/head/minmax", "qk:*"), {"qk:lhs", "qk:rhs"}),
        (Override("a4/token/dynamic", "*:lhs"), {"qk:lhs", "av:lhs"}),
        (Override("log2_4/tensor/mse", "av:lhs"), {"av:lhs"}),
        (Override("float", "av"), set()),
    ],
)
def test_a_scheme_without_a_slot_is_unambiguous(override: Override, sites: set[str]) -> None:
    plain, plan = attention_plan(Assign()), attention_plan(Assign(overrides=(override,)))
    assert {str(s) for s in plan if plan[s].scheme != plain[s].scheme} == sites
    assert all(schemes(plan)[site] == override.scheme for site in sites)


MISFITS = [
    ("a4/channel/minmax", "qk:lhs", "range per channel"),
    ("a4/token/dynamic", "av:rhs", "range per token"),
    ("a4/head/minmax", "proj:input", "range per head"),
    ("s8/token/dynamic", "proj:input", "per token are affine"),
    ("a4/tensor/fisher", "qk:lhs", "for layers with weights"),
    ("region_4/tensor/mse", "proj:weight", "does not fit its site"),
    ("a8/tensor/minmax", "softmax:input", "matches no site"),
    ("a8/tensor/minmax", "qk:input", "matches no site"),
]


@pytest.mark.parametrize(("scheme", "sites", "message"), MISFITS)
def test_a_scheme_that_cannot_stand_at_its_site_is_refused(
    scheme: str, sites: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        attention_plan(Assign(overrides=(Override(scheme, sites),)))
    assert sites in caught.value.where
    assert caught.value.fix


def test_an_edited_plan_that_does_not_fit_is_refused() -> None:
    model, x = made(lambda: Attention(16, 2)), tensor(4, 5, 16)
    q = fxquant.quantize(model, calibration=x, pipeline=steps(), backend="reference")
    data = q.plan.to_json()
    for site, scheme, message in (
        ("proj:output", "a8/tensor/minmax", "not quantized at its output"),
        ("qk:weight", "s8/tensor/minmax", "not quantized at its weight"),
        ("softmax:input", "a8/tensor/minmax", "a softmax is not quantized"),
        ("qk:lhs", "a8/group4/minmax", "range per group"),
    ):
        entry = {site: {"scheme": scheme, "reason": "mine"}}
        plan = Plan.from_json(data | {"decisions": data["decisions"] | entry})
        with pytest.raises(PlanError, match=message) as caught:
            fxquant.quantize(model, calibration=x, plan=plan, backend="reference")
        assert caught.value.where == site


class Batched(nn.Module):
    """Attention over ``[batch * heads, tokens, channels]``: no axis of heads."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        scores = torch.bmm(self.q(x), self.k(x).transpose(1, 2))
        return torch.bmm(scores.softmax(-1), x)


def test_without_an_axis_of_heads_a_recipe_gets_one_scale_per_tensor() -> None:
    by_role = (Override("adalog_4/head/mse", "*:lhs", "attention_av"),)
    assign = Assign(matmul=parse("a4/head/minmax"), by_role=by_role)
    plan = planned(made(Batched), tensor(4, 5, 8), assign)
    products = {k: v for k, v in schemes(plan).items() if k.endswith("hs")}
    assert sorted(products.values()) == ["a4/tensor/minmax"] * 3 + ["adalog_4/tensor/mse"]
    site = next(k for k, v in products.items() if v.startswith("adalog"))
    assert plan[site].reason.endswith("no axis of heads")
    asked = Assign(overrides=(Override("a4/head/minmax", role="attention_av"),))
    with pytest.raises(RecipeError, match="range per head"):
        planned(made(Batched), tensor(4, 5, 8), asked)


def test_a_target_without_products_keeps_them_float_unless_asked() -> None:
    by_role = (Override("log2_4/tensor/mse", "*:lhs", "attention_av"),)
    given: dict[str, Any] = {"matmul": parse("a8/tensor/minmax"), "by_role": by_role}
    plan = attention_plan(Assign(**given), matmul=False)
    assert not set(OPERANDS) & set(schemes(plan))
    assert plan["av:lhs"].reason == "test has no int8 kernel for products of activations"
    assert plan.layer_is_quantized("proj")
    plan = attention_plan(Assign(**given, simulate="ask"), matmul=False)
    assert set(OPERANDS) <= set(schemes(plan))


def test_a_target_without_a_kind_keeps_the_layer_float_unless_asked() -> None:
    override = Override("region_6/tensor/mse", "proj:input")
    plan = attention_plan(Assign(overrides=(override,)), kinds=("uniform",))
    reason = "test has no kernel for region codes (region_6/tensor/mse)"
    assert plan["proj:input"] == plan["proj:weight"]
    assert plan["proj:weight"].reason == reason
    assert plan.layer_is_quantized("qkv")
    for given, target in (
        ({"simulate": "ask"}, {"kinds": ("uniform",)}),
        ({}, {"kinds": ("uniform", "region")}),
        ({}, {}),
    ):
        plan = attention_plan(Assign(overrides=(override,), **given), **target)  # type: ignore[arg-type]
        assert plan.layer_is_quantized("proj")


def test_a_machine_with_seven_bits_narrows_the_recipes_exceptions_too() -> None:
    by_role = (
        Override("a8/tensor/mse", "*:input", "proj"),
        Override("s8/channel/mse", "*:weight", "proj"),
        Override("a8/tensor/minmax", "*:lhs", "attention_av"),
    )
    plan = attention_plan(Assign(activation=Scheme(bits=4), by_role=by_role), activation_bits=7)
    assert schemes(plan)["qkv:input"] == "a4/tensor/minmax"
    assert schemes(plan)["proj:input"] == "a7/tensor/mse"
    assert schemes(plan)["proj:weight"] == "s8/channel/mse"
    assert "no VNNI" in plan["proj:input"].reason


def test_a_recipes_exceptions_do_not_reach_layers_that_the_target_refuses() -> None:
    by_role = (Override("a8/tensor/minmax", role="proj"), Override("s8/tensor/mse", role="proj"))
    plan = attention_plan(Assign(by_role=by_role), roles=("qkv",))
    assert plan["proj:input"] == plan["proj:weight"]
    assert "no int8 kernel for role proj" in plan["proj:input"].reason


AT_INPUTS = ("a4/tensor/minmax", "s6/tensor/minmax", "s16/tensor/minmax", "region_4/tensor/mse")
AT_INPUTS += ("log2_4/tensor/minmax", "log_sqrt2_3/tensor/mse", "adalog_4/tensor/minmax")
PER_HEAD = ("a6/head/minmax", "s4/head/mse", "region_6/head/mse", "adalog_4/head/minmax")
CASES = [(text, "*:input") for text in AT_INPUTS]
CASES += [(text, f"*:{slot}") for text in (*AT_INPUTS, *PER_HEAD) for slot in ("lhs", "rhs")]


@pytest.mark.parametrize(("text", "sites"), CASES)
def test_a_quantizer_in_the_graph_gives_the_values_that_calibration_meant(
    text: str, sites: str
) -> None:
    model, x = made(lambda: Attention(16, 2)), tensor(8, 5, 16)
    given = {"matmul": parse("a8/tensor/minmax"), "overrides": (Override(text, sites),)}
    state = run(model, x, steps(**given))
    slot = sites[2:]
    by_layer = {layer.name: layer.node for layer in state.layers}
    nodes = {node.name: node for node in state.graph.graph.nodes}
    exact: dict[str, Tensor] = {}

    class Keep(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            exact[n.name] = super().run_node(n)
            return exact[n.name]

    with torch.no_grad():
        Keep(state.graph).run(tensor(3, 5, 16, seed=1))
    for layer in ("qkv", "proj") if slot == "input" else ("qk", "av"):
        made_node = nodes[by_layer[layer]].args[1 if slot == "rhs" else 0]
        quantize: Any = made_node.args[0]  # type: ignore[union-attr]
        qparams = state.statistics[f"{layer}:{slot}"]
        expected = fake_quantize(exact[quantize.args[0].name], qparams)
        assert torch.equal(exact[made_node.name], expected)  # type: ignore[union-attr]
        assert qparams.scheme == parse(text)


def test_symmetric_codes_are_stored_unsigned() -> None:
    override = Override("s6/tensor/minmax", "proj:input")
    state = run(made(lambda: Attention(16, 2)), tensor(8, 5, 16), steps(overrides=(override,)))
    (node,) = [
        n for n in calls(state.graph, "decomposed.quantize_per_tensor") if n.meta["layer"] == "proj"
    ]
    assert node.args[2:] == (32, 0, 63, torch.uint8)


def test_one_operand_may_be_quantized_without_the_other() -> None:
    override = Override("log2_4/tensor/mse", "av:lhs")
    state = run(made(lambda: Attention(16, 2)), tensor(8, 5, 16), steps(overrides=(override,)))
    (product,) = [n for n in calls(state.graph, "aten.matmul") if n.meta["layer"] == "av"]
    assert "dequantize_log" in str(product.args[0].target)  # type: ignore[union-attr]
    assert "getitem" in str(product.args[1].target)  # type: ignore[union-attr]


def test_a_tensor_that_is_both_operands_is_quantized_once_for_equal_schemes() -> None:
    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x @ x).softmax(-1) @ x

    given = {"matmul": parse("a8/tensor/minmax")}
    state = run(made(Square), tensor(4, 5, 5), steps(**given))
    assert len(calls(state.graph, "decomposed.quantize_per_tensor")) == 2  # x and the shares


FULL = {
    "weight": parse("s4/channel/mse"),
    "activation": parse("a4/tensor/mse"),
    "matmul": parse("a4/head/minmax"),
    "by_role": (
        Override("adalog_4/head/minmax", "*:lhs", "attention_av"),
        Override("log_sqrt2_4/tensor/minmax", "*:rhs", "attention_av"),
        Override("region_4/tensor/mse", "*:input", "fc2"),
        Override("a4/tensor/output", "*:input", "proj"),
        Override("a8/tensor/minmax", "*:input", "patch_embed"),
        Override("s8/channel/mse", "*:weight", "patch_embed"),
    ),
}


@pytest.fixture(scope="module")
def full() -> tuple[nn.Module, Any]:
    """A model with every weighted layer and both products of attention in 4 bits."""
    model, x = made(lambda: Vit(16, 1)), images(8)
    pipeline = Pipeline((*steps(**FULL).passes, Measure()))  # type: ignore[arg-type]
    return model, fxquant.quantize(model, calibration=x, pipeline=pipeline, backend="reference")


def test_a_plan_of_every_kind_carried_out_again_gives_the_same_bits(
    full: tuple[nn.Module, Any], tmp_path: Path
) -> None:
    model, q = full
    q.plan.save(tmp_path / "plan.json")
    plan = Plan.load(tmp_path / "plan.json")
    again = fxquant.quantize(model, calibration=images(8), plan=plan, backend="reference")
    before, after = q.state_dict(), again.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    with torch.no_grad():
        assert torch.equal(q(images(3, seed=1)), again(images(3, seed=1)))


def test_an_artifact_of_every_kind_gives_the_same_bits(
    full: tuple[nn.Module, Any], tmp_path: Path
) -> None:
    q = full[1]
    q.save(tmp_path / "model.fxq")
    again = fxquant.load(tmp_path / "model.fxq")
    assert again.plan == q.plan
    with torch.no_grad():
        assert torch.equal(q(images(3, seed=1)), again(images(3, seed=1)))


def test_the_report_shows_both_operands_and_what_they_lose(full: tuple[nn.Module, Any]) -> None:
    report = full[1].report
    row = report["blocks.0.attn.av"]
    assert (row.input_scheme, row.weight_scheme) == (
        "adalog_4/head/minmax",
        "log_sqrt2_4/tensor/minmax",
    )
    assert row.kernel == "float32, int8 simulated"
    assert row.sqnr_db is not None
    assert row.float_bytes == row.bytes == 0
    fc1 = report["blocks.0.mlp.fc1"]
    assert (fc1.input_scheme, fc1.weight_scheme) == ("a4/tensor/mse", "s4/channel/mse")
    assert fc1.bytes == fc1.float_bytes // 4
    assert report["blocks.0.attn.softmax"].input_scheme == ""


def test_outlier_sites_are_looked_for_among_uniform_inputs_only() -> None:
    """A floor that nothing reaches: only the inputs with one uniform range are spared."""
    given = FULL | {"activation": parse("s6/tensor/minmax")}
    pipeline = steps(**given).after("calibrate", SpareOutliers(floor_db=100.0))
    model, x = made(lambda: Vit(16, 1)), images(8)
    q = fxquant.quantize(model, calibration=x, pipeline=pipeline, backend="reference")
    spared = {layer for layer, _ in q.report.notes}
    assert spared == {
        "patch",
        "head",
        *(f"blocks.0.{n}" for n in ("attn.qkv", "attn.proj", "mlp.fc1")),
    }
    assert q.plan["blocks.0.mlp.fc2:input"].scheme == parse("region_4/tensor/mse")
    assert q.plan["blocks.0.attn.av:lhs"].scheme == parse("adalog_4/head/minmax")
    pipeline = pipeline.replace("plan", SpareOutliers(floor_db=34.0))
    q = fxquant.quantize(model, calibration=x, pipeline=pipeline, backend="reference")
    kept = {d.scheme.text() for d in q.plan.decisions.values() if d.scheme}
    assert "a6/token/dynamic" in kept
    assert "s6/token/dynamic" not in kept
