"""A histogram on a fixed grid of power-of-two bin widths: merges associatively and bit-exactly."""

from __future__ import annotations

import math
from typing import Self, final

import torch
from torch import Tensor

from fxquant.quant.observers.base import require_finite, require_seen
from fxquant.quant.qparams import QParams, qparams_from_range
from fxquant.quant.scheme import Scheme

HALF = 2048  # bins on either side of zero
_SMALLEST_EXPONENT = -126


@final
class HistogramObserver:
    """Counts in bins ``[k w, (k + 1) w)`` with ``w = 2^exponent`` and ``-HALF <= k < HALF``.

    When a value falls outside, the width doubles and neighbouring bins ``2k, 2k + 1`` join bin
    ``k``. Since ``floor(floor(x / w) / 2) = floor(x / 2w)`` the counts never depend on the order
    of the data, so merging is exact. ``qparams`` keeps ``coverage`` of the mass.
    """

    mergeable = True

    def __init__(self, *, coverage: float = 0.9999) -> None:
        self.coverage = coverage
        self.exponent = _SMALLEST_EXPONENT
        self.counts = torch.zeros(2 * HALF, dtype=torch.int64)
        self.count = 0
        self.low = math.inf
        self.high = -math.inf

    def update(self, x: Tensor) -> None:
        """Take in a float tensor of any shape."""
        if x.numel() == 0:
            return
        x = x.detach().reshape(-1).to(torch.float32)
        low, high = x.aminmax()
        require_finite(low, high)
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))
        self._coarsen(self._exponent_for(float(low), float(high)))
        index = torch.floor(x.to(torch.float64) * 2.0**-self.exponent).to(torch.int64) + HALF
        self.counts += torch.bincount(index, minlength=2 * HALF)
        self.count += 1

    def merge(self, other: Self) -> None:
        """Add another histogram's counts, at the coarser of the two widths."""
        if other.count == 0:
            return
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self._coarsen(other.exponent)
        self.counts += _coarsened(other.counts, self.exponent - other.exponent)
        self.count += other.count

    def _exponent_for(self, low: float, high: float) -> int:
        exponent = self.exponent
        while math.floor(math.ldexp(high, -exponent)) >= HALF or (
            math.floor(math.ldexp(low, -exponent)) < -HALF
        ):
            exponent += 1
        return exponent

    def _coarsen(self, exponent: int) -> None:
        if exponent > self.exponent:
            if self.count:
                self.counts = _coarsened(self.counts, exponent - self.exponent)
            self.exponent = exponent

    def edges(self) -> Tensor:
        """``[2 HALF + 1]`` float64 bin edges."""
        return torch.arange(-HALF, HALF + 1, dtype=torch.float64) * 2.0**self.exponent

    def qparams(self, scheme: Scheme, *, where: str = "") -> QParams:
        """The narrowest bins-aligned range that leaves ``(1 - coverage) / 2`` beyond either end."""
        require_seen(self.count, where)
        cumulative = self.counts.cumsum(0).to(torch.float64) / float(self.counts.sum())
        tail = (1.0 - self.coverage) / 2.0
        first = int(torch.searchsorted(cumulative, torch.tensor(tail, dtype=torch.float64)))
        last = int(torch.searchsorted(cumulative, torch.tensor(1.0 - tail, dtype=torch.float64)))
        edges = self.edges()
        low = max(float(edges[min(first, 2 * HALF - 1)]), self.low)
        high = min(float(edges[min(last, 2 * HALF - 1) + 1]), self.high)
        return qparams_from_range(scheme, torch.tensor(low), torch.tensor(high), where=where)


def _coarsened(counts: Tensor, doublings: int) -> Tensor:
    """Bin ``k`` joins bin ``floor(k / 2^doublings)``; after 12 only -1 and 0 are left."""
    joined = torch.arange(-HALF, HALF) >> min(doublings, HALF.bit_length())
    return torch.zeros_like(counts).index_add_(0, joined + HALF, counts)
