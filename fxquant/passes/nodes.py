"""The nodes of one quantizer."""

from __future__ import annotations

import operator

import torch
from torch.fx import GraphModule, Node

from fxquant.graph.tensors import call, constant_of
from fxquant.quant import ops
from fxquant.quant.scheme import Scheme


def dequantize_weight(
    graph_module: GraphModule, node: Node, parts: list[Node], scheme: Scheme
) -> Node:
    """``dq(codes, scale, zero_point)`` before ``node`` for a stored weight.

    Inductor's lowering of per-channel dequantization wants the zero points, all 0 here, spelled
    out; per-tensor parameters are literals.
    """
    ends = (scheme.quant_min, scheme.quant_max, scheme.dtype)
    with graph_module.graph.inserting_before(node):
        if scheme.granularity == "group":
            arguments = (*parts, *ends, scheme.group_size, torch.float32)
            return call(graph_module, ops.dequantize_per_channel_group, arguments, like=node)
        if scheme.granularity == "tensor":
            scale = constant_of(graph_module, parts[1])
            assert scale is not None
            per_tensor = (parts[0], float(scale), 0, *ends)
            return call(graph_module, ops.dequantize_per_tensor, per_tensor, like=node)
        per_channel = (*parts, 0, *ends)
        return call(graph_module, ops.dequantize_per_channel, per_channel, like=node)


def quantize_dequantize(
    graph_module: GraphModule,
    node: Node,
    source: Node,
    scheme: Scheme,
    scale: float,
    zero_point: int,
) -> Node:
    """``dq(q(source))`` at the insertion point; ``node`` is the reader it is made for."""
    ends = (scheme.quant_min, scheme.quant_max)
    if scheme.rule == "dynamic":
        arguments = (source, *ends, scheme.dtype)
        triple = call(graph_module, ops.quantize_per_token, arguments, like=node)
        parts = tuple(
            call(graph_module, operator.getitem, (triple, i), like=node) for i in range(3)
        )
        return call(graph_module, ops.dequantize_per_token, parts, like=node)
    parameters = (scale, zero_point, *ends, scheme.dtype)
    codes = call(graph_module, ops.quantize_per_tensor, (source, *parameters), like=node)
    return call(graph_module, ops.dequantize_per_tensor, (codes, *parameters), like=node)
