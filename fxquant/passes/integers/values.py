"""What a float node of a quantized graph is in integers, before anything is emitted.

A linear's accumulator has a step per output channel, and a sum has summands of different steps:
neither has codes until a quantizer asks for some. Until then they are kept as what they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node


@dataclass(frozen=True, eq=False)
class Leaf:
    """``scale (node - zero_point)``; ``scale``: a number, or float64 ``[C]`` over the last axis."""

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


Value = Leaf | Constant | Moved | Sum | Cat


def scaled(value: Value, factor: float) -> Value:
    """``factor`` times a value: nothing but its steps change. ``factor`` is positive."""
    if isinstance(value, Leaf):
        return replace(value, scale=value.scale * factor)
    if isinstance(value, Constant):
        return Constant(value.tensor * factor)
    if isinstance(value, Moved):
        return Moved(value.like, scaled(value.inner, factor))
    return replace(value, parts=tuple(scaled(part, factor) for part in value.parts))


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
