"""An observer for each head of a matmul's operand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self, final

import torch
from torch import Tensor

from fxquant.errors import CalibrationError
from fxquant.quant.observers.base import Observer, require_seen
from fxquant.quant.qparams import QParams
from fxquant.quant.scheme import Scheme


@final
class HeadObserver:
    """Head ``h`` of ``x [B, H, N, d]`` goes to the ``h``-th of H observers, all of one kind."""

    def __init__(self, make: Callable[[], Observer]) -> None:
        self.heads: list[Observer] = []
        self.mergeable = make().mergeable
        self._make = make

    def update(self, x: Tensor) -> None:
        """Take in a batch ``[B, H, N, d]``; the number of heads may not change."""
        if x.dim() != 4:
            raise CalibrationError(
                f"a range per head needs a tensor [B, H, N, d], not {tuple(x.shape)}",
                fix="use granularity tensor",
            )
        self._grow(x.shape[1])
        for head, observer in enumerate(self.heads):
            observer.update(x[:, head])

    def merge(self, other: Self) -> None:
        """Take in what ``other`` saw, head by head."""
        if other.heads:
            self._grow(len(other.heads))
            for mine, theirs in zip(self.heads, other.heads, strict=True):
                mine.merge(theirs)

    def _grow(self, count: int) -> None:
        if not self.heads:
            self.heads = [self._make() for _ in range(count)]
        if len(self.heads) != count:
            raise CalibrationError(f"{count} heads after {len(self.heads)}")

    def qparams(self, scheme: Scheme, *, where: str = "") -> QParams:
        """Scales and zero points ``[H]``."""
        require_seen(len(self.heads), where)
        made = [observer.qparams(scheme, where=where) for observer in self.heads]
        scale = torch.stack([one.scale for one in made])
        return QParams(scheme, scale, torch.stack([one.zero_point for one in made]))
