"""Exponential moving average of each batch's range."""

from __future__ import annotations

from typing import Self, final

import torch
from torch import Tensor

from fxquant.errors import CalibrationError
from fxquant.quant.observers.base import channel_view, require_finite, require_seen
from fxquant.quant.qparams import QParams, qparams_from_range
from fxquant.quant.scheme import Scheme


@final
class MovingAverageObserver:
    """``r <- momentum * r + (1 - momentum) * batch``; the first batch initialises ``r``.

    The answer depends on the order of the batches, so two of them cannot be merged.
    """

    mergeable = False

    def __init__(self, *, momentum: float = 0.9, per_channel: bool = False) -> None:
        self.momentum = momentum
        self.per_channel = per_channel
        self.count = 0
        self.low = torch.tensor(0.0)
        self.high = torch.tensor(0.0)

    def update(self, x: Tensor) -> None:
        """Take in a float tensor of any shape; the channel axis is the last."""
        if x.numel() == 0:
            return
        low, high = channel_view(x, per_channel=self.per_channel).aminmax(dim=1)
        require_finite(low, high)
        if not self.per_channel:
            low, high = low[0], high[0]
        self.blend(low, high)

    def blend(self, low: Tensor, high: Tensor) -> None:
        """Fold one batch's range into the average."""
        weight = 0.0 if self.count == 0 else self.momentum
        self.low = weight * self.low + (1.0 - weight) * low
        self.high = weight * self.high + (1.0 - weight) * high
        self.count += 1

    def merge(self, other: Self) -> None:
        """Refused: which of the two streams came first is not known."""
        raise CalibrationError(
            "moving averages cannot be merged",
            why="their value depends on the order of the batches",
            fix="calibrate in one process, or use the minmax or histogram rule",
        )

    def qparams(self, scheme: Scheme, *, where: str = "") -> QParams:
        """The averaged range."""
        require_seen(self.count, where)
        return qparams_from_range(scheme, self.low, self.high, where=where)
