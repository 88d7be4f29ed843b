"""Straight-through view of a quantized graph for fine-tuning, and the way back."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxquant.backends.quantized import QuantizedModule, quantized_module
from fxquant.backends.reference.integer_view import (
    freeze_integers,
    reads_integers,
    train_integers,
)
from fxquant.errors import FrozenModelError, InputError
from fxquant.graph.flow import origin
from fxquant.graph.tensors import (
    add_buffer,
    attribute_name,
    call,
    constant_of,
    copy_graph,
    prune,
    read_buffer,
    tensor_at,
)
from fxquant.quant import fake, logarithm, ops, region

WEIGHT_FAKES = (fake.fake_quantize, fake.fake_quantize_rows)
# Dequantizers of activations whose arguments, but for the codes, are those of the fake quantizer.
_FAKE_OF = {
    ops.dequantize_region: region.fake_quantize_region,
    ops.dequantize_region_per_head: region.fake_quantize_region_per_head,
    ops.dequantize_log: logarithm.fake_quantize_log,
    ops.dequantize_log_per_head: logarithm.fake_quantize_log_per_head,
}
_QUANTIZE_OF = {
    region.fake_quantize_region: ops.quantize_region,
    region.fake_quantize_region_per_head: ops.quantize_region_per_head,
    logarithm.fake_quantize_log: ops.quantize_log,
    logarithm.fake_quantize_log_per_head: ops.quantize_log_per_head,
}
_DEQUANTIZE_OF = {made: dequantize for dequantize, made in _FAKE_OF.items()}
_FAKES = frozenset(
    {*WEIGHT_FAKES, *_QUANTIZE_OF, fake.fake_quantize_heads, fake.fake_quantize_per_token}
)


def trainable(quantized: QuantizedModule) -> GraphModule:
    """A copy whose quantizers pass gradients straight through, over float master weights.

    ``dq(q(x)) -> fake_quantize(x)`` and ``dq(Wq) -> fake_quantize(W)`` with ``W = dq(Wq)``; all
    floating tensors but the scales become parameters. The outputs are those of ``quantized``.
    Train it like any module, then :func:`freeze` it. Gradients are zero where a value is clipped.
    Integer operators keep their values and get the gradients of the functions they stand for;
    between them codes travel as floats, and int8 weights have masters in units of codes.
    """
    if not isinstance(quantized, QuantizedModule):
        raise InputError(
            f"trainable takes a quantized model, not {type(quantized).__name__}",
            fix="pass the result of fxquant.quantize, or lowered.reference",
        )
    graph = copy_graph(quantized.graph)
    module = GraphModule(quantized, graph, class_name="TrainableModule")
    masters: dict[object, str] = {}  # stored codes to their one master, however many layers read it
    for node in list(graph.nodes):
        if node.target not in ops.DEQUANTIZE or _is_raw(node) or reads_integers(node):
            continue
        with graph.inserting_before(node):
            stored = _is_stored(node)
            made = _weight(module, node, masters) if stored else _activation(module, node)
        node.replace_all_uses_with(made)
    train_integers(module)
    prune(module)
    _parameters(module)
    module.meta["fxquant"] = quantized.meta["fxquant"]
    return module.train()


def freeze(module: GraphModule) -> QuantizedModule:
    """Back to integer weights and q/dq pairs; an untrained view gives identical codes."""
    info = module.meta.get("fxquant") if isinstance(module, GraphModule) else None
    if info is None or isinstance(module, QuantizedModule):
        raise FrozenModelError(
            "freeze takes what fxquant.trainable returned", fix="call fxquant.trainable(q) first"
        )
    source = GraphModule(module, copy_graph(module.graph))
    held: dict[object, tuple[str, str]] = {}  # masters to the codes and zero points made of them
    for node in list(source.graph.nodes):
        if node.target not in _FAKES:
            continue
        with source.graph.inserting_before(node):
            if constant_of(source, node.args[0]) is None:
                made = _restore_activation(source, node)
            else:
                made = _restore_weight(source, node, held)
        node.replace_all_uses_with(made)
    freeze_integers(source)
    prune(source)
    extra = {key: value for key, value in info.items() if key not in {"plan", "report"}}
    return quantized_module(source, info["plan"], info["report"], **extra)


def _is_raw(node: Node) -> bool:
    """Whether a node reads raw pixels: codes that nothing in the graph quantized."""
    return isinstance(node.args[0], Node) and origin(node.args[0]).op == "placeholder"


def _is_stored(node: Node) -> bool:
    held = node.args[0]
    return isinstance(held, Node) and held.op == "get_attr"


def _activation(module: GraphModule, node: Node) -> Node:
    quantize = node.args[0]
    assert isinstance(quantize, Node)
    if node.target is ops.dequantize_per_token:
        triple: Any = quantize.args[0]
        x, low, high, _ = triple.args
        return call(module, fake.fake_quantize_per_token, (x, low, high), like=node)
    if node.target in _FAKE_OF:
        arguments = (quantize.args[0], *node.args[1:])
        return call(module, _FAKE_OF[node.target], arguments, like=node)
    if node.target is ops.dequantize_per_channel:  # axis 1, the heads of a matmul's operand
        x, scale, zero_point, _, *ends = quantize.args[:6]
        return call(module, fake.fake_quantize_heads, (x, scale, zero_point, *ends), like=node)
    return call(module, fake.fake_quantize, quantize.args[:5], like=node)


def _weight(module: GraphModule, node: Node, masters: dict[object, str]) -> Node:
    """A float buffer with the value of the stored weight, behind a fake quantizer."""
    codes: Any = node.args[0]
    target: Any = node.target
    if codes.target not in masters:
        values = [tensor_at(module, str(a.target)) if isinstance(a, Node) else a for a in node.args]
        name = attribute_name(str(node.meta["layer"]), "master")
        master = add_buffer(module, name, target(*values).detach(), like=node, before=node)
        masters[codes.target] = str(master.target)
    else:
        master = _reader(module, masters[codes.target], node)
    if target is ops.dequantize_per_tensor:
        return call(module, fake.fake_quantize, (master, *node.args[1:5]), like=node)
    first = 3 if target is ops.dequantize_per_channel_group else 4
    ends = node.args[first : first + 2]
    return call(module, fake.fake_quantize_rows, (master, node.args[1], *ends), like=node)


def _reader(module: GraphModule, name: str, like: Node) -> Node:
    return read_buffer(module, name, like=like, value=tensor_at(module, name))


def _parameters(module: GraphModule) -> None:
    """Floating buffers become parameters, except the quantizers' own scales."""
    scales = {
        str(node.args[1].target)
        for node in module.graph.nodes
        if node.target in _FAKES and len(node.args) > 1 and isinstance(node.args[1], Node)
    }
    for path, value in list(module.named_buffers()):
        if path in scales or not value.is_floating_point():
            continue
        owner_path, _, leaf = path.rpartition(".")
        owner = module.get_submodule(owner_path)
        delattr(owner, leaf)
        owner.register_parameter(leaf, nn.Parameter(value.clone()))


def _restore_activation(module: GraphModule, node: Node) -> Node:
    if node.target is fake.fake_quantize_per_token:
        x, low, high = node.args
        triple = call(module, ops.quantize_per_token, (x, low, high, _dtype(node)), like=node)
        parts = tuple(call(module, operator.getitem, (triple, i), like=node) for i in range(3))
        return call(module, ops.dequantize_per_token, parts, like=node)
    if node.target in _QUANTIZE_OF:
        quantize, dequantize = _QUANTIZE_OF[node.target], _DEQUANTIZE_OF[node.target]
        count = len(quantize._schema.arguments)  # AdaLog's fraction levels only decode
        codes = call(module, quantize, node.args[:count], like=node)
        return call(module, dequantize, (codes, *node.args[1:]), like=node)
    if node.target is fake.fake_quantize_heads:
        x, scale, zero_point, low, high = node.args
        heads = (scale, zero_point, 1, low, high, _dtype(node))
        codes = call(module, ops.quantize_per_channel, (x, *heads), like=node)
        return call(module, ops.dequantize_per_channel, (codes, *heads), like=node)
    parameters = (*node.args[1:], _dtype(node))
    codes = call(module, ops.quantize_per_tensor, (node.args[0], *parameters), like=node)
    return call(module, ops.dequantize_per_tensor, (codes, *parameters), like=node)


def _dtype(node: Node) -> torch.dtype:
    low, high = node.args[-2:]
    assert isinstance(low, int)
    assert isinstance(high, int)
    return fake.storage_dtype(low, high)


def _restore_weight(module: GraphModule, node: Node, held: dict[object, tuple[str, str]]) -> Node:
    """Codes of a trained master, stored once for all its readers, and their dequantization."""
    master_node: Any = node.args[0]
    low, high = node.args[-2:]
    dtype = _dtype(node)
    if master_node.target not in held:
        held[master_node.target] = _store(module, node, dtype)
    codes, zeros = held[master_node.target]
    if node.target is fake.fake_quantize:
        arguments = (_reader(module, codes, node), *node.args[1:], dtype)
        return call(module, ops.dequantize_per_tensor, arguments, like=node)
    scale_node: Any = node.args[1]
    parts = (_reader(module, codes, node), scale_node, _reader(module, zeros, node))
    scale = tensor_at(module, str(scale_node.target))
    if scale.dim() == 2:
        size = tensor_at(module, codes).shape[1] // scale.shape[1]
        group = (*parts, low, high, dtype, size, torch.float32)
        return call(module, ops.dequantize_per_channel_group, group, like=node)
    return call(module, ops.dequantize_per_channel, (*parts, 0, low, high, dtype), like=node)


def _store(module: GraphModule, node: Node, dtype: torch.dtype) -> tuple[str, str]:
    """Names of new buffers with the codes of a master and, where rows have scales, zero points."""
    master = constant_of(module, node.args[0])
    assert master is not None
    name = attribute_name(str(node.meta["layer"]), "weight")
    if node.target is fake.fake_quantize:
        codes = ops.quantize_per_tensor(master.detach(), *node.args[1:], dtype)
        return str(add_buffer(module, name, codes, like=node, before=node).target), ""
    scale = constant_of(module, node.args[1])
    assert scale is not None
    low, high = node.args[-2:]
    codes = _row_codes(master.detach(), scale, low, high, dtype)
    zeros = torch.zeros(scale.shape, dtype=torch.int64)
    held = add_buffer(module, name, codes, like=node, before=node)
    zero_point = add_buffer(module, name + "_zero_point", zeros, like=node, before=node)
    return str(held.target), str(zero_point.target)


def _row_codes(master: Tensor, scale: Tensor, low: Any, high: Any, dtype: torch.dtype) -> Tensor:
    ratio = master * (1.0 / fake.spread_rows(scale, master))
    return torch.round(ratio).clamp(low, high).to(dtype)
