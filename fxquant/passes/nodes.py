"""The nodes of one quantizer."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxquant.graph.tensors import add_buffer, attribute_name, call, constant_of
from fxquant.quant import ops
from fxquant.quant.calls import activation_calls
from fxquant.quant.qparams import QParams
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
    qparams: QParams | None,
    *,
    slot: str = "input",
) -> Node:
    """``dq(q(source))`` right after ``source``; ``node`` is the reader it is made for.

    ``qparams``: what calibration found, None for a dynamic scheme. Parameters per head become
    buffers named after ``node``'s layer and ``slot``. Symmetric codes are stored with ``2^(b-1)``
    added, as kernels take unsigned activations: the values are the same.
    """
    before = _after(source)
    with graph_module.graph.inserting_before(before):
        if qparams is None:
            return _per_token(graph_module, node, source, scheme)
        held: dict[int, Node] = {}

        def argument(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if id(value) not in held:
                part = "scale" if value.is_floating_point() else "zero_point"
                name = attribute_name(str(node.meta["layer"]), f"{slot}_{part}")
                held[id(value)] = add_buffer(graph_module, name, value, like=node, before=before)
            return held[id(value)]

        made = source
        for step in activation_calls(_unsigned(qparams)):
            arguments = tuple(argument(value) for value in step.arguments)
            made = call(graph_module, step.target, (made, *arguments), like=node)
        return made


def _per_token(graph_module: GraphModule, node: Node, source: Node, scheme: Scheme) -> Node:
    arguments = (source, scheme.quant_min, scheme.quant_max, scheme.dtype)
    triple = call(graph_module, ops.quantize_per_token, arguments, like=node)
    parts = tuple(call(graph_module, operator.getitem, (triple, i), like=node) for i in range(3))
    return call(graph_module, ops.dequantize_per_token, parts, like=node)


def _unsigned(qparams: QParams) -> QParams:
    """``s (c - 0)`` with ``c >= -2^(b-1)`` as ``s ((c + 2^(b-1)) - 2^(b-1))``."""
    if not qparams.scheme.symmetric:
        return qparams
    scheme = replace(qparams.scheme, symmetric=False)
    return replace(qparams, scheme=scheme, zero_point=qparams.zero_point - qparams.scheme.quant_min)


def _after(node: Node) -> Node:
    """The place right after a node (placeholders stay together at the top)."""
    following = node.next
    while following.op == "placeholder":
        following = following.next
    return following
