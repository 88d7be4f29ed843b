"""``q(f(dq(x)))`` into integer operators, quantizer by quantizer.

linear(s (x - z), t W) + b -> s t (x W + round(b / (s t)) - z ΣW), a step per output channel;
matmul(s (a - z), t (b - y)) -> s t ((a - z) (b - y)), and so element by element; sums meet at the
step of their quantizer; constant factors, one or one per element, change steps and nothing else;
clips become ends of the codes behind them.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxquant.errors import PipelineError
from fxquant.graph.flow import depends_on_input, is_movement
from fxquant.graph.normal_form import op_name, where
from fxquant.graph.shapes import shape_of
from fxquant.graph.tensors import constant_of, copy_graph, prune
from fxquant.passes.integers.emit import Emitter
from fxquant.passes.integers.values import (
    Cat,
    Clipped,
    Constant,
    Leaf,
    Moved,
    Sum,
    Value,
    plain,
    scaled,
)
from fxquant.quant import ops
from fxquant.quant.integer.codes import Codes
from fxquant.quant.integer.products import (
    int_linear,
    int_matmul,
    int_product,
    int_sum,
)

aten = torch.ops.aten
_INT32 = 1 << 31
_WEIGHTS = frozenset({ops.dequantize_per_channel, ops.dequantize_per_tensor})


def to_integer(graph_module: GraphModule) -> GraphModule:
    """A copy in which every quantizer but those of the inputs gets its codes from integers.

    Raises :class:`PipelineError` naming the first layer that has no integer form.
    """
    made = GraphModule(graph_module, copy_graph(graph_module.graph))
    _Converter(made).run()
    prune(made)
    return made


class _Converter:
    def __init__(self, graph_module: GraphModule) -> None:
        self.graph_module = graph_module
        self.emitter = Emitter(graph_module)
        self.variable = depends_on_input(graph_module.graph)
        self.values: dict[Node, Value] = {}

    def run(self) -> None:
        for node in list(self.graph_module.graph.nodes):
            if node.target is ops.quantize_per_tensor and not self._is_door(node):
                self.emitter.at = node
                codes = self.emitter.codes(self.value(node.args[0]), Codes.of(node.args[1:]))
                node.replace_all_uses_with(codes)
            elif node.target in ops.QUANTIZE and node.target is not ops.quantize_per_tensor:
                raise _none(node, "only quantizers with one step per tensor become integers")
            elif node.op == "output":
                for made in node.all_input_nodes:
                    if made.target is not ops.dequantize_per_tensor and made in self.variable:
                        raise _none(made, "the model's output has no quantizer")

    def _is_door(self, node: Node) -> bool:
        """Whether a quantizer reads the model's input, through float arithmetic or none."""
        stack, seen = [node.args[0]], set()
        while stack:
            current: Any = stack.pop()
            if current.target in ops.DEQUANTIZE or current.target in ops.INTEGER:
                return False
            for parent in current.all_input_nodes:
                if parent not in seen:
                    seen.add(parent)
                    stack.append(parent)
        return True

    def value(self, node: Any) -> Value:
        """What a float node is; emits the products it is made of."""
        if node not in self.values:
            self.values[node] = self._value(node)
        return self.values[node]

    def _value(self, node: Node) -> Value:
        constant = constant_of(self.graph_module, node)
        if constant is not None:
            return Constant(constant.detach())
        target = node.target
        if target is ops.dequantize_per_tensor:
            codes = node.args[0]
            assert isinstance(codes, Node)
            given = Codes.of(node.args[1:])
            return Leaf(codes, given.scale, given.zero_point)
        if is_movement(node) or target is operator.getitem:
            return self._movement(node)
        if target in _HANDLERS:
            made: Value = _HANDLERS[target](self, node)
            return made
        raise _none(node, f"{op_name(node)} has no integer form")

    def _movement(self, node: Node) -> Value:
        inner = self.value(node.args[0])
        leaf = plain(inner)
        if leaf is None:
            return Moved(node, inner)
        return Leaf(self.emitter.move(node, leaf.node), leaf.scale, leaf.zero_point)

    def codes_of(self, node: Any) -> Leaf:
        """A node as codes of one step; refused where it has none yet."""
        leaf = plain(self.value(node))
        if leaf is None:
            raise _none(node, "it is read by a product without a quantizer between")
        return leaf

    def linear(self, node: Node) -> Value:
        x = self.codes_of(node.args[0])
        weight, scale = self._weight(node, node.args[1])
        return self._product(node, x, weight, scale)

    def _product(self, node: Node, x: Leaf, weight: Tensor, scale: Tensor) -> Leaf:
        """``Σ (x - offset) W`` of int8, all constants in the bias."""
        offset = 128 if x.node.meta["val"].dtype is torch.uint8 else 0
        if x.node.meta["val"].dtype not in (torch.uint8, torch.int8):
            raise _none(node, "int8 products take 8-bit codes")
        step = scale.to(torch.float64) * x.scale
        bias = constant_of(self.graph_module, node.args[2]) if len(node.args) > 2 else None
        total = (offset - x.zero_point) * weight.to(torch.int64).sum(1)
        if bias is not None:
            total = total + torch.floor(bias.detach().to(torch.float64) / step + 0.5).to(
                torch.int64
            )
        if int(total.abs().max()) >= _INT32 // 2:
            raise _none(node, "its bias exceeds 31 bits at the step of its products")
        held = self.emitter.buffer("codes", weight.contiguous(), like=node)
        added = self.emitter.buffer("bias", total.to(torch.int32), like=node)
        made = self.emitter.call(int_linear, x.node, held, added, offset, like=node)
        return Leaf(made, step)

    def _weight(self, node: Node, source: Any) -> tuple[Tensor, Tensor]:
        if not isinstance(source, Node) or source.target not in _WEIGHTS:
            raise _none(node, "its weight is no int8 buffer with a step per tensor or channel")
        codes = constant_of(self.graph_module, source.args[0])
        if codes is None or codes.dtype is not torch.int8:
            raise _none(node, "its weight is no int8 buffer with a step per tensor or channel")
        if source.target is ops.dequantize_per_tensor:
            return codes, torch.full((codes.shape[0],), float(source.args[1]))  # type: ignore[arg-type]
        scale = constant_of(self.graph_module, source.args[1])
        assert scale is not None
        return codes, scale

    def convolution(self, node: Node) -> Value:
        """A convolution whose stride is its kernel, as a linear over patches."""
        x = self.codes_of(node.args[0])
        weight, scale = self._weight(node, node.args[1])
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
            raise _none(node, "only convolutions whose patches tile the image become products")
        rows, columns = height // kernel[0], width // kernel[1]
        emit, like = self.emitter.call, node
        split = [-1, channels, rows, kernel[0], columns, kernel[1]]
        made = emit(aten.reshape.default, x.node, split, like=like)
        made = emit(aten.permute.default, made, [0, 2, 4, 1, 3, 5], like=like)
        made = emit(aten.reshape.default, made, [-1, rows, columns, weight[0].numel()], like=like)
        patches = Leaf(made, x.scale, x.zero_point)
        product = self._product(node, patches, weight.flatten(1), scale)
        back = self.graph_module.graph
        with back.inserting_before(self.emitter.at):
            view = emit(aten.permute.default, product.node, [0, 3, 1, 2], like=like)
        return Moved(view, product)

    def matmul(self, node: Node) -> Value:
        a, b = self.codes_of(node.args[0]), self.codes_of(node.args[1])
        zeros = (a.zero_point, b.zero_point)
        made = self.emitter.call(int_matmul, a.node, b.node, *zeros, like=node)
        return Leaf(made, a.scale * b.scale)

    def multiplication(self, node: Node) -> Value:
        """By a number or a constant tensor, whatever their signs; or a product of codes."""
        if node.kwargs:
            raise _none(node, "only plain products become integers")
        for varying, constant in (node.args[:2], node.args[1::-1]):
            factor = self._factor(constant)
            if factor is not None:
                return self._scaled(node, varying, factor)
        return self.product_of_codes(node)

    def division(self, node: Node) -> Value:
        divisor = self._factor(node.args[1])
        if node.kwargs or divisor is None:
            raise _none(node, "only division by a constant becomes a scale")
        return self._scaled(node, node.args[0], 1.0 / divisor)

    def _factor(self, argument: Any) -> float | Tensor | None:
        """A number, or the float64 value of a constant without leading axes of size 1."""
        if not isinstance(argument, Node):
            return float(argument)
        value = constant_of(self.graph_module, argument)
        if value is None:
            return None
        while value.dim() and value.shape[0] == 1:
            value = value[0]
        return value.detach().to(torch.float64) if value.dim() else float(value)

    def _scaled(self, node: Node, varying: Any, factor: float | Tensor) -> Value:
        made = scaled(self.value(varying), factor)
        if made is None:
            raise _none(node, "its factors per element meet values whose elements were moved")
        return made

    def product_of_codes(self, node: Node) -> Value:
        a, b = self.codes_of(node.args[0]), self.codes_of(node.args[1])
        zeros = (a.zero_point, b.zero_point)
        made = self.emitter.call(int_product, a.node, b.node, *zeros, like=node)
        return Leaf(made, a.scale * b.scale)

    def addition(self, node: Node) -> Value:
        if node.kwargs or not all(isinstance(a, Node) for a in node.args[:2]):
            raise _none(node, "only sums of two tensors become integers")
        parts = tuple(self.value(a) for a in node.args[:2])
        if any(isinstance(p, Constant) and not torch.isfinite(p.tensor).all() for p in parts):
            raise _none(node, "a mask of infinities has no codes")
        return Sum(parts)

    def clip(self, node: Node) -> Value:
        low, high = _clip_ends(node)
        return Clipped(self.value(node.args[0]), low, high)

    def concatenation(self, node: Node) -> Value:
        parts: Any = node.args[0]
        return Cat(node, tuple(self.value(a) for a in parts))

    def mean(self, node: Node) -> Value:
        keepdim = bool(node.args[2]) if len(node.args) > 2 else False
        return self._average(node, node.args[1], keepdim)

    def pool(self, node: Node) -> Value:
        sizes: Any = node.args[1]
        if any(size != 1 for size in sizes):
            raise _none(node, "only an average of the whole image has an integer form")
        return self._average(node, [-2, -1], True)

    def _average(self, node: Node, dims: Any, keepdim: bool) -> Value:  # noqa: FBT001
        x = self.codes_of(node.args[0])
        sizes = [x.node.meta["val"].shape[d] for d in dims]
        if not all(isinstance(size, int) for size in sizes):
            raise _none(node, "it averages over the batch")
        made = self.emitter.call(int_sum, x.node, list(dims), keepdim, x.zero_point, like=node)
        return Leaf(made, x.scale / math.prod(sizes))


def _clip_ends(node: Node) -> tuple[float, float]:
    """Both ends of a clip, infinite where it has none on a side."""
    if node.target is aten.relu.default:
        return 0.0, math.inf
    given: dict[str, Any] = {"min": None, "max": None}
    if node.target is aten.hardtanh.default:
        given = {"min_val": -1.0, "max_val": 1.0}
    given |= dict(zip(given, node.args[1:], strict=False)) | dict(node.kwargs)
    low, high = given.values()
    return (-math.inf if low is None else float(low)), (math.inf if high is None else float(high))


_HANDLERS: dict[Any, Any] = {
    aten.linear.default: _Converter.linear,
    aten.conv2d.default: _Converter.convolution,
    aten.matmul.default: _Converter.matmul,
    aten.mul.Tensor: _Converter.multiplication,
    aten.div.Tensor: _Converter.division,
    aten.add.Tensor: _Converter.addition,
    aten.cat.default: _Converter.concatenation,
    aten.mean.dim: _Converter.mean,
    aten.adaptive_avg_pool2d.default: _Converter.pool,
    aten.relu.default: _Converter.clip,
    aten.clamp.default: _Converter.clip,
    aten.hardtanh.default: _Converter.clip,
}


def _none(node: Node, why: str) -> PipelineError:
    return PipelineError(
        "a layer has no integer form",
        where=where(node),
        why=why,
        fix="leave the pass 'integer' out: the layer then stays as the plan has it",
    )
