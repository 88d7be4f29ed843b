"""Additions and multiplications: joined to the work before them where a kernel can."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from fxquant.backends.x86.arguments import NormKind
from fxquant.backends.x86.program.layout import is_whole, selected_rows, strided
from fxquant.backends.x86.program.products import settled
from fxquant.backends.x86.program.scores import Scores
from fxquant.backends.x86.program.steps import Emitting
from fxquant.backends.x86.program.values import (
    Buffer,
    Image,
    Joined,
    Linear,
    Norm,
    Product,
    Sum,
    Unsupported,
    View,
    copied,
    whole,
)

aten = torch.ops.aten


def add(node: Node, out: Emitting, left: Any, right: Any, *, alpha: float = 1) -> Any:
    """Sums of values, or of a value and a constant."""
    if alpha != 1:
        raise Unsupported("a scaled addition")
    if isinstance(left, View) and isinstance(right, View):
        return _sum(node, out, left, right)
    value, given = (left, right) if not _constant(left) else (right, left)
    if isinstance(value, Scores):
        return value.biased(torch.as_tensor(given))
    if not isinstance(value, View) or value.factor != 1.0:
        raise Unsupported(f"something is added to {type(value).__name__.lower()}")
    return _add_constant(node, value, torch.as_tensor(given, dtype=torch.float32))


def subtract(node: Node, out: Emitting, left: Any, right: Any, *, alpha: float = 1) -> Any:
    """A value less a constant."""
    if _constant(right) and alpha == 1:
        return add(node, out, left, -torch.as_tensor(right, dtype=torch.float32))
    raise Unsupported("a difference")


def multiply(node: Node, out: Emitting, left: Any, right: Any) -> Any:
    """Products of values, or of a value and a constant."""
    if isinstance(left, View) and isinstance(right, View):
        return _gate(node, out, left, right)
    value, given = (left, right) if not _constant(left) else (right, left)
    factor = torch.as_tensor(given, dtype=torch.float32)
    if isinstance(value, Scores) and factor.numel() == 1:
        return value.scaled(float(factor))
    if not isinstance(value, View):
        raise Unsupported(f"{type(value).__name__.lower()} are multiplied")
    if factor.numel() == 1 and not isinstance(value.source, Image):
        return View(value.source, value.index, value.factor * float(factor), value.shared)
    return _multiply_constant(node, value, factor)


def _constant(value: Any) -> bool:
    return isinstance(value, (Tensor, int, float))


def _row(value: View, given: Tensor) -> Tensor | None:
    """``[columns]`` where a constant is the same for all rows of the value's last axis."""
    columns = value.shape[-1]
    if given.numel() == columns and given.shape[-1:] == (columns,):
        return given.reshape(-1)
    return given.reshape(1).expand(columns) if given.numel() == 1 else None


def _in_rows(value: View) -> bool:
    """Whether the value's last axis is the rows of its source."""
    source = value.source
    return value.shape[-1] == source.columns and (
        selected_rows(value.index, source.columns) is not None
    )


def _add_constant(node: Node, value: View, given: Tensor) -> View:
    source, row = value.source, _row(value, given)
    fresh = source.buffer is None and not value.shared
    if isinstance(source, Image):
        return View(_image(source, value, None, given), value.index)
    if isinstance(source, Joined) and fresh and is_whole(value.index, source.size):
        return _add_to_parts(source, value, given)
    if row is not None and _in_rows(value):
        if isinstance(source, Norm) and fresh:
            bias = row if source.bias is None else source.bias + row
            return View(_affine(source, source.weight, bias), value.index)
        if isinstance(source, Linear) and fresh and source.bare:
            made = copied(source)
            made.bias = source.bias + row
            return View(made, value.index)
    if row is not None:
        return whole(_norm_of(node, value, None, row), value.shape)
    rows, columns = math.prod(value.shape[:-1]), value.shape[-1]
    full = given.expand(value.shape).reshape(rows, columns)
    layer = str(node.meta["layer"])
    held = Buffer(rows, columns, layer, home="constant", constant=full.contiguous())
    index = torch.arange(held.size).reshape(value.shape)
    joined = _joined(value, View(held, index))
    if joined is None:
        raise Unsupported("a constant is added to something other than a product")
    return joined


def _add_to_parts(source: Joined, value: View, given: Tensor) -> View:
    """``[a; x] + c = [a + c0; x + c1]``."""
    full = given.expand(value.shape).reshape(source.rows, source.columns)
    parts: list[View | Tensor] = []
    first = 0
    for part in source.parts:
        rows = len(part) if isinstance(part, Tensor) else part.index.numel() // source.columns
        constant = full[first : first + rows]
        if isinstance(part, Tensor):
            parts.append(part + constant)
        else:
            held = Buffer(
                *(rows, source.columns, source.layer),
                home="constant",
                constant=constant.contiguous(),
            )
            index = torch.arange(held.size).reshape(part.shape)
            joined = _joined(part, View(held, index))
            if joined is None:
                raise Unsupported("a constant is added to rows that are no product")
            parts.append(joined)
        first += rows
    made = Joined(source.rows, source.columns, source.layer, tuple(parts))
    return View(made, value.index)


def _multiply_constant(node: Node, value: View, given: Tensor) -> View:
    source, row = value.source, _row(value, given)
    fresh = source.buffer is None and not value.shared
    if isinstance(source, Image):
        return View(_image(source, value, given, None), value.index)
    if row is None:
        raise Unsupported("a constant that differs between tokens is multiplied")
    if _in_rows(value) and fresh and value.factor == 1.0:
        if isinstance(source, Norm):
            weight = row if source.weight is None else source.weight * row
            bias = None if source.bias is None else source.bias * row
            return View(_affine(source, weight, bias), value.index)
        if isinstance(source, Product) and source.residual is None:
            made = copied(source)
            if isinstance(source, Linear) and source.bare:
                made.scale, made.bias = source.scale * row, source.bias * row
            else:
                before = source.column_scale
                made.column_scale = row if before is None else before * row
            return View(made, value.index)
    return whole(_norm_of(node, value, row, None), value.shape)


def _affine(norm: Norm, weight: Tensor | None, bias: Tensor | None) -> Norm:
    shape = (norm.rows, norm.columns, norm.layer)
    return Norm(*shape, norm.input, norm.kind, weight, bias, norm.epsilon)


def _norm_of(node: Node, value: View, weight: Tensor | None, bias: Tensor | None) -> Norm:
    """An affine of a value's rows."""
    rows, columns = math.prod(value.shape[:-1]), value.shape[-1]
    return Norm(rows, columns, str(node.meta["layer"]), value, NormKind.AFFINE, weight, bias)


def _image(image: Image, value: View, gain: Tensor | None, offset: Tensor | None) -> Image:
    """An image with another factor or summand per channel."""
    if value.shape != (1, *image.shape) or not is_whole(value.index, image.size):
        raise Unsupported("an input image is rearranged before it is scaled")
    channels = image.shape[0]
    given = []
    for values, neutral in ((gain, 1.0), (offset, 0.0)):
        flat = torch.full((channels,), neutral) if values is None else values
        if flat.numel() not in (1, channels) or (
            values is not None and flat.numel() > 1 and flat.shape[-3:] != (channels, 1, 1)
        ):
            raise Unsupported("an input image is changed pixel by pixel")
        given.append(flat.reshape(-1).expand(channels))
    made = (image.gain * given[0], image.offset * given[0] + given[1])
    shape = (image.rows, image.columns, image.layer, image.buffer_of, image.shape)
    return Image(*shape, *made)


def _sum(node: Node, out: Emitting, left: View, right: View) -> View:
    if left.shape != right.shape or left.factor != 1.0 or right.factor != 1.0:
        raise Unsupported("an addition that broadcasts")
    for one, other in ((right, left), (left, right)):
        if (joined := _joined(one, other)) is not None:
            return joined
    rows, columns = math.prod(left.shape[:-1]), left.shape[-1]
    return whole(Sum(rows, columns, str(node.meta["layer"]), left, right), left.shape)


def _joined(value: View, other: View) -> View | None:
    """``other`` as the residual of the product that ``value`` is, stored in the value's order."""
    source = value.source
    if not isinstance(source, Product) or source.buffer is not None or value.shared:
        return None
    if source.residual is not None or value.shape[-1] != source.columns:
        return None
    made, index = settled(copied(source), value)
    if not torch.equal(index.reshape(-1), torch.arange(source.size)):
        return None
    if other.source.buffer is not None and strided(other.index, source.columns) is None:
        return None
    made.residual = other
    return View(made, index)


def _gate(node: Node, out: Emitting, left: View, right: View) -> View:
    if left.shape != right.shape or left.factor != 1.0 or right.factor != 1.0:
        raise Unsupported("a product of values that broadcasts")
    for one, other in ((right, left), (left, right)):
        source = one.source
        if not isinstance(source, Product) or source.buffer is not None or one.shared:
            continue
        if source.multiplicand is not None or source.residual is not None:
            continue
        made, index = settled(copied(source), one)
        if torch.equal(index.reshape(-1), torch.arange(source.size)):
            made.multiplicand = other
            return View(made, index)
    raise Unsupported("a product of values that are no products with weights")


ARITHMETIC: dict[Any, Callable[..., Any]] = {
    aten.add.Tensor: add,
    aten.sub.Tensor: subtract,
    aten.mul.Tensor: multiply,
}
