"""Exact percentile within each batch, moving average across batches (HAWQ; Q-MLP, remedy 3)."""

from __future__ import annotations

from typing import Self, final

import torch
from torch import Tensor

from fxquant.errors import CalibrationError
from fxquant.quant.observers.base import channel_view, require_finite, require_seen
from fxquant.quant.observers.moving_average import MovingAverageObserver
from fxquant.quant.qparams import QParams, qparams_from_range
from fxquant.quant.scheme import Scheme


@final
class PercentileObserver:
    """``high = kthvalue(x, round(L p / 100))`` and ``low = kthvalue(x, L + 1 - that)``.

    ``percentile`` is in percent, in (50, 100]; 100 is min-max within a batch. Across batches the
    ends follow an exponential moving average with ``momentum`` 0.99, the first batch by
    assignment (papers, section 1a.3). Not mergeable, as every moving average.
    """

    mergeable = False

    def __init__(
        self, *, percentile: float, momentum: float = 0.99, per_channel: bool = False
    ) -> None:
        self.percentile = percentile
        self.per_channel = per_channel
        self._average = MovingAverageObserver(momentum=momentum, per_channel=per_channel)

    @property
    def count(self) -> int:
        """Batches seen."""
        return self._average.count

    def update(self, x: Tensor) -> None:
        """Take in a float tensor of any shape; the channel axis is the last."""
        if x.numel() == 0:
            return
        rows = channel_view(x, per_channel=self.per_channel).to(torch.float32)
        require_finite(*rows.aminmax(dim=1))
        length = rows.shape[1]
        # not below the middle: the ends would cross
        rank = min(max(round(length * self.percentile / 100.0), length // 2 + 1), length)
        # topk of the short tail: sorting tens of millions of elements for one of them is slow.
        tail = length - rank + 1
        high = rows.topk(tail, dim=1, sorted=False).values.amin(dim=1)
        low = rows.topk(tail, dim=1, largest=False, sorted=False).values.amax(dim=1)
        if not self.per_channel:
            low, high = low[0], high[0]
        self._average.blend(low, high)

    def merge(self, other: Self) -> None:
        """Refused: which of the two streams came first is not known."""
        raise CalibrationError(
            "percentile observers cannot be merged",
            why="they average over batches, and that depends on the order",
            fix="calibrate in one process, or use the histogram rule",
        )

    def qparams(self, scheme: Scheme, *, where: str = "") -> QParams:
        """The averaged percentile range."""
        require_seen(self.count, where)
        return qparams_from_range(scheme, self._average.low, self._average.high, where=where)
