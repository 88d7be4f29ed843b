"""Smallest and largest value ever seen."""

from __future__ import annotations

from typing import Self, final

import torch
from torch import Tensor

from fxquant.quant.observers.base import channel_view, require_finite, require_seen
from fxquant.quant.qparams import QParams, qparams_from_range
from fxquant.quant.scheme import Scheme


@final
class MinMaxObserver:
    """``low = min x``, ``high = max x`` over all batches. Merges exactly, in any order."""

    mergeable = True

    def __init__(self, *, per_channel: bool = False) -> None:
        self.per_channel = per_channel
        self.count = 0
        self.low = torch.tensor(0.0)
        self.high = torch.tensor(0.0)

    def update(self, x: Tensor) -> None:
        """Take in a float tensor of any shape; the channel axis is the last."""
        if x.numel() == 0:
            return
        if self.per_channel:
            low, high = channel_view(x, per_channel=True).aminmax(dim=1)
        else:
            low, high = x.detach().aminmax()
        require_finite(low, high)
        self._take(low, high)

    def merge(self, other: Self) -> None:
        """Take in another observer's range."""
        if other.count:
            self._take(other.low, other.high, count=other.count)

    def _take(self, low: Tensor, high: Tensor, *, count: int = 1) -> None:
        first = self.count == 0
        self.low = low.clone() if first else torch.minimum(self.low, low)
        self.high = high.clone() if first else torch.maximum(self.high, high)
        self.count += count

    def qparams(self, scheme: Scheme, *, where: str = "") -> QParams:
        """The whole observed range."""
        require_seen(self.count, where)
        return qparams_from_range(scheme, self.low, self.high, where=where)
