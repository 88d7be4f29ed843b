"""Attention written out: products of activations and what makes scores into shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from fxquant.backends.x86.program.layers import attended
from fxquant.backends.x86.program.scores import (
    Exponentials,
    Scores,
    Shares,
)
from fxquant.backends.x86.program.steps import Emitting
from fxquant.backends.x86.program.values import Codes, Unsupported, View
from fxquant.graph.weighted import row_exponentials, weighted_mean

aten = torch.ops.aten


def matmul(node: Node, out: Emitting, left: Any, right: Any) -> Any:
    """``q kᵀ``, or shares times values."""
    layer = str(node.meta["layer"])
    if isinstance(left, (View, Codes)) and isinstance(right, (View, Codes)):
        key = _transposed(right)
        shape = (left.view if isinstance(left, Codes) else left).shape
        if len(shape) != 4 or shape != (key.view if isinstance(key, Codes) else key).shape:
            raise Unsupported("a product of activations that is not attention")
        groups, heads, tokens, _ = shape
        rows = groups * heads * tokens
        sizes = (groups, heads, tokens)
        return Scores(rows, tokens, layer, left, key, sizes, (*sizes, tokens))
    if isinstance(left, Shares) and isinstance(right, View):
        return attended(left.scores, right, right.shape[-1], layer)
    raise Unsupported("a product of activations that is not attention")


def _transposed(value: View | Codes) -> View | Codes:
    """Keys ``[g, h, n, d]`` of the right-hand side ``[g, h, d, n]``; scales turn with it."""
    if isinstance(value, View):
        return value.moved(value.index.transpose(-1, -2))
    scale, zero_point = (
        v.transpose(-1, -2) if isinstance(v, torch.Tensor) else v
        for v in (value.scale, value.zero_point)
    )
    view = value.view
    turned = View(view.source, view.index.transpose(-1, -2), view.factor)
    return Codes(turned, scale, zero_point, name=value.name, turned=not value.turned)


def softmax(node: Node, out: Emitting, scores: Any, axis: int, dtype: Any = None) -> Shares:
    """Shares over the keys."""
    if not isinstance(scores, Scores) or axis not in (-1, len(scores.now) - 1):
        raise Unsupported("a softmax over something else than keys")
    return Shares(scores)


def exponentials(node: Node, out: Emitting, scores: Any) -> Exponentials:
    """``exp(s - max s)``."""
    if not isinstance(scores, Scores):
        raise Unsupported("exponentials of something else than scores")
    return Exponentials(scores)


def mean(node: Node, out: Emitting, weights: Any, values: Any) -> View:
    """``sum(p v) / sum(p)`` of coded exponentials."""
    if not isinstance(weights, Exponentials) or not weights.coded:
        raise Unsupported("exponentials that are not quantized")
    if not isinstance(values, Codes):
        raise Unsupported("values that are not quantized")
    return attended(weights.scores, values, values.view.shape[-1], str(node.meta["layer"]))


SOFTMAX: dict[Any, Callable[..., Any]] = {
    aten.matmul.default: matmul,
    aten.softmax.int: softmax,
    row_exponentials: exponentials,
    weighted_mean: mean,
}
