"""Integer forms of linears, convolutions, products of activations and averages.

linear(s (x - z), t W) + b -> s t (x W + round(b / (s t)) - z ΣW), a step per output channel;
matmul(s (a - z), t (b - y)) -> s t ((a - z) (b - y)), and so element by element; a mean is a sum of
codes, whose count goes into the step.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from fxquant.graph.shapes import shape_of
from fxquant.graph.tensors import constant_of
from fxquant.passes.integers.reading import Form, Reader, refused
from fxquant.passes.integers.values import Leaf, Moved, Value
from fxquant.quant import ops
from fxquant.quant.integer.products import int_linear, int_matmul, int_product, int_sum

aten = torch.ops.aten
_INT32 = 1 << 31
_WEIGHTS = frozenset({ops.dequantize_per_channel, ops.dequantize_per_tensor})


def _linear(reader: Reader, node: Node) -> Value:
    x = reader.codes_of(node.args[0])
    weight, scale = _weight(reader, node, node.args[1])
    return _product(reader, node, x, weight, scale)


def _product(reader: Reader, node: Node, x: Leaf, weight: Tensor, scale: Tensor) -> Leaf:
    """``Σ (x - offset) W`` of int8, all constants in the bias."""
    offset = 128 if x.node.meta["val"].dtype is torch.uint8 else 0
    if x.node.meta["val"].dtype not in (torch.uint8, torch.int8):
        raise refused(node, "int8 products take 8-bit codes")
    step = scale.to(torch.float64) * x.scale
    bias = constant_of(reader.graph_module, node.args[2]) if len(node.args) > 2 else None
    total = (offset - x.zero_point) * weight.to(torch.int64).sum(1)
    if bias is not None:
        total = total + torch.floor(bias.detach().to(torch.float64) / step + 0.5).to(torch.int64)
    if int(total.abs().max()) >= _INT32 // 2:
        raise refused(node, "its bias exceeds 31 bits at the step of its products")
    held = reader.emitter.buffer("codes", weight.contiguous(), like=node)
    added = reader.emitter.buffer("bias", total.to(torch.int32), like=node)
    made = reader.emitter.call(int_linear, x.node, held, added, offset, like=node)
    return Leaf(made, step)


def _weight(reader: Reader, node: Node, source: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(source, Node) or source.target not in _WEIGHTS:
        raise refused(node, "its weight is no int8 buffer with a step per tensor or channel")
    codes = constant_of(reader.graph_module, source.args[0])
    if codes is None or codes.dtype is not torch.int8:
        raise refused(node, "its weight is no int8 buffer with a step per tensor or channel")
    if source.target is ops.dequantize_per_tensor:
        return codes, torch.full((codes.shape[0],), float(source.args[1]))  # type: ignore[arg-type]
    scale = constant_of(reader.graph_module, source.args[1])
    assert scale is not None
    return codes, scale


def _convolution(reader: Reader, node: Node) -> Value:
    """A convolution whose stride is its kernel, as a linear over patches."""
    x = reader.codes_of(node.args[0])
    weight, scale = _weight(reader, node, node.args[1])
    given: dict[str, Any] = dict(
        zip(("stride", "padding", "dilation", "groups"), node.args[3:], strict=False)
    )
    kernel = list(weight.shape[2:])
    channels, height, width = shape_of(x.node)[1:]
    usual = {"padding": [0, 0], "dilation": [1, 1], "groups": 1}
    fits = list(given.get("stride", [1, 1])) == kernel and all(
        given.get(key, value) == value for key, value in usual.items()
    )
    if not fits or height % kernel[0] or width % kernel[1]:
        raise refused(node, "only convolutions whose patches tile the image become products")
    rows, columns = height // kernel[0], width // kernel[1]
    emit, like = reader.emitter.call, node
    split = [-1, channels, rows, kernel[0], columns, kernel[1]]
    made = emit(aten.reshape.default, x.node, split, like=like)
    made = emit(aten.permute.default, made, [0, 2, 4, 1, 3, 5], like=like)
    made = emit(aten.reshape.default, made, [-1, rows, columns, weight[0].numel()], like=like)
    patches = Leaf(made, x.scale, x.zero_point)
    product = _product(reader, node, patches, weight.flatten(1), scale)
    back = reader.graph_module.graph
    with back.inserting_before(reader.emitter.at):
        view = emit(aten.permute.default, product.node, [0, 3, 1, 2], like=like)
    return Moved(view, product)


def _matmul(reader: Reader, node: Node) -> Value:
    a, b = reader.codes_of(node.args[0]), reader.codes_of(node.args[1])
    zeros = (a.zero_point, b.zero_point)
    made = reader.emitter.call(int_matmul, a.node, b.node, *zeros, like=node)
    return Leaf(made, a.scale * b.scale)


def product_of_codes(reader: Reader, node: Node) -> Value:
    """Two activations multiplied element by element, as a gate is."""
    a, b = reader.codes_of(node.args[0]), reader.codes_of(node.args[1])
    zeros = (a.zero_point, b.zero_point)
    made = reader.emitter.call(int_product, a.node, b.node, *zeros, like=node)
    return Leaf(made, a.scale * b.scale)


def _mean(reader: Reader, node: Node) -> Value:
    keepdim = bool(node.args[2]) if len(node.args) > 2 else False
    return _average(reader, node, node.args[1], keepdim)


def _pool(reader: Reader, node: Node) -> Value:
    sizes: Any = node.args[1]
    if any(size != 1 for size in sizes):
        raise refused(node, "only an average of the whole image has an integer form")
    return _average(reader, node, [-2, -1], True)


def _average(reader: Reader, node: Node, dims: Any, keepdim: bool) -> Value:  # noqa: FBT001
    x = reader.codes_of(node.args[0])
    sizes = [x.node.meta["val"].shape[d] for d in dims]
    if not all(isinstance(size, int) for size in sizes):
        raise refused(node, "it averages over the batch")
    made = reader.emitter.call(int_sum, x.node, list(dims), keepdim, x.zero_point, like=node)
    return Leaf(made, x.scale / math.prod(sizes))


FORMS: dict[Any, Form] = {
    aten.linear.default: _linear,
    aten.conv2d.default: _convolution,
    aten.matmul.default: _matmul,
    aten.mean.dim: _mean,
    aten.adaptive_avg_pool2d.default: _pool,
}
