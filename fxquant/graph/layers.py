"""The layers of a graph as plain data: role, shapes, MACs, bytes."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from torch.fx import GraphModule, Node

from fxquant.graph.layer_names import ATTENTION, CONV, LINEAR, MATMUL
from fxquant.graph.roles import find_roles
from fxquant.graph.shapes import elements, shape_of


@dataclass(frozen=True)
class Layer:
    """One operation of note. Shapes and counts are per image (batch 1).

    ``kind``: ``linear``, ``conv``, ``matmul``, ``attention`` or ``other``. ``weight``: dotted
    name of the weight tensor, empty where there is none. ``node``: name of the graph node.
    """

    name: str
    role: str
    kind: str
    node: str
    source: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    macs: int
    weight: str
    weight_elements: int


def _kind(node: Node) -> str:
    for targets, kind in ((LINEAR, "linear"), (CONV, "conv"), (MATMUL, "matmul")):
        if node.target in targets:
            return kind
    return "attention" if node.target in ATTENTION else "other"


def _macs(node: Node, kind: str) -> int:
    """Multiply-accumulates per image; 0 for elementwise operations."""
    if kind in {"linear", "conv"}:
        weight = shape_of(node.args[1])  # type: ignore[arg-type]
        return elements(node) * math.prod(weight[1:])
    if kind == "matmul":
        return elements(node) * shape_of(node.args[0])[-1]  # type: ignore[arg-type]
    if kind == "attention":
        query, key, value = (shape_of(a) for a in node.args[:3])  # type: ignore[arg-type]
        return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
    return 0


def _layer(node: Node, role: str, name: str) -> Layer:
    kind = _kind(node)
    weight = node.args[1] if kind in {"linear", "conv"} else None
    constant = isinstance(weight, Node) and weight.op == "get_attr"
    return Layer(
        name=name,
        role=role,
        kind=kind,
        node=node.name,
        source=str(node.meta["source"]),
        input_shape=shape_of(next(a for a in node.all_input_nodes if a.op != "get_attr")),
        output_shape=shape_of(node),
        macs=_macs(node, kind),
        weight=str(weight.target) if constant and isinstance(weight, Node) else "",
        weight_elements=math.prod(shape_of(weight)) if constant and isinstance(weight, Node) else 0,
    )


def find_layers(graph_module: GraphModule) -> tuple[Layer, ...]:
    """Every operation with a role, in graph order, under a name of its own."""
    calls: Counter[str] = Counter()
    layers = []
    for node, role in find_roles(graph_module).items():
        name = str(node.meta["layer"]) or role
        if role == "residual_add":
            name = f"{node.meta['layer']}.add".lstrip(".")
        calls[name] += 1
        unique = name if calls[name] == 1 else f"{name}@{calls[name]}"
        layers.append(_layer(node, role, unique))
    return tuple(layers)
