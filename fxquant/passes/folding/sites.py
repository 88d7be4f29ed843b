"""Where a norm's shift and scale can move into the linears behind it, and why not elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.fx import Graph, GraphModule, Node

from fxquant.graph.channels import (
    MIXED,
    carries,
    is_padding,
    is_zero_padding,
    moved,
    numbered,
    per_channel,
    route,
)
from fxquant.graph.flow import consumers
from fxquant.graph.layer_names import CONV, LINEAR
from fxquant.graph.layers import Layer
from fxquant.graph.shapes import shape_of

aten = torch.ops.aten
NORMS = frozenset({"layer_norm", "affine"})
PADDING = (
    "zeros are padded in after the norm and would no longer be the norm's zeros after a shift; "
    "a scale alone (center none) would be legal"
)


@dataclass(frozen=True)
class Reader:
    """A linear at the end of a path: its layer and graph node, and the node of its input."""

    layer: str
    node: str
    view: str


@dataclass(frozen=True)
class FoldSite:
    """A norm (layer and graph node) and every linear that reads it, in graph order.

    ``no_shift``: why only a scale may move, empty where a shift may too. ``declined``: why nothing
    may; then ``readers`` is empty.
    """

    layer: str
    node: str
    readers: tuple[Reader, ...] = ()
    no_shift: str = ""
    declined: str = ""


def fold_sites(graph_module: GraphModule, layers: tuple[Layer, ...]) -> tuple[FoldSite, ...]:
    """Every norm in graph order, with its linears or the reason why it cannot be folded.

    Legal iff every path from the norm goes through movement, averages over tokens or padding with
    zeros, and ends as operand 0 of a linear whose input channels are the norm's channels in order
    (papers, section 8.1).
    """
    nodes = {node.name: node for node in graph_module.graph.nodes}
    by_node = {layer.node: layer for layer in layers}
    return tuple(
        _site(layer, nodes[layer.node], by_node) for layer in layers if layer.role in NORMS
    )


def _site(layer: Layer, norm: Node, by_node: Mapping[str, Layer]) -> FoldSite:
    ends = dict(consumers(norm, carries))
    reasons = [_unfit(norm), "" if ends else "nothing reads it"]
    padded = False
    for user in (node for node in norm.graph.nodes if node in ends):
        path = route(norm, ends[user])
        assert path is not None
        padded = padded or any(map(is_zero_padding, path))
        reasons.append(_refusal(norm, user, ends[user], path, by_node))
    if not any(reasons):
        reasons = [shared_elsewhere(norm.graph, set(ends))]
    if declined := "; ".join(dict.fromkeys(filter(None, reasons))):
        return FoldSite(layer.name, layer.node, declined=declined)
    readers = tuple(
        Reader(by_node[node.name].name, node.name, ends[node].name)
        for node in norm.graph.nodes
        if node in ends
    )
    return FoldSite(layer.name, layer.node, readers, PADDING if padded else "")


def _unfit(norm: Node) -> str:
    """What stands against changing the norm's own affine map."""
    if norm.target is not aten.layer_norm.default:
        return ""  # the affine role holds constants only
    shape = norm.args[1]
    if not isinstance(shape, (list, tuple)) or len(shape) != 1:
        return "it normalises over more than the channels"
    computed = [a for a in norm.args[2:4] if isinstance(a, Node) and a.op != "get_attr"]
    return "its weight is computed while the model runs" if computed else ""


def _refusal(
    norm: Node, user: Node, via: Node, path: list[Node], by_node: Mapping[str, Layer]
) -> str:
    """Why a reader does not let the fold pass; empty where it does."""
    layer = by_node.get(user.name)
    name = layer.name if layer else str(user.meta.get("layer", ""))
    if user.op == "output":
        return "it is an output of the model"
    if layer is not None and layer.role == "residual_add":
        return f"the residual stream reads it at {name} (post-norm)"
    if is_padding(user):
        return f"{name} pads it with a constant other than zero"
    if user.target in CONV:
        return f"the convolution {name} reads it"
    if user.target not in LINEAR or layer is None:
        return f"{user.target} at {name} reads it"
    if problem := linear_problem(user, via):
        return f"{name}: {problem}"
    found = moved(numbered(norm), path)
    order = per_channel(found)
    if order == tuple(range(shape_of(norm)[-1])):
        return ""
    tokens = order is None and bool(((found == found[..., :1]) & (found != MIXED)).all())
    return f"{name} mixes tokens" if tokens else f"its channels are regrouped before {name}"


def linear_problem(linear: Node, via: Node) -> str:
    """Why a linear's tensors cannot be rewritten for its operand ``via``; empty where they can."""
    if linear.args[0] is not via or via in linear.args[1:]:
        return "it takes the tensor for a weight"
    computed = [a for a in linear.args[1:3] if isinstance(a, Node) and a.op != "get_attr"]
    return "its weight or bias is computed while the model runs" if computed else ""


def shared_elsewhere(graph: Graph, linears: set[Node]) -> str:
    """Why the weights of some linears cannot change; empty where only they read them."""
    names = {str(linear.args[1].target): linear for linear in linears}  # type: ignore[union-attr]
    for node in graph.nodes:
        if node.op != "get_attr" or str(node.target) not in names:
            continue
        for user in node.users:
            if user not in linears or user.args[1] is not node:
                where = user.meta.get("layer", "")
                return (
                    f"the weight of {names[str(node.target)].meta['layer']} is read at {where} too"
                )
    return ""
