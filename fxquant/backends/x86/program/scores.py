"""Attention's own values: scores on their way through the softmax."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fxquant.backends.x86.program.values import Codes, Source, Unsupported, View


@dataclass(eq=False)
class Scores(Source):
    """``factor * q kᵀ + bias``. ``shape``: groups, heads, tokens; ``now``: the shape in which the
    graph sees it."""

    query: View | Codes
    key: View | Codes
    shape: tuple[int, int, int]
    now: tuple[int, ...]
    factor: float = 1.0
    bias: Tensor | None = None

    def numbered(self) -> Tensor:
        """Every element's number, in the present shape."""
        return torch.arange(self.size).reshape(self.now)

    def reshaped(self, index: Tensor) -> Scores:
        """The same scores seen in another shape."""
        if not torch.equal(index.reshape(-1), torch.arange(self.size)):
            raise Unsupported("scores are reordered")
        return replace(self, now=tuple(index.shape))

    def scaled(self, factor: float) -> Scores:
        """All scores times a number."""
        bias = None if self.bias is None else self.bias * factor
        return replace(self, factor=self.factor * factor, bias=bias)

    def biased(self, given: Tensor) -> Scores:
        """A constant added, broadcast to the present shape."""
        groups, heads, tokens = self.shape
        added = given.float().expand(self.now).reshape(groups, heads, tokens, tokens)
        return replace(self, bias=added if self.bias is None else self.bias + added)


@dataclass(frozen=True, eq=False)
class Shares:
    """The softmax of scores."""

    scores: Scores


@dataclass(frozen=True, eq=False)
class Exponentials:
    """``exp(s - max s)``; ``coded``: in codes 0..255 of steps of 1/255."""

    scores: Scores
    coded: bool = False

    def quantized(self, scale: float, zero_point: int) -> Exponentials:
        """The kernel's own codes."""
        if abs(scale * 255 - 1) > 1e-6 or zero_point != 0:
            raise Unsupported("exponentials have codes of another step than 1/255")
        return replace(self, coded=True)


@dataclass(eq=False)
class Attention(Source):
    """``softmax(scores) v``, all heads of a token in one row."""

    scores: Scores
    value: View | Codes
