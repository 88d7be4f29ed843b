"""Straight-through view of a quantized graph for fine-tuning, and the way back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxquant.backends.quantized import QuantizedModule, quantized_module
from fxquant.errors import FrozenModelError, InputError
from fxquant.graph.tensors import add_buffer, attribute_name, call, copy_graph, prune, tensor_at
from fxquant.quant import ops

aten = torch.ops.aten
_CODES = "fxquant_codes"  # meta of a fake-quantize node: what freeze needs to restore the codes


def trainable(quantized: QuantizedModule) -> GraphModule:
    """A copy whose quantizers pass gradients straight through, over float master weights.

    ``dq(q(x)) -> fake_quantize(x)`` and ``dq(Wq) -> fake_quantize(W)`` with ``W = dq(Wq)``; all
    floating tensors become parameters. The outputs are those of ``quantized``; train it like any
    module, then :func:`freeze` it. Gradients are zero where a value was clipped.
    """
    if not isinstance(quantized, QuantizedModule):
        raise InputError(
            f"trainable takes a quantized model, not {type(quantized).__name__}",
            fix="pass the result of fxquant.quantize, or lowered.reference",
        )
    module = GraphModule(quantized, copy_graph(quantized.graph), class_name="TrainableModule")
    for node in list(module.graph.nodes):
        if node.target is ops.dequantize_per_tensor and _is(node.args[0], ops.quantize_per_tensor):
            _straight_through_static(module, node)
        elif node.target is ops.dequantize_per_token:
            _straight_through_dynamic(module, node)
        elif node.target in ops.DEQUANTIZE and _is_get_attr(node.args[0]):
            _master_weight(module, node)
    prune(module)
    _parameters(module)
    module.meta["fxquant"] = quantized.meta["fxquant"]
    return module.train()


def freeze(module: GraphModule) -> QuantizedModule:
    """Back to integer weights and q/dq pairs; an untrained view gives identical codes."""
    if "fxquant" not in module.meta or isinstance(module, QuantizedModule):
        raise FrozenModelError(
            "freeze takes what fxquant.trainable returned", fix="call fxquant.trainable(q) first"
        )
    info = module.meta["fxquant"]
    source = GraphModule(module, copy_graph(module.graph))
    for node in list(source.graph.nodes):
        if _CODES in node.meta:
            _restore(source, node, *node.meta[_CODES])
    prune(source)
    extra = {key: value for key, value in info.items() if key not in {"plan", "report"}}
    return quantized_module(source, info["plan"], info["report"], **extra)


def _is(node: object, target: object) -> bool:
    return isinstance(node, Node) and node.target is target


def _is_get_attr(node: object) -> bool:
    return isinstance(node, Node) and node.op == "get_attr"


def _swap(module: GraphModule, old: Node, new: Node, kind: str, arguments: Any) -> None:
    new.meta[_CODES] = (kind, arguments)
    old.replace_all_uses_with(new)
    module.graph.erase_node(old)


def _straight_through_static(module: GraphModule, node: Node) -> None:
    quantize = node.args[0]
    assert isinstance(quantize, Node)
    x, scale, zero_point, low, high, dtype = quantize.args
    with module.graph.inserting_before(node):
        fake = call(
            module,
            aten.fake_quantize_per_tensor_affine.default,
            (x, scale, zero_point, low, high),
            like=node,
        )
    _swap(module, node, fake, "static", (scale, zero_point, low, high, dtype))


def _straight_through_dynamic(module: GraphModule, node: Node) -> None:
    """``x + stop_gradient(dq(q(x)) - x)``: the identity to gradients."""
    codes = node.args[0]
    assert isinstance(codes, Node)
    triple = codes.args[0]
    assert isinstance(triple, Node)
    x = triple.args[0]
    with module.graph.inserting_after(node):
        difference = call(module, aten.sub.Tensor, (node, x), like=node)
    with module.graph.inserting_after(difference):
        constant = call(module, aten.detach.default, (difference,), like=node)
    with module.graph.inserting_after(constant):
        total = call(module, aten.add.Tensor, (x, constant), like=node)
    node.replace_all_uses_with(total, delete_user_cb=lambda user: user is not difference)
    total.meta[_CODES] = ("dynamic", node.name)


def _master_weight(module: GraphModule, node: Node) -> None:
    codes = node.args[0]
    assert isinstance(codes, Node)
    code_values = tensor_at(module, str(codes.target))
    arguments = [tensor_at(module, str(a.target)) if isinstance(a, Node) else a for a in node.args]
    target: Any = node.target
    master = target(*arguments).detach()
    name = attribute_name(str(node.meta["layer"]), "master")
    with module.graph.inserting_before(node):
        weight = add_buffer(module, name, master, like=node, before=node)
        if target is ops.dequantize_per_tensor:
            _, scale, zero_point, low, high, dtype = node.args
            fake = call(
                module,
                aten.fake_quantize_per_tensor_affine.default,
                (weight, scale, zero_point, low, high),
                like=node,
            )
            _swap(module, node, fake, "tensor_weight", (scale, zero_point, low, high, dtype))
            return
        scale_node = node.args[1]
        assert isinstance(scale_node, Node)
        scale = tensor_at(module, str(scale_node.target))
        group = target is ops.dequantize_per_channel_group
        low, high, dtype = node.args[3:6] if group else node.args[4:7]
        shaped, rows = weight, scale
        if group:
            size = node.args[6]
            shaped = call(module, aten.reshape.default, (weight, [-1, size]), like=node)
            rows = scale.reshape(-1)
        scale_buffer = add_buffer(module, name + "_scale", rows.clone(), like=node, before=node)
        zeros = add_buffer(
            module,
            name + "_zero_point",
            torch.zeros(rows.numel(), dtype=torch.int32),
            like=node,
            before=node,
        )
        fake = call(
            module,
            aten.fake_quantize_per_channel_affine.default,
            (shaped, scale_buffer, zeros, 0, low, high),
            like=node,
        )
        if group:
            fake = call(module, aten.reshape.default, (fake, list(code_values.shape)), like=node)
        original = tuple(None if isinstance(a, Node) else a for a in node.args)
    _swap(module, node, fake, "weight", (target, original, weight.target, scale.clone()))


def _parameters(module: GraphModule) -> None:
    """Floating buffers become parameters, except the quantizers' own scales."""
    fixed = ("_scale",)
    for path, owner in list(module.named_modules()):
        for name, value in list(owner._buffers.items()):
            if value is None or not value.is_floating_point() or name.endswith(fixed):
                continue
            delattr(owner, name)
            owner.register_parameter(name, nn.Parameter(value.clone()))
            del path


def _restore(module: GraphModule, node: Node, kind: str, arguments: Any) -> None:
    if kind == "dynamic":
        original = next(n for n in module.graph.nodes if n.name == arguments)
        node.replace_all_uses_with(original)
        return
    with module.graph.inserting_before(node):
        if kind == "static":
            codes = call(module, ops.quantize_per_tensor, (node.args[0], *arguments), like=node)
            back = call(module, ops.dequantize_per_tensor, (codes, *arguments), like=node)
        elif kind == "tensor_weight":
            back = _restore_tensor_weight(module, node, arguments)
        else:
            back = _restore_channel_weight(module, node, arguments)
    node.replace_all_uses_with(back)


def _restore_tensor_weight(module: GraphModule, node: Node, arguments: Any) -> Node:
    weight = node.args[0]
    assert isinstance(weight, Node)
    master = tensor_at(module, str(weight.target)).detach()
    codes = ops.quantize_per_tensor(master, *arguments)
    name = attribute_name(str(node.meta["layer"]), "weight")
    held = add_buffer(module, name, codes, like=node, before=node)
    return call(module, ops.dequantize_per_tensor, (held, *arguments), like=node)


def _restore_channel_weight(module: GraphModule, node: Node, arguments: Any) -> Node:
    target, original, master_name, scale = arguments
    master = tensor_at(module, str(master_name)).detach()
    group = target is ops.dequantize_per_channel_group
    low, high, dtype = original[3:6] if group else original[4:7]
    spread = _spread(scale, master, original[6] if group else 0)
    codes = torch.round(master * (1.0 / spread)).clamp(low, high).to(dtype)
    name = attribute_name(str(node.meta["layer"]), "weight")
    held = add_buffer(module, name, codes, like=node, before=node)
    scale_node = add_buffer(module, name + "_scale", scale.clone(), like=node, before=node)
    zeros = torch.zeros(scale.shape, dtype=torch.int64)
    zero_node = add_buffer(module, name + "_zero_point", zeros, like=node, before=node)
    return call(module, target, (held, scale_node, zero_node, *original[3:]), like=node)


def _spread(scale: Tensor, master: Tensor, group_size: int) -> Tensor:
    if group_size:
        return scale.repeat_interleave(group_size, dim=1)
    return scale.reshape(-1, *[1] * (master.dim() - 1))
