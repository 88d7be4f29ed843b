"""Integer forms of scaling, sums and clips.

Constant factors, one or one per element, change steps and nothing else; sums meet at the step of
the quantizer that reads them; clips become ends of the codes behind them. Only a product of two
activations computes something.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from fxquant.graph.tensors import constant_of
from fxquant.passes.integers.products import product_of_codes
from fxquant.passes.integers.reading import Form, Reader, refused
from fxquant.passes.integers.values import Cat, Clipped, Constant, Sum, Value, scaled

aten = torch.ops.aten


def _multiplication(reader: Reader, node: Node) -> Value:
    """By a number or a constant tensor, whatever their signs; or a product of codes."""
    if node.kwargs:
        raise refused(node, "only plain products become integers")
    for varying, constant in (node.args[:2], node.args[1::-1]):
        factor = _factor(reader, constant)
        if factor is not None:
            return _scaled(reader, node, varying, factor)
    return product_of_codes(reader, node)


def _division(reader: Reader, node: Node) -> Value:
    divisor = _factor(reader, node.args[1])
    if node.kwargs or divisor is None:
        raise refused(node, "only division by a constant becomes a scale")
    return _scaled(reader, node, node.args[0], 1.0 / divisor)


def _factor(reader: Reader, argument: Any) -> float | Tensor | None:
    """A number, or the float64 value of a constant without leading axes of size 1."""
    if not isinstance(argument, Node):
        return float(argument)
    value = constant_of(reader.graph_module, argument)
    if value is None:
        return None
    while value.dim() and value.shape[0] == 1:
        value = value[0]
    return value.detach().to(torch.float64) if value.dim() else float(value)


def _scaled(reader: Reader, node: Node, varying: Any, factor: float | Tensor) -> Value:
    made = scaled(reader.value(varying), factor)
    if made is None:
        raise refused(node, "its factors per element meet values whose elements were moved")
    return made


def _addition(reader: Reader, node: Node) -> Value:
    """A sum or a difference."""
    if node.kwargs:
        raise refused(node, "only plain sums become integers")
    parts = [_summand(reader, argument) for argument in node.args[:2]]
    if any(isinstance(p, Constant) and not torch.isfinite(p.tensor).all() for p in parts):
        raise refused(node, "a mask of infinities has no codes")
    if node.target is aten.sub.Tensor:
        taken = scaled(parts[1], -1.0)
        assert taken is not None  # a number can be followed everywhere
        parts[1] = taken
    return Sum(tuple(parts))


def _summand(reader: Reader, argument: Any) -> Value:
    if isinstance(argument, Node):
        return reader.value(argument)
    return Constant(torch.tensor(float(argument)))


def _negation(reader: Reader, node: Node) -> Value:
    return _scaled(reader, node, node.args[0], -1.0)


def _clip(reader: Reader, node: Node) -> Value:
    low, high = _clip_ends(node)
    return Clipped(reader.value(node.args[0]), low, high)


def _concatenation(reader: Reader, node: Node) -> Value:
    parts: Any = node.args[0]
    return Cat(node, tuple(reader.value(a) for a in parts))


_CLIPS: dict[Any, dict[str, float]] = {  # ends in the order of their arguments
    aten.relu.default: {"min": 0.0},
    aten.clamp.default: {"min": -math.inf, "max": math.inf},
    aten.clamp_min.default: {"min": -math.inf},
    aten.clamp_max.default: {"max": math.inf},
    aten.hardtanh.default: {"min_val": -1.0, "max_val": 1.0},
}


def _clip_ends(node: Node) -> tuple[float, float]:
    """Both ends of a clip, infinite where it has none on a side."""
    ends: dict[str, Any] = dict(_CLIPS[node.target])
    given: dict[str, Any] = dict(zip(ends, node.args[1:], strict=False)) | node.kwargs
    ends |= {name: float(end) for name, end in given.items() if end is not None}
    low = ends.get("min", ends.get("min_val", -math.inf))
    return low, ends.get("max", ends.get("max_val", math.inf))


FORMS: dict[Any, Form] = {
    aten.mul.Tensor: _multiplication,
    aten.div.Tensor: _division,
    aten.add.Tensor: _addition,
    aten.sub.Tensor: _addition,
    aten.neg.default: _negation,
    aten.cat.default: _concatenation,
    **dict.fromkeys(_CLIPS, _clip),
}
