"""A sample of a tensor's rows, for searches that no constant-size summary can serve."""

from __future__ import annotations

import torch
from torch import Tensor

from fxquant.errors import CalibrationError
from fxquant.quant.observers.base import require_finite, require_seen

# Multiplicative hashing by the golden ratio: consecutive products mod 2^32 leave no gap much
# larger than the mean one, in any range and along any stride, so that every batch and every token
# position gets its share.
_GOLDEN = 2654435769
_RANKS = 2**32


class RowSample:
    """``count`` rows of a stream, spread evenly over all of it, and the range of all rows.

    Rows lie along the last axis: ``[..., C]`` gives a sample ``[n, C]``; with ``heads``,
    ``[B, H, N, d]`` gives ``[H, n, d]``, the same rows for each head. Which rows are kept depends
    on their number in the stream alone: neither on the batches it comes in nor on the values, so
    samples of tensors with equal numbers of rows hold the same rows. Memory does not grow.
    """

    def __init__(self, count: int, *, heads: bool = False) -> None:
        self.count = count
        self.heads = heads
        self.seen = 0
        self.low = torch.tensor(0.0)
        self.high = torch.tensor(0.0)
        self._rows = torch.empty(0)
        self._index = torch.empty(0, dtype=torch.int64)

    def update(self, x: Tensor) -> None:
        """Take in a float tensor; raises :class:`CalibrationError` where it is not finite, or has
        no axis of heads."""
        if self.heads and x.dim() != 4:
            raise CalibrationError(
                f"a scale per head needs a tensor [B, H, N, d], not {tuple(x.shape)}",
                fix="use granularity tensor",
            )
        if x.numel() == 0:
            return
        x = x.detach()
        rows = x.transpose(0, 1).flatten(1, 2) if self.heads else x.reshape(-1, x.shape[-1])
        self._widen(rows)
        index = torch.arange(self.seen, self.seen + rows.shape[-2])
        self.seen += rows.shape[-2]
        kept = _first(index, self.count)
        both = torch.cat((self._index, index[kept]))
        chosen = _first(both, self.count)
        taken = rows.index_select(-2, kept).to(torch.float32)
        held = taken if self._index.numel() == 0 else torch.cat((self._rows, taken), dim=-2)
        self._rows, self._index = held.index_select(-2, chosen), both[chosen]

    def _widen(self, rows: Tensor) -> None:
        ends = rows.flatten(1).aminmax(dim=1) if self.heads else rows.aminmax()
        require_finite(*ends)
        low, high = (end.to(torch.float32) for end in ends)
        first = self.seen == 0
        self.low = low.clone() if first else torch.minimum(self.low, low)
        self.high = high.clone() if first else torch.maximum(self.high, high)

    def rows(self, *, where: str = "") -> Tensor:
        """The sample, in the order of the stream: float32 ``[n, C]`` or ``[H, n, d]``."""
        require_seen(self.seen, where)
        return self._rows.clone()


def _first(index: Tensor, count: int) -> Tensor:
    """Positions of the ``count`` numbers of least rank, in order."""
    if index.numel() <= count:
        return torch.arange(index.numel())
    ranks = index * _GOLDEN % _RANKS
    return ranks.topk(count, largest=False, sorted=False).indices.sort().values
