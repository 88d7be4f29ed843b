"""Outlier channels split into copies: the same function, a finer step, a plan that says so."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant import Pipeline, State
from fxquant.errors import PipelineError, PlanError
from fxquant.graph.tensors import tensor_at
from fxquant.passes import Annotate, SplitOutliers
from fxquant.passes.running import Runner
from fxquant.pipeline.plan import Plan
from fxquant.quant.metrics import sqnr_db, token_sqnr_db
from fxquant.quant.qparams import qparams_from_range
from fxquant.quant.scheme import Scheme
from fxquant.quant.uniform import fake_quantize
from tests.asset_models.data import (
    CALIBRATION_FOLDER,
    VIT_TINY_MEAN,
    VIT_TINY_STD,
    imagenet_images,
    load_vit_tiny,
)
from tests.backends.tiny import Attention, fingerprint, made, tensor
from tests.passes.running import calls, start

WIDTH = 48
HERE = SplitOutliers(budget=0.5)


class Outlier(nn.Module):
    """An MLP of which some hidden channels reach far beyond the others, on one token in 25."""

    def __init__(self, sizes: dict[int, float]) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(16, WIDTH), nn.Linear(WIDTH, 16)
        with torch.no_grad():
            for channel, size in sizes.items():
                self.fc1.weight[channel] *= size
                self.fc1.bias[channel] = -size

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.fc2(F.gelu(self.fc1(x)))
        return out


def outlier(**sizes: float) -> nn.Module:
    return made(lambda: Outlier({int(k[1:]): v for k, v in sizes.items()}))


def data(count: int = 16, seed: int = 0) -> Tensor:
    return tensor(count, 9, 16, seed=seed)


def split(model: nn.Module, x: Tensor, step: SplitOutliers = HERE, **facts: Any) -> State:
    return Pipeline((Annotate(), step)).run(start(model, x, **facts))


ONE = {"c7": 150.0}


@cache
def found() -> tuple[nn.Module, State]:
    model = outlier(**ONE)
    return model, split(model, data())


def test_the_function_stays_exactly_but_for_the_last_bits() -> None:
    model, state = found()
    x = data(seed=1)
    with torch.inference_mode():
        torch.testing.assert_close(state.graph(x), model(x), rtol=1e-5, atol=1e-4)
    assert state.float_graph is state.graph
    assert {la.name: la.role for la in state.layers}["fc2"] == "fc2"


def test_the_choice_is_in_the_plan_with_its_reason() -> None:
    _, state = found()
    chosen = state.plan.choice("split_outliers", "fc2")
    assert chosen is not None
    assert chosen["channels"] == [7]
    assert chosen["copies"][0] > 4
    assert chosen["db_before"] < 25.0 < chosen["db_after"]
    assert "no longer one kernel with its activation" in chosen["reason"]
    assert [note.text for note in state.log] == [chosen["reason"]]
    columns = WIDTH + sum(chosen["copies"]) - 1
    assert columns % 4 == 0
    fc2 = next(la for la in state.layers if la.name == "fc2")
    assert fc2.input_shape[-1] == columns


def test_what_the_plan_says_is_what_a_min_max_quantizer_leaves() -> None:
    """Measured anew, on all images, with the quantizer's own parameters."""
    model, state = found()
    chosen = state.plan.choice("split_outliers", "fc2")
    assert chosen is not None
    unsplit = Pipeline((Annotate(),)).run(start(model, data()))
    # Before the search sees eight images, for the range it goes by all of them.
    for key, done, images in (("before", unsplit, 8), ("after", state, 16)):
        layer = next(la for la in done.layers if la.name == "fc2")
        seen: list[Tensor] = []
        Runner(done.graph, inputs={layer.node: seen.append})((data(),))
        x, extent = seen[0][:8], seen[0][:images]
        weight = tensor_at(done.graph, layer.weight).detach()
        qparams = qparams_from_range(Scheme(), extent.amin(), extent.amax())
        if key == "after":
            assert float(qparams.scale) == pytest.approx(chosen["step"], rel=1e-5)
        left = token_sqnr_db(x @ weight.t(), fake_quantize(x, qparams) @ weight.t())
        assert left == pytest.approx(chosen[f"db_{key}"], abs=0.05)


def test_a_split_site_stays_static_int8_where_it_would_have_lost_its_range() -> None:
    model = outlier(**ONE)
    pipeline = fxquant.recipe("w8a8").pipeline
    plain = fxquant.quantize(model, calibration=data(), pipeline=pipeline)
    ours = fxquant.quantize(model, calibration=data(), pipeline=pipeline.before("assign", HERE))
    given_up = plain.plan["fc2:input"].scheme
    assert given_up is None or given_up.rule == "dynamic"
    assert ours.plan["fc2:input"].scheme.text() == "a8/tensor/minmax"
    lost = fxquant.quantize(model, calibration=data(), pipeline=pipeline.without("plan"))
    x = data(seed=2)
    with torch.inference_mode():
        exact = model(x)
        assert sqnr_db(exact, ours(x)) > sqnr_db(exact, lost(x)) + 6.0


def test_a_saved_plan_splits_alike_without_searching() -> None:
    model = outlier(**ONE)
    pipeline = fxquant.recipe("w8a8").pipeline.before("assign", HERE)
    first = fxquant.quantize(model, calibration=data(), pipeline=pipeline)
    plan = Plan.from_json(first.plan.to_json())
    again = fxquant.quantize(model, calibration=data(), plan=plan)
    assert fingerprint(again) == fingerprint(first)
    twice = SplitOutliers(budget=0.5, floor_db=-100.0)  # would split nothing by itself
    state = start(model, data())
    followed = Pipeline((Annotate(), twice)).run(state.having(fxquant.Fact.PLAN, plan))
    assert calls(followed.graph, "index_select")


def test_nothing_given_is_changed() -> None:
    model = outlier(**ONE)
    mark, state = fingerprint(model), start(model, data())
    text = str(state.graph.graph)
    Pipeline((Annotate(), HERE)).run(state)
    assert str(state.graph.graph) == text
    assert fingerprint(model) == mark


def test_the_budget_goes_to_the_channels_that_need_it() -> None:
    model = outlier(c3=15.0, c9=60.0, c20=30.0)
    state = split(model, data(), SplitOutliers(budget=1.0, floor_db=36.0))
    chosen = state.plan.choice("split_outliers", "fc2")
    assert chosen is not None
    copies = dict(zip(chosen["channels"], chosen["copies"], strict=True))
    others = max(k for channel, k in copies.items() if channel not in {3, 9, 20})
    assert copies[9] > copies[20] > copies[3] >= others


DECLINED: dict[str, tuple[dict[str, float], SplitOutliers, str]] = {
    "healthy": ({}, HERE, "(floor 25)"),
    "no room": (ONE, SplitOutliers(budget=0.05), "leaves no room for copies"),
    "hopeless": ({"c7": 1e5}, HERE, "too little"),
    "hardly better": ({}, SplitOutliers(budget=0.1, floor_db=99.0, slack_db=3.0), "too little"),
}


@pytest.mark.parametrize("name", DECLINED)
def test_a_site_that_is_left_alone_has_its_reason_in_the_plan(name: str) -> None:
    sizes, step, reason = DECLINED[name]
    model = outlier(**sizes)
    state = split(model, data(), step)
    chosen = state.plan.choice("split_outliers", "fc2")
    assert chosen is not None
    assert chosen["declined"]
    assert reason in chosen["reason"]
    assert not calls(state.graph, "index_select")
    assert not state.log
    with torch.inference_mode():
        assert torch.equal(state.graph(data()), model(data()))


def test_other_roles_are_not_looked_at() -> None:
    state = split(outlier(**ONE), data(), SplitOutliers(budget=0.5, roles=("proj",)))
    assert not state.plan.choices


def test_a_proj_is_split_and_keeps_its_role() -> None:
    model = made(lambda: Attention(32, 2))
    with torch.no_grad():
        model.qkv.weight[64 + 5] *= 300.0  # type: ignore[union-attr,operator]
        model.proj.weight[:, 5] *= 1e-3  # type: ignore[union-attr,operator]
    x = tensor(16, 9, 32)
    state = split(model, x, SplitOutliers(budget=1.0))
    chosen = state.plan.choice("split_outliers", "proj")
    assert chosen is not None
    assert chosen["channels"] == [5]
    assert "kernel" not in chosen["reason"]
    assert {la.role for la in state.layers} == {"qkv", "attention", "proj"}
    with torch.inference_mode():
        torch.testing.assert_close(state.graph(x), model(x), rtol=1e-4, atol=1e-3)


class Shared(nn.Module):
    """Two MLPs with one second weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = Outlier({7: 150.0}), Outlier({})
        self.other.fc2.weight = self.one.fc2.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.other(self.one(x))
        return out


def test_a_shared_weight_is_repeated_for_the_split_layer_only() -> None:
    model, x = made(Shared), data()
    state = split(model, x)
    with torch.inference_mode():
        torch.testing.assert_close(state.graph(x), model(x), rtol=1e-4, atol=1e-3)


def test_without_data_nothing_is_split() -> None:
    state = start(outlier(**ONE), data()).having(fxquant.Fact.CALIBRATION, None)
    done = Pipeline((Annotate(), HERE)).run(state)
    assert not done.plan.choices


def test_a_generator_is_enough() -> None:
    pipeline = fxquant.recipe("w8a8").pipeline.before("assign", HERE)
    q = fxquant.quantize(outlier(**ONE), calibration=iter([data(8), data(8)]), pipeline=pipeline)
    assert not q.plan.choice("split_outliers", "fc2").get("declined")


BROKEN: list[dict[str, Any]] = [
    {"channels": [WIDTH]},
    {"copies": [0]},
    {"copies": [1, 2]},
    {"copies": "many"},
    {"step": 0.0},
    {"step": None},
    {"channels": None},
]


@pytest.mark.parametrize("change", BROKEN, ids=str)
def test_a_choice_that_cannot_be_carried_out_is_refused(change: dict[str, Any]) -> None:
    model, done = found()
    chosen = {**done.plan.choices["split_outliers@fc2"], **change}
    state = start(model, data())
    plan = state.plan.with_choice("split_outliers", "fc2", chosen)
    with pytest.raises(PlanError, match="split_outliers@fc2"):
        Pipeline((Annotate(), HERE)).run(state.having(fxquant.Fact.PLAN, plan))


@pytest.mark.parametrize(
    "options", [{"budget": 0.0}, {"budget": 1.5}, {"images": 0}, {"slack_db": -1.0}], ids=str
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(PipelineError, match="budget"):
        SplitOutliers(**options)


@pytest.mark.slow
def test_the_outlier_sites_of_vit_tiny_stay_static_int8(assets: Path) -> None:
    """One hidden channel reaches 213 where the next reaches 6."""
    model = load_vit_tiny()
    images, _ = imagenet_images(CALIBRATION_FOLDER, 24, VIT_TINY_MEAN, VIT_TINY_STD)
    pipeline = fxquant.recipe("w8a8").pipeline
    ours = pipeline.before("assign", SplitOutliers())
    q = fxquant.quantize(model, calibration=images[:16], pipeline=ours)
    split_sites = {k: c for k, c in q.plan.choices.items() if not c.get("declined")}
    site = split_sites["split_outliers@blocks.7.mlp.fc2"]
    assert 417 in site["channels"]
    assert site["db_before"] < 10.0
    assert site["db_after"] > 30.0
    assert sum(site["copies"]) - len(site["copies"]) <= 0.05 * 768
    assert set(split_sites) == {f"split_outliers@blocks.{i}.mlp.fc2" for i in (6, 7)}
    assert all(
        decision.scheme is not None and decision.scheme.rule == "minmax"
        for decision in q.plan.decisions.values()
        if decision.scheme is not None
    )
    lost = fxquant.quantize(model, calibration=images[:16], pipeline=pipeline.without("plan"))
    with torch.inference_mode():
        exact, rescued, ruined = (m(images[16:]) for m in (model, q, lost))
    assert sqnr_db(exact, rescued) > sqnr_db(exact, ruined) + 6.0
