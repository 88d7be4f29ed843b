"""How far a layer's mean output has drifted from the float model's, and its bias set right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxquant.graph.layers import Layer
from fxquant.graph.tensors import copy_graph, prune
from fxquant.passes.importance import by_energy
from fxquant.passes.stepping import Stop, in_lockstep
from fxquant.passes.stored import bias_of, exchange_bias, has_plain_bias
from fxquant.quant.calibration import Leaves

Weighting = Literal["even", "energy"]


@dataclass(frozen=True)
class Corrected:
    """``graph``: a copy with the new biases; ``declined``: why a layer kept its own, by name."""

    graph: GraphModule
    declined: dict[str, str]


def without_drift(
    float_graph: GraphModule,
    graph: GraphModule,
    leaves: Leaves,
    layers: tuple[Layer, ...],
    *,
    importance: Weighting,
) -> Corrected:
    """``b <- b + E[W x + b - (Ŵ x̂ + b)]`` for all weighted ``layers``, in graph order.

    The mean is over all tokens of ``leaves``, all alike or by the inverse energy of a token's
    output. ``graph`` and its tensors are left as they were.
    """
    made = GraphModule(graph, copy_graph(graph.graph))
    declined: dict[str, str] = {}

    def visit(stop: Stop) -> None:
        if not has_plain_bias(stop.node):
            declined[stop.layer.name] = "its bias is computed while the model runs"
            return
        output = stop.now()
        exact, now = _rows(stop, stop.exact()), _rows(stop, output)
        weights = by_energy(exact) if importance == "energy" else torch.ones(len(exact))
        drift = ((exact - now).t() @ weights).to(torch.float64) / len(exact)
        bias = bias_of(made, stop.node).to(torch.float64) + drift
        exchange_bias(made, stop.layer.name, stop.node, bias.to(torch.float32))
        behind = output.dim() - 2 if stop.layer.kind == "conv" else 0
        stop.becomes(output.add_(drift.to(output.dtype).reshape(-1, *[1] * behind)))

    in_lockstep(float_graph, made, leaves, layers, visit)
    prune(made)
    return Corrected(made, declined)


def _rows(stop: Stop, y: Tensor) -> Tensor:
    """``[n, O]``: the last axis of a linear has the channels, else axis 1."""
    channels = y if stop.layer.kind == "linear" else y.movedim(1, -1)
    return channels.reshape(-1, channels.shape[-1])
