"""Softmax, GELU and LayerNorm nodes that integer kernels can stand for, with their readers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.fx import GraphModule, Node

from fxquant.graph.flow import consumers, moved_through, origin
from fxquant.graph.layers import Layer
from fxquant.graph.shapes import shape_of
from fxquant.graph.tensors import constant_of
from fxquant.quant import ops
from fxquant.quant.integer.codes import Codes
from fxquant.quant.integer.families import Kind

aten = torch.ops.aten
_KINDS: dict[Any, Kind] = {
    aten.softmax.int: "softmax",
    aten.gelu.default: "gelu",
    aten.layer_norm.default: "layer_norm",
}


@dataclass(frozen=True)
class Place:
    """One non-linearity of a quantized graph.

    ``source``: what it reads. ``given``: codes that ``source`` holds already, where it is
    dequantized. ``readers``: quantize nodes that are all that reads it, each with the tensor it
    reads; empty where anything else does, or where they differ. ``made``: their codes.
    """

    layer: Layer
    kind: Kind
    node: Node
    source: Node
    given: Codes | None
    readers: tuple[tuple[Node, Node], ...]
    made: Codes | None


def find_places(
    graph_module: GraphModule, layers: tuple[Layer, ...]
) -> tuple[list[Place], dict[str, str]]:
    """Places in graph order, and for other non-linearities of these kinds the reason."""
    nodes = {node.name: node for node in graph_module.graph.nodes}
    places, declined = [], {}
    for layer in layers:
        node = nodes.get(layer.node)
        if node is None or node.target not in _KINDS:
            if layer.role in {"gelu", "gelu_tanh", "gelu_quick", "silu"}:
                declined[layer.name] = f"this spelling of {layer.role} has no integer kernel"
            continue
        problem = _problem(graph_module, node)
        if problem:
            declined[layer.name] = problem
        else:
            places.append(_place(layer, node))
    return places, declined


def _problem(graph_module: GraphModule, node: Node) -> str:
    if node.target is aten.softmax.int:
        last = cast(Any, node.args[1]) in {-1, len(shape_of(node)) - 1}
        return "" if last else "its softmax is not over the last axis"
    if node.target is aten.layer_norm.default:
        if len(cast(Any, node.args[1])) != 1:
            return "it normalises more than one axis"
        affine = [constant_of(graph_module, a) for a in node.args[2:4]]
        return "" if len(affine) == 2 and None not in affine else "it has no scale and shift"
    return ""


def _place(layer: Layer, node: Node) -> Place:
    source = node.args[0]
    assert isinstance(source, Node)
    held = origin(source)
    given = None
    if held.target is ops.dequantize_per_tensor:
        found = Codes.of(held.args[1:])
        given = found if found.zero_point == 0 else None
    readers = tuple(consumers(node))
    wanted = {user.args[1:6] for user, _ in readers}
    quantizers = all(user.target is ops.quantize_per_tensor for user, _ in readers)
    common = quantizers and len(wanted) == 1
    made = Codes.of(next(iter(wanted))) if common else None
    kind = _KINDS[node.target]
    return Place(layer, kind, node, source, given, readers if common else (), made)


def codes_behind(source: Node) -> tuple[Node, list[Node]]:
    """The codes that a dequantized, perhaps moved, tensor stands for, and the movement."""
    held = origin(source)
    codes = held.args[0]
    assert isinstance(codes, Node)
    return codes, moved_through(source)
