"""Inputs that are 8-bit pixels already: nothing to find out."""

from __future__ import annotations

from typing import Self, final

import torch
from torch import Tensor

from fxquant.quant.observers.base import require_finite
from fxquant.quant.qparams import QParams
from fxquant.quant.scheme import Scheme


@final
class PixelObserver:
    """Scale 1 and the scheme's own zero point z, whatever is seen: codes are pixels ``x + z``.

    What lies outside 0..255, as resizing may leave it, is no pixel and is cut off.
    """

    mergeable = True

    def update(self, x: Tensor) -> None:
        """Check a float tensor of any shape."""
        if x.numel():
            require_finite(*x.detach().aminmax())

    def merge(self, other: Self) -> None:
        """Nothing to take in."""

    def qparams(self, scheme: Scheme, *, where: str = "") -> QParams:
        """Scale 1, zero point z."""
        return QParams(scheme, torch.tensor(1.0), torch.tensor(int(scheme.parameter or 0)))
