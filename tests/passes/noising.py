"""Models and helpers for the tests of noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxquant import Fact, Pipeline, Plan, State
from fxquant.passes import Annotate, Apply, Assign, Calibrate
from fxquant.passes.noise import Noise
from fxquant.passes.noising.search import Sample, take_sample
from fxquant.passes.noising.sites import NoiseSite, noise_sites
from fxquant.passes.running import Runner
from fxquant.pipeline.base import Pass
from fxquant.quant.scheme import Scheme
from tests.passes.running import start


def steps(scheme: str = "a6/tensor/minmax", **options: Any) -> tuple[Pass, ...]:
    """``annotate; assign; calibrate; apply``, attention in float32."""
    assign = Assign(activation=Scheme.parse(scheme), **{"attention": "float32", **options})
    return Annotate(), assign, Calibrate(), Apply()


def quantized(
    model: nn.Module, data: Tensor, *added: Pass, scheme: str = "a6/tensor/minmax", **options: Any
) -> State:
    """The state after :func:`steps` and what is ``added``."""
    return Pipeline((*steps(scheme, **options), *added)).run(start(model, data))


def noisy(state: State, **options: Any) -> State:
    """A quantized state after ``noise``."""
    step = Noise(**options)
    result = step.run(state.view(step.name, step.needs))
    return State({**state.facts, **result.facts}, result.log)


def with_choice(state: State, place: str, **chosen: Any) -> State:
    """A state whose plan has a choice of noise at one quantizer, and declines at all others."""
    plan = state.plan
    data = {"fold": "add", "reason": "a test", **chosen}
    for site in noise_sites(state.graph, state.layers):
        mine = place in site.places
        for each in site.places:
            given = data if mine else {"declined": True, "reason": "a test"}
            plan = plan.with_choice("noise", each, given)
    return state.having(Fact.PLAN, plan)


def choices(plan: Plan) -> dict[str, dict[str, Any]]:
    """Choices of noise by place."""
    return {
        key.removeprefix("noise@"): dict(value)
        for key, value in plan.choices.items()
        if key.startswith("noise@")
    }


def site_of(state: State, place: str) -> NoiseSite:
    sites = noise_sites(state.graph, state.layers)
    return next(site for site in sites if place in site.places)


def sample_of(state: State, place: str, x: Tensor, *, centred: bool = False) -> Sample:
    """All rows of ``[images, rows, C]`` as if they reached the quantizer."""
    site, count = site_of(state, place), x.shape[0]
    return take_sample(state.graph, site, x, images=count, rows=x.numel(), centred=centred)


def codes(graph_module: GraphModule, name: str, *leaves: Tensor) -> Tensor:
    """What a quantize node makes of an input."""
    kept: list[Tensor] = []
    Runner(graph_module, outputs={name: kept.append})(leaves)
    return kept[0]


def outputs(graph_module: GraphModule, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.utils._pytree.tree_leaves(graph_module(x))[0]
