"""Attention: fused, or written out as matmul - softmax - matmul with mask, bias, talking heads."""

from __future__ import annotations

import torch
from torch.fx import Graph, Node

from fxquant.graph.flow import is_movement
from fxquant.graph.layer_names import ATTENTION, LINEAR, MATMUL, SOFTMAX

aten = torch.ops.aten

# What may stand between the products and the softmax: scale, bias, mask, head mixing.
_SCORES = LINEAR | {
    aten.mul.Tensor,
    aten.div.Tensor,
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.masked_fill.Scalar,
    aten.clamp.default,
}
_BARRIERS = LINEAR | MATMUL | ATTENTION | SOFTMAX | {aten.conv2d.default, aten.conv1d.default}


def _backward(start: Node, passing: frozenset[object], goal: frozenset[object]) -> list[Node]:
    """Nodes of ``goal`` reached upwards through movement and ``passing`` operations."""
    found, stack, seen = [], [start], {start}
    while stack:
        node = stack.pop()
        if node.target in goal:
            found.append(node)
        elif node is start or is_movement(node) or node.target in passing:
            for parent in node.all_input_nodes:
                if parent not in seen:
                    seen.add(parent)
                    stack.append(parent)
    return found


def _forward(start: Node, passing: frozenset[object], goal: frozenset[object]) -> list[Node]:
    """Nodes of ``goal`` reached downwards through movement and ``passing`` operations."""
    found, stack, seen = [], list(start.users), set(start.users)
    while stack:
        node = stack.pop()
        if node.target in goal:
            found.append(node)
        elif is_movement(node) or node.target in passing:
            fresh = [user for user in node.users if user not in seen]
            seen.update(fresh)
            stack.extend(fresh)
    return found


def _projections(operand: Node) -> list[Node]:
    """Linears that an attention operand is computed from, through norms, rotations and scales."""
    found, stack, seen = [], [operand], {operand}
    while stack:
        node = stack.pop()
        if node.target in LINEAR:
            found.append(node)
        elif node.target not in _BARRIERS:
            fresh = [n for n in node.all_input_nodes if n not in seen]
            seen.update(fresh)
            stack.extend(fresh)
    return found


def attention_roles(graph: Graph) -> dict[Node, str]:
    """``attention`` for fused nodes; ``attention_qk``, ``softmax``, ``attention_av`` for written
    ones; ``qkv``, ``proj`` and ``talking_heads`` for the linears around them."""
    roles: dict[Node, str] = {}
    for node in graph.nodes:
        if node.target in ATTENTION:
            roles[node] = "attention"
            _label_ends(roles, [a for a in node.args[:3] if isinstance(a, Node)], node)
        elif node.target in SOFTMAX:
            roles[node] = "softmax"
            _label_written(roles, node)
    return roles


def _label_written(roles: dict[Node, str], softmax: Node) -> None:
    products = _backward(softmax, frozenset(_SCORES), frozenset(MATMUL))
    sums = _forward(softmax, frozenset(LINEAR), frozenset(MATMUL))
    if not products or not sums:
        return
    for node in _backward(softmax, frozenset(_SCORES - LINEAR), frozenset(LINEAR)):
        roles[node] = "talking_heads"
    for node in _forward(softmax, frozenset(), frozenset(LINEAR)):
        roles[node] = "talking_heads"
    for product in products:
        roles[product] = "attention_qk"
        _label_inputs(roles, list(product.all_input_nodes))
    for weighted in sums:
        roles[weighted] = "attention_av"
        _label_ends(roles, list(weighted.all_input_nodes[1:]), weighted)


def _label_inputs(roles: dict[Node, str], operands: list[Node]) -> None:
    for operand in operands:
        for linear in _projections(operand):
            roles.setdefault(linear, "qkv")


def _label_ends(roles: dict[Node, str], operands: list[Node], result: Node) -> None:
    _label_inputs(roles, operands)
    for linear in _forward(result, frozenset({aten.mul.Tensor}), frozenset(LINEAR)):
        roles.setdefault(linear, "proj")
