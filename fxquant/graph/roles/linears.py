"""Linears by what stands around them: MLPs, token mixing, gating, patches, heads."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

from fxquant.graph.flow import consumers, moved_through, origin
from fxquant.graph.layer_names import CONV, LINEAR, WEIGHTED
from fxquant.graph.shapes import rank, shape_of

aten = torch.ops.aten

_WINDOW_RANK = 5  # patch merging reads 2x2 neighbours through a view of at least this many axes


def mixes_tokens(node: Node) -> bool:
    """Whether a linear's last axis is the transposed token axis.

    Two swaps cancel. A convolution's channels come first, so there one swap brings them last.
    """
    source = node.args[0]
    assert isinstance(source, Node)
    swaps = sum(_swaps_last_axes(step) for step in moved_through(source))
    if origin(source).target in CONV:
        return swaps > 0 and swaps % 2 == 0
    return swaps % 2 == 1


def _swaps_last_axes(step: Node) -> bool:
    dims = rank(step)
    arguments: Any = step.args[1:]
    if step.target is aten.transpose.int:
        return {axis % dims for axis in arguments} == {dims - 1, dims - 2}
    if step.target is aten.permute.default:
        order = [axis % dims for axis in arguments[0]]
        return order == [*range(dims - 2), dims - 1, dims - 2]
    return False


def _feeds_activation(node: Node, activations: set[Node]) -> bool:
    return any(
        user in activations
        or (user.target not in WEIGHTED and any(nxt in activations for nxt in user.users))
        for user, _ in consumers(node)
    )


def _gates(node: Node) -> bool:
    """Output multiplied by another variable tensor, as in the spatial gating unit."""
    for user, operand in consumers(node):
        if user.target is aten.mul.Tensor:
            other = [a for a in user.all_input_nodes if a is not operand]
            if other and other[0].op != "get_attr":
                return True
        if user.target is aten.add.Tensor and _gates(user):
            return True
    return False


def _gathers_neighbours(node: Node) -> bool:
    before = node.args[0]
    assert isinstance(before, Node)
    path = moved_through(before)
    source = origin(before)
    if source.target is aten.layer_norm.default:
        inner = source.args[0]
        assert isinstance(inner, Node)
        path, source = path + moved_through(inner), origin(inner)
    if source.target is aten.cat.default and len(source.args[0]) == 4:  # type: ignore[arg-type]
        return True
    return any(step.target is aten.permute.default and rank(step) > _WINDOW_RANK for step in path)


def linear_role(node: Node, activations: set[Node], gated: set[Node]) -> str:
    """Role of a linear that is no part of attention."""
    source = origin(node.args[0])  # type: ignore[arg-type]
    if source.op == "placeholder":
        return "patch_embed"
    token = mixes_tokens(node)
    if token and _gates(node):
        return "spatial_gate"
    prefix = "token_" if token else ""
    if _feeds_activation(node, activations):
        return prefix + "fc1"
    before = node.args[0]
    feeds_on = {source} | (
        {origin(a) for a in source.all_input_nodes} if source in gated else set()
    )
    if feeds_on & activations or source in gated:
        # token MLPs transpose once before fc1: fc2 reads the activation as it lies
        fc1 = origin(next(iter(source.all_input_nodes), source))
        return ("token_" if fc1.target in LINEAR and mixes_tokens(fc1) else "") + "fc2"
    if token:
        return "token_mix"
    narrows = isinstance(before, Node) and shape_of(node)[-1] < shape_of(before)[-1]
    if narrows and _gathers_neighbours(node):
        return "patch_merging"
    if any(user.op == "output" for user, _ in consumers(node)):
        return "head"
    return "linear"


def conv_role(node: Node) -> str:
    """``patch_embed`` for the convolution that reads the image."""
    source = origin(node.args[0])  # type: ignore[arg-type]
    return "patch_embed" if source.op == "placeholder" else "conv"


def linear_roles(graph: Graph, taken: dict[Node, str], activations: set[Node]) -> dict[Node, str]:
    """Roles of all linears and convolutions that ``taken`` does not name."""
    gated = {
        n
        for n in graph.nodes
        if n.target is aten.mul.Tensor
        and len(n.all_input_nodes) == 2
        and all(a.op != "get_attr" for a in n.all_input_nodes)
        and n not in activations
    }
    roles: dict[Node, str] = {}
    for node in graph.nodes:
        if node in taken:
            continue
        if node.target in LINEAR:
            roles[node] = linear_role(node, activations, gated)
        elif node.target in CONV:
            roles[node] = conv_role(node)
    return roles
