"""Bias correction: the mean error of every layer taken off its bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxquant.errors import PipelineError
from fxquant.graph.tensors import copy_graph, prune
from fxquant.passes.data import calibration_of, gather
from fxquant.passes.importance import by_energy
from fxquant.passes.stepping import Stop, in_lockstep
from fxquant.passes.stored import bias_of, exchange_bias, has_plain_bias
from fxquant.pipeline.base import Pass
from fxquant.pipeline.state import Fact, Note, State


@dataclass(frozen=True)
class CorrectBias(Pass):
    """``b <- b + E[W x + b - (Ŵ x̂ + b)]`` for every linear and convolution, in graph order.

    The mean is over all tokens of ``images`` calibration images (papers, section 8 item 2 names
    the step), by ``importance`` all alike or by the inverse energy of a token's output [I]: else
    the error of an outlier token would go into every other token's bias. x̂ is the input in the
    quantized graph, with the errors of all layers before it, whose biases are right already. The
    head's input is one token per image, so its correction rests on as few values as there are
    images.
    """

    importance: Literal["even", "energy"] = "energy"
    images: int = 32

    name: ClassVar[str] = "correct_bias"
    needs: ClassVar[frozenset[Fact]] = frozenset(
        {
            Fact.GRAPH,
            Fact.FLOAT_GRAPH,
            Fact.LAYERS,
            Fact.PLAN,
            Fact.CALIBRATION,
            Fact.QUANTIZED,
        }
    )
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.GRAPH, Fact.PLAN})

    def __post_init__(self) -> None:
        if self.images < 1:
            raise PipelineError(
                f"cannot take means over {self.images} images", where=f"pass {self.name}"
            )

    def run(self, state: State) -> State:
        """Set ``graph`` and ``plan``; the incoming graph and its tensors are left as they were."""
        calibration = calibration_of(state, self.name, "biases are corrected on calibration data")
        made = GraphModule(state.graph, copy_graph(state.graph.graph))
        plan, notes = state.plan, []

        def visit(stop: Stop) -> None:
            nonlocal plan
            name, known = stop.layer.name, plan.choice(self.name, stop.layer.name)
            if known is not None and known.get("declined"):
                return
            if not has_plain_bias(stop.node):
                reason = "its bias is computed while the model runs"
                plan = plan.with_choice(self.name, name, {"declined": True, "reason": reason})
                notes.append(Note(self.name, name, f"bias not corrected: {reason}"))
                return
            output = stop.now()
            exact, now = _rows(stop, stop.exact()), _rows(stop, output)
            weights = by_energy(exact) if self.importance == "energy" else torch.ones(len(exact))
            drift = ((exact - now).t() @ weights).to(torch.float64) / len(exact)
            bias = bias_of(made, stop.node).to(torch.float64) + drift
            exchange_bias(made, stop.layer.name, stop.node, bias.to(torch.float32))
            behind = output.dim() - 2 if stop.layer.kind == "conv" else 0
            stop.becomes(output.add_(drift.to(output.dtype).reshape(-1, *[1] * behind)))

        leaves = gather(calibration, self.images, where=f"pass {self.name}")
        in_lockstep(state.float_graph, made, leaves, state.layers, visit)
        prune(made)
        return state.having(Fact.GRAPH, made).having(Fact.PLAN, plan).noting(notes)


def _rows(stop: Stop, y: Tensor) -> Tensor:
    """``[n, O]``: the last axis of a linear has the channels, else axis 1."""
    channels = y if stop.layer.kind == "linear" else y.movedim(1, -1)
    return channels.reshape(-1, channels.shape[-1])
