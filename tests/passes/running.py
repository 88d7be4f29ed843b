"""Running a recipe's passes by hand, for any target."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule, Node

import fxquant
from fxquant import Fact, Pipeline, Plan, State
from fxquant.graph.shapes import shape_of
from fxquant.passes import Assign
from fxquant.pipeline.target import Target
from fxquant.quant.calibration import Calibration
from fxquant.recipe import Recipe


def plain() -> Recipe:
    """W8A8 by min-max ranges alone: numbers are the model's own, nothing is rewritten first, and
    attention stays fused."""
    recipe = fxquant.recipe("w8a8")
    pipeline = recipe.pipeline
    for step in ("exact_input", "open_attention", "smooth", "correct_bias"):
        pipeline = pipeline.without(step)
    return replace(recipe, pipeline=pipeline.replace("assign", Assign()))


def target(**changes: Any) -> Target:
    facts: dict[str, Any] = {"backend": "test", "machine": "a test machine"}
    return Target(**(facts | changes))


def start(model: nn.Module, data: Tensor, **changes: Any) -> State:
    """The state that ``quantize`` begins with."""
    graph = fxquant.capture(model, data[:2])
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    names = tuple(str(node.target) for node in inputs)
    calibration = Calibration(data, names, tuple(shape_of(node)[1:] for node in inputs))
    here = target(**changes)
    return State(
        {
            Fact.GRAPH: graph,
            Fact.FLOAT_GRAPH: graph,
            Fact.CALIBRATION: calibration,
            Fact.TARGET: here,
            Fact.PLAN: Plan({}, here),
        }
    )


def run(model: nn.Module, data: Tensor, pipeline: Pipeline | None = None, **changes: Any) -> State:
    return (pipeline or plain().pipeline).run(start(model, data, **changes))


def calls(graph_module: GraphModule, name: str) -> list[Node]:
    return [
        n for n in graph_module.graph.nodes if n.op == "call_function" and name in str(n.target)
    ]
