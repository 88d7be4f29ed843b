"""Integer operators of a graph in training, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from fxquant.graph.flow import consumers, origin
from fxquant.graph.tensors import add_buffer, attribute_name, constant_of
from fxquant.quant import ops
from fxquant.quant.integer import train
from fxquant.quant.integer.products import int_linear

_TRAINED_BACK = {made: operator for operator, made in train.TRAINED.items()}
_ENDS = frozenset({ops.quantize_per_tensor, ops.dequantize_per_tensor})


def reads_integers(node: Node) -> bool:
    """Whether a dequantization reads what integer operators made."""
    held = node.args[0]
    return isinstance(held, Node) and origin(held).target in ops.INTEGER


def train_integers(module: GraphModule) -> None:
    """``k(q) -> train.k(q)`` at every integer operator, with float masters of int8 weights.

    Quantizers that feed integer operators and dequantizers that read them carry codes as floats
    too. Changes ``module`` in place.
    """
    masters: dict[str, Node] = {}
    wanted = [
        node
        for node in module.graph.nodes
        if node.target in train.TRAINED and (node.target not in _ENDS or _among(node))
    ]
    for node in wanted:
        if node.target is int_linear:
            weight = constant_of(module, node.args[1])
            assert weight is not None
            node.args = (*node.args, train.code_end(weight))
            for slot, position in (("master", 1), ("bias_master", 2)):
                source: Any = node.args[position]
                node.update_arg(position, _master(module, node, source, slot, masters))
        node.target = train.TRAINED[node.target]
    module.recompile()


def freeze_integers(module: GraphModule) -> None:
    """``train.k(q) -> k(q)``, with integer weights again. Changes ``module`` in place."""
    held: dict[str, Node] = {}
    for node in list(module.graph.nodes):
        if node.target not in _TRAINED_BACK:
            continue
        node.target = _TRAINED_BACK[node.target]
        if node.target is int_linear:
            x, weight, bias, offset, _ = node.args
            weight = _codes(module, node, weight, "codes", held)
            node.args = (x, weight, _codes(module, node, bias, "bias", held), offset)


def _among(node: Node) -> bool:
    """Whether a quantizer or dequantizer stands next to integer operators."""
    if node.target is ops.dequantize_per_tensor:
        return reads_integers(node)
    return any(user.target in ops.INTEGER for user, _ in consumers(node))


def _master(
    module: GraphModule, node: Node, source: Node, slot: str, masters: dict[str, Node]
) -> Node:
    value = constant_of(module, source)
    assert value is not None
    if slot == "master":
        made = value.to(torch.float32)
    else:
        made = value.to(torch.float64) / train.BIAS_UNIT
    key = f"{source.target}"
    if key not in masters:
        name = attribute_name(str(node.meta["layer"]), slot)
        masters[key] = add_buffer(module, name, made, like=node, before=node)
    return masters[key]


def _codes(module: GraphModule, node: Node, source: Any, slot: str, held: dict[str, Node]) -> Node:
    master = constant_of(module, source)
    assert master is not None
    key = str(source.target)
    if key not in held:
        with torch.no_grad():
            if slot == "codes":
                end: Any = node.args[4]
                codes = train.rounded_weight(master.detach(), end).to(torch.int8)
            else:
                codes = train.rounded_bias(master.detach()).to(torch.int32)
        name = attribute_name(str(node.meta["layer"]), slot)
        held[key] = add_buffer(module, name, codes.cpu(), like=node, before=node)
    return held[key]
