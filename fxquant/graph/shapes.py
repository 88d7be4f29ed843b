"""Sizes per image: symbolic shapes with the batch set to one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import Node


def per_image(size: Any) -> int:
    """A dimension with every symbol (the batch) replaced by 1."""
    if isinstance(size, torch.SymInt):
        expression = size.node.expr
        return int(expression.subs(dict.fromkeys(expression.free_symbols, 1)))
    return int(size)


def shape_of(node: Node) -> tuple[int, ...]:
    """Per-image shape of a node's value; empty for sizes and tuples."""
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        return tuple(per_image(size) for size in value.shape)
    return ()


def same_shape(one: Node, other: Node) -> bool:
    """Whether two tensors have one shape at every batch size: ``[1, N, C]`` is not ``[B, N, C]``,
    though both are the same per image."""
    values = one.meta.get("val"), other.meta.get("val")
    sizes = [[str(s) for s in v.shape] for v in values if isinstance(v, torch.Tensor)]
    return len(sizes) == 2 and sizes[0] == sizes[1]


def elements(node: Node) -> int:
    """Number of elements per image."""
    return math.prod(shape_of(node)) if isinstance(node.meta.get("val"), torch.Tensor) else 0


def rank(node: Node) -> int:
    """Number of dimensions of a node's value, 0 where it has none."""
    value = node.meta.get("val")
    return value.dim() if isinstance(value, torch.Tensor) else 0
