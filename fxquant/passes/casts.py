"""bf16 attention: casts around the fused kernel, moved up to the linear that feeds it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxquant.graph.flow import consumers, moved_through, origin
from fxquant.graph.tensors import call, interpose

aten = torch.ops.aten
_OPERANDS = 3  # query, key, value; a float mask is the fourth


def cast_attention(graph_module: GraphModule, attention: list[Node]) -> None:
    """``sdpa(q, k, v) -> f32(sdpa(bf16 q, bf16 k, bf16 v))`` for every given node.

    Since casting is elementwise, ``bf16(move(x)) = move(bf16(x))``: where all of a tensor's
    readers are such operands, one cast right after the tensor replaces theirs, and a kernel that
    makes it can write bf16 at once.
    """
    chosen = set(attention)
    for node in attention:
        for operand in dict.fromkeys(a for a in node.args[:_OPERANDS] if isinstance(a, Node)):
            if operand.meta["val"].dtype is torch.float32:
                _cast_operand(graph_module, node, operand, chosen)
        _cast_mask(graph_module, node)
    for node in attention:
        with graph_module.graph.inserting_after(node):
            back = call(graph_module, aten.to.dtype, (node, torch.float32), like=node)
        interpose(node, back)
        node.meta["val"] = node.meta["val"].to(torch.bfloat16)
        back.meta["val"] = back.meta["val"].to(torch.float32)


def _cast_operand(graph_module: GraphModule, node: Node, operand: Node, chosen: set[Node]) -> None:
    source = origin(operand)
    hoistable = source.op == "call_function" and isinstance(source.meta["val"], Tensor)
    if hoistable and all(_is_operand(user, via, chosen) for user, via in consumers(source)):
        with graph_module.graph.inserting_after(source):
            cast = call(graph_module, aten.to.dtype, (source, torch.bfloat16), like=source)
        interpose(source, cast)
        _retype(cast)
        return
    with graph_module.graph.inserting_before(node):
        cast = call(graph_module, aten.to.dtype, (operand, torch.bfloat16), like=node)
    node.replace_input_with(operand, cast)


def _is_operand(user: Node, via: Node, chosen: set[Node]) -> bool:
    return user in chosen and via in user.args[:_OPERANDS]


def _cast_mask(graph_module: GraphModule, node: Node) -> None:
    mask: Any = node.args[_OPERANDS] if len(node.args) > _OPERANDS else None
    if mask is None:
        mask = node.kwargs.get("attn_mask")
    if isinstance(mask, Node) and mask.meta["val"].dtype is torch.float32:
        with graph_module.graph.inserting_before(node):
            cast = call(graph_module, aten.to.dtype, (mask, torch.bfloat16), like=node)
        node.replace_input_with(mask, cast)


def _retype(cast: Node) -> None:
    """Give the movement nodes below a cast their new element type."""
    for _, via in consumers(cast):
        for step in reversed(moved_through(via)):
            value = step.meta["val"]
            if isinstance(value, (tuple, list)):
                step.meta["val"] = type(value)(v.to(torch.bfloat16) for v in value)
            elif value.dtype is torch.float32:
                step.meta["val"] = value.to(torch.bfloat16)
