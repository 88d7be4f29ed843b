"""The observer contract and what all observers share."""

from __future__ import annotations

from typing import Protocol, Self

import torch
from torch import Tensor

from fxquant.errors import CalibrationError
from fxquant.quant.qparams import QParams
from fxquant.quant.scheme import Scheme


class Observer(Protocol):
    """Sees tensors one batch at a time and answers with quantization parameters.

    Memory does not grow with the number of updates. ``mergeable`` is true where ``a.merge(b)``
    equals having seen both streams in any order, bit for bit; observers whose answer depends on
    the order (moving averages) say false and refuse to merge.
    """

    mergeable: bool

    def update(self, x: Tensor) -> None:
        """Take in a batch: float tensor of any shape."""

    def merge(self, other: Self) -> None:
        """Take in what ``other`` saw."""

    def qparams(self, scheme: Scheme, *, where: str = "") -> QParams:
        """Parameters for ``scheme``; raises :class:`CalibrationError` when nothing was seen."""


def channel_view(x: Tensor, *, per_channel: bool) -> Tensor:
    """``[C, elements]``, channels (the last axis) first, or ``[1, elements]`` for one range."""
    x = x.detach()
    if not per_channel:
        return x.reshape(1, -1)
    return x.reshape(-1, x.shape[-1]).t()


def require_finite(low: Tensor, high: Tensor) -> None:
    """NaN and infinity survive min and max, so checking the two ends checks every element."""
    if not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
        raise CalibrationError(
            "NaN or infinity reached an observer",
            why="the calibration data or an activation made from it is not finite",
            fix="remove the offending samples, or check the model's weights",
        )


def require_seen(count: int, where: str) -> None:
    """Refuse to answer before any data was seen."""
    if count == 0:
        raise CalibrationError(
            "no calibration data reached this tensor",
            where=where,
            fix="pass calibration data that exercises this layer",
        )
