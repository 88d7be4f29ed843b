"""Channels split into copies, so that one range per tensor need not reach to the widest channel.

Hermite's identity: the sum of ``floor(y + i / k)`` over ``i`` in ``0 .. k-1`` is ``floor(k y)``.
With offsets ``o_i = (2i - k + 1) / 2k`` in units of the step it becomes, for rounding, ``sum
round(x / k + o_i) = round(x)``: k copies of ``x / k``, each rounded at step s, add up to ``x``
rounded at that same step, though the range they need is k times smaller. The offsets add up to
0, so before rounding the copies add up to ``x`` too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """``copies[c]`` copies of channel ``c``, int64 ``[C]``, quantized with ``step``."""

    copies: Tensor
    step: float

    @property
    def further(self) -> Tensor:
        """Channel of each column beyond the first ``C``, int64 ``[C' - C]``."""
        return torch.arange(len(self.copies)).repeat_interleave(self.copies - 1)

    @property
    def index(self) -> Tensor:
        """Channel of each column, int64 ``[C']``: all channels in order, then further copies."""
        return torch.cat((torch.arange(len(self.copies)), self.further))

    @property
    def share(self) -> Tensor:
        """``1 / k`` of each column, float32 ``[C']``."""
        return 1.0 / self.copies[self.index].to(torch.float32)

    @property
    def shift(self) -> Tensor:
        """``k o_i`` of each column, float32 ``[C']``: what to add before multiplying by a share."""
        beyond = [torch.arange(1, int(k)) for k in self.copies]
        place = torch.cat((torch.zeros_like(self.copies), *beyond))
        halves = 2 * place - self.copies[self.index] + 1
        return (halves.to(torch.float64) * (self.step / 2)).to(torch.float32)

    def spread(self, x: Tensor) -> Tensor:
        """``[..., C]`` to ``[..., C']``: what the quantizer sees."""
        wide = torch.cat((x, x.index_select(-1, self.further)), -1)
        return (wide + self.shift) * self.share


def range_of(copies: Tensor, low: Tensor, high: Tensor, levels: int) -> tuple[float, float]:
    """The range of channels ``[low, high]`` split into ``copies``, extended to hold 0.

    The offsets are shares of a step, which is ``1 / levels`` of the range, which holds the
    offsets: found by iterating, since each round changes it by a ``levels``-th part of the last.
    """
    low, high = (end.to(torch.float64) / copies for end in (low, high))
    reach = (copies - 1).to(torch.float64) / (2 * copies)
    step = bottom = top = 0.0
    for _ in range(8):
        top = float((high + reach * step).max().clamp(min=0.0))
        bottom = float((low - reach * step).min().clamp(max=0.0))
        step = (top - bottom) / levels
    return bottom, top


def widest(copies: Tensor, low: Tensor, high: Tensor) -> int:
    """The channel whose copies reach furthest from 0: splitting it once more narrows the range."""
    return int((torch.maximum(-low, high) / copies).argmax())
