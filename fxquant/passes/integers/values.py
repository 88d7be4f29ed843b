"""What a float node of a quantized graph is in integers, before anything is emitted.

A linear's accumulator has a step per output channel, and a sum has summands of different steps:
neither has codes until a quantizer asks for some. Until then they are kept as what they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node


@dataclass(frozen=True, eq=False)
class Leaf:
    """``scale (node - zero_point)``; ``scale``: a number, or float64 that broadcasts with the node,
    as ``[C]`` over the last axis."""

    node: Node
    scale: float | Tensor
    zero_point: int = 0


@dataclass(frozen=True, eq=False)
class Constant:
    """A float tensor that depends on no input."""

    tensor: Tensor


@dataclass(frozen=True, eq=False)
class Moved:
    """``like.target(inner, *like.args[1:])``, which moves elements and computes nothing."""

    like: Node
    inner: Value


@dataclass(frozen=True, eq=False)
class Sum:
    """The sum of values of one shape, or that broadcast."""

    parts: tuple[Value, ...]


@dataclass(frozen=True, eq=False)
class Cat:
    """``like``: the node that concatenates."""

    like: Node
    parts: tuple[Value, ...]


@dataclass(frozen=True, eq=False)
class Clipped:
    """``clip(inner, low, high)``, ends in float."""

    inner: Value
    low: float
    high: float

    def codes(self, scale: float, zero_point: int, low: int, high: int) -> tuple[int, int]:
        """Both ends in codes, within ``low`` and ``high``. Rounding is monotone: to clip its
        result at rounded ends is to round what was clipped."""
        ends = []
        for end in (self.low, self.high):
            step = min(max(end / scale, float(low - zero_point)), float(high - zero_point))
            ends.append(math.floor(step + 0.5) + zero_point)
        return ends[0], ends[1]


Value = Leaf | Constant | Moved | Sum | Cat | Clipped


def scaled(value: Value, factor: float | Tensor) -> Value | None:
    """``factor`` times a value: nothing but its steps change.

    A tensor, float64, has a factor for each element along some axes of the value and 1 along the
    others. None where the factors could not be followed: through movement other than an exchange of
    axes, in concatenations and behind a clip.
    """
    if isinstance(value, Leaf):
        return replace(value, scale=value.scale * factor)
    if isinstance(value, Constant):
        return Constant(value.tensor.to(torch.float64) * factor)
    if isinstance(value, Moved):
        back = factor if not isinstance(factor, Tensor) else moved_back(value.like, factor)
        inner = None if back is None else scaled(value.inner, back)
        return None if inner is None else Moved(value.like, inner)
    if isinstance(value, Clipped):
        if isinstance(factor, Tensor):
            return None
        inner = scaled(value.inner, factor)
        low, high = sorted((value.low * factor, value.high * factor))
        return None if inner is None else Clipped(inner, low, high)
    if isinstance(value, Cat) and isinstance(factor, Tensor):
        return None
    made = [scaled(part, factor) for part in value.parts]
    parts = tuple(part for part in made if part is not None)
    return replace(value, parts=parts) if len(parts) == len(made) else None


def moved_back(like: Node, factor: Tensor) -> Tensor | None:
    """The tensor that ``like``, an exchange of axes, makes ``factor`` of; None for other moves."""
    rank = len(like.meta["val"].shape)
    full = factor.reshape([1] * (rank - factor.dim()) + list(factor.shape))
    if like.target is torch.ops.aten.transpose.int:
        return full.transpose(*like.args[1:3])  # type: ignore[arg-type]
    if like.target is torch.ops.aten.permute.default:
        order: Any = like.args[1]
        return full.permute([[d % rank for d in order].index(axis) for axis in range(rank)])
    return None


def plain(value: Value) -> Leaf | None:
    """The value as codes of one step, where it is that."""
    one = isinstance(value, Leaf) and not isinstance(value.scale, Tensor)
    return value if one else None  # type: ignore[return-value]


def movement_arguments(node: Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a movement node behind the tensor it moves."""
    return node.args[1:], dict(node.kwargs)


def rounded(tensor: Tensor, scale: float) -> Tensor:
    """``round(t / s)``, half up as requantization rounds; int32."""
    codes = torch.floor(tensor.to(torch.float64) / scale + 0.5)
    return codes.clamp(-(2**29), 2**29).to(torch.int32)
