"""Overrides: which sites they reach, by glob and by role, and what they cannot do."""

from __future__ import annotations

from functools import cache

import pytest

from fxquant.errors import RecipeError, SchemeError
from fxquant.graph.layers import Layer, find_layers
from fxquant.graph.site import Site
from fxquant.passes import Annotate, Assign, Override
from fxquant.pipeline.pipeline import Pipeline
from fxquant.pipeline.plan import Plan
from fxquant.quant.scheme import Scheme
from tests.pipeline.steps import graph, state

LINEARS = ("fc1", "fc2", "head")


def plan_with(*overrides: Override) -> Plan:
    return Pipeline((Annotate(), Assign(overrides=overrides))).run(state()).plan


@cache
def layers() -> dict[str, Layer]:
    return {layer.name: layer for layer in find_layers(graph())}


def changed_by(*overrides: Override) -> set[str]:
    """The sites that are decided otherwise than without overrides."""
    plain, made = plan_with(), plan_with(*overrides)
    assert set(plain) == set(made)
    return {str(site) for site in made if made[site] != plain[site]}


def test_without_overrides_all_linears_are_int8_and_all_else_is_float() -> None:
    plan = plan_with()
    assert all(plan.layer_is_quantized(name) for name in LINEARS)
    assert plan["norm:input"].scheme is None
    assert all(plan[site].reason for site in plan)


@pytest.mark.parametrize(
    ("override", "sites"),
    [
        (Override("float", "head"), {"head:input", "head:weight"}),
        (Override("float", "fc?"), {"fc1:input", "fc1:weight", "fc2:input", "fc2:weight"}),
        (Override("float", role="fc1"), {"fc1:input", "fc1:weight"}),
        (Override("float", "*", "h*"), {"head:input", "head:weight"}),
        (Override("a4/tensor/minmax", "fc1"), {"fc1:input"}),
        (Override("s4/channel/mse", "fc1"), {"fc1:weight"}),
        (Override("s4/channel/minmax"), {f"{name}:weight" for name in LINEARS}),
        (Override("a8/token/dynamic"), {f"{name}:input" for name in LINEARS}),
        (Override("a8/tensor/percentile@99.9", "fc2:input"), {"fc2:input"}),
        (Override("s8/tensor/minmax", "*:weight", "fc*"), {"fc1:weight", "fc2:weight"}),
    ],
)
def test_an_override_reaches_the_sites_that_both_globs_match(
    override: Override, sites: set[str]
) -> None:
    assert changed_by(override) >= sites
    linear = {site for site in changed_by(override) if not site.startswith("norm")}
    assert linear == sites


def test_the_decision_names_the_override() -> None:
    plan = plan_with(Override("float", "head"), Override("a4/tensor/minmax", "fc*"))
    assert plan["head:weight"].scheme is None
    assert plan["head:weight"].compute == "float32"
    assert plan["head:weight"].reason == "override head (*)"
    assert plan["fc1:input"].scheme == Scheme(bits=4)
    assert plan["fc1:input"].reason == "override fc* (*)"


def test_later_overrides_win() -> None:
    plan = plan_with(Override("a4/tensor/minmax", "*"), Override("a5/tensor/minmax", "fc1"))
    assert plan["fc1:input"].scheme == Scheme(bits=5)
    assert plan["fc2:input"].scheme == Scheme(bits=4)


@pytest.mark.parametrize(
    "override",
    [
        Override("float", "blocks.*"),
        Override("float", "fc3"),
        Override("float", role="qkv"),
        Override("float", "fc1", "fc2"),
        Override("float", "fc1:output"),
        Override("bfloat16"),  # there is no fused attention here
        Override("s8/channel/minmax", "norm"),
        Override("a8/tensor/minmax", "fc1:bias"),
    ],
)
def test_an_override_that_matches_nothing_is_refused(override: Override) -> None:
    with pytest.raises(RecipeError, match="an override matches no site") as caught:
        plan_with(Override("float", "head"), override)
    assert repr(override.sites) in caught.value.where
    assert caught.value.fix


@pytest.mark.parametrize(
    "override",
    [
        Override("s8/channel/minmax", "fc1:input"),
        Override("a8/tensor/minmax", "fc1:weight"),
        Override("s8/channel/minmax", "fc1:*"),
        Override("a8/channel/minmax", "fc1:input"),
        Override("s8/channel/percentile@99", "fc1"),
    ],
)
def test_a_scheme_that_cannot_stand_at_its_site_is_refused(override: Override) -> None:
    with pytest.raises(RecipeError) as caught:
        plan_with(override)
    assert "fc1" in caught.value.where
    assert caught.value.fix


@pytest.mark.parametrize("scheme", ["int8", "", "s9/tensor/minmax", "float16", "FLOAT"])
def test_an_override_without_a_sound_scheme_cannot_be_made(scheme: str) -> None:
    with pytest.raises(SchemeError):
        Override(scheme)


def test_a_decision_is_made_site_by_site() -> None:
    override = Override("float", "fc?", "fc2")
    assert override.decision_for(Site("fc2", "input"), layers()["fc2"]) is not None
    assert override.decision_for(Site("fc1", "input"), layers()["fc1"]) is None
    affine = Override("a8/tensor/minmax", "fc1")
    assert affine.decision_for(Site("fc1", "input"), layers()["fc1"]) is not None
    assert affine.decision_for(Site("fc1", "weight"), layers()["fc1"]) is None
