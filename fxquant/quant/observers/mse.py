"""The clipping range with the least squared quantization error, searched over a histogram."""

from __future__ import annotations

from typing import Self, final

import torch
from torch import Tensor

from fxquant.quant.observers.base import require_seen
from fxquant.quant.observers.histogram import HistogramObserver
from fxquant.quant.qparams import QParams, qparams_from_range
from fxquant.quant.scheme import Scheme

CANDIDATES = 100
SMALLEST_SHARE = 0.1


@final
class MSEObserver:
    """``argmin over a of sum_k count_k (x_k - Q_a(x_k))^2``, range ``a * [low, high]``.

    ``x_k`` are the bin centres of a :class:`HistogramObserver`, so memory is constant and merging
    is exact. ``a`` runs over 100 shares in [0.1, 1]; for affine schemes both ends shrink together.
    """

    mergeable = True

    def __init__(self) -> None:
        self.histogram = HistogramObserver()

    @property
    def count(self) -> int:
        """Batches seen."""
        return self.histogram.count

    def update(self, x: Tensor) -> None:
        """Take in a float tensor of any shape."""
        self.histogram.update(x)

    def merge(self, other: Self) -> None:
        """Add another observer's histogram."""
        self.histogram.merge(other.histogram)

    def qparams(self, scheme: Scheme, *, where: str = "") -> QParams:
        """The best of the candidate ranges; the full range wins ties."""
        require_seen(self.count, where)
        edges = self.histogram.edges()
        counts = self.histogram.counts
        kept = counts > 0
        centres = ((edges[:-1] + edges[1:]) / 2)[kept]
        weights = counts[kept].to(torch.float64)
        shares = torch.linspace(1.0, SMALLEST_SHARE, CANDIDATES, dtype=torch.float64)
        best = qparams_from_range(
            scheme, torch.tensor(self.histogram.low), torch.tensor(self.histogram.high), where=where
        )
        least = self._error(centres, weights, best)
        for share in shares[1:]:
            candidate = qparams_from_range(
                scheme, share * self.histogram.low, share * self.histogram.high, where=where
            )
            error = self._error(centres, weights, candidate)
            if error < least:
                best, least = candidate, error
        return best

    @staticmethod
    def _error(centres: Tensor, weights: Tensor, qparams: QParams) -> float:
        scheme, scale = qparams.scheme, qparams.scale.to(torch.float64)
        codes = torch.round(centres / scale) + qparams.zero_point
        codes = codes.clamp(scheme.quant_min, scheme.quant_max)
        return float((weights * (centres - scale * (codes - qparams.zero_point)).square()).sum())
