"""What calibration found: scale and zero point, with the range they came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fxquant.errors import CalibrationError, SchemeError
from fxquant.quant.logarithm import ADALOG_DENOMINATOR
from fxquant.quant.scheme import Scheme

Split = Literal["sign", "magnitude"]
# A range narrower than this is a constant tensor; the step must still be a normal float32.
SMALLEST_STEP = torch.finfo(torch.float32).tiny * 2**10


@dataclass(frozen=True)
class QParams:
    """``scale`` float32 and ``zero_point`` int64: scalars, or an entry per channel, head or group.

    Uniform: ``x ~ scale * (code - zero_point)`` with ``quant_min <= code <= quant_max``.
    Region: ``scale`` is Δ1, ``shift`` the m of ``Δ2 = 2^m Δ1``, ``split`` what tells the regions
    apart. Logs: ``x ~ scale * 2^(-code p / r) - offset`` with ``base`` AdaLog's q (0 for others).
    ``zero_point`` is 0 where the kind has none.
    """

    scheme: Scheme
    scale: Tensor
    zero_point: Tensor
    shift: int = 0
    base: int = 0
    offset: float = 0.0
    split: Split = "sign"

    @property
    def exponent(self) -> tuple[int, int]:
        """``(p, r)`` of a log quantizer's levels ``2^(-code p / r)``."""
        if self.scheme.kind == "adalog":
            return self.base, ADALOG_DENOMINATOR
        return 1, 2 if self.scheme.kind == "log_sqrt2" else 1

    @property
    def fraction_levels(self) -> int:
        """Entries of AdaLog's fraction table, ``2^(b+1) - 2`` (papers, 5.3); 0 where exact."""
        return (2 << self.scheme.bits) - 2 if self.scheme.kind == "adalog" else 0


def qparams_from_range(scheme: Scheme, low: Tensor, high: Tensor, *, where: str = "") -> QParams:
    """Scale and zero point so that ``[low, high]`` (extended to hold 0) is representable.

    Symmetric: ``scale = max(-low, high) / quant_max`` and no zero point. Affine:
    ``scale = (high - low) / (quant_max - quant_min)``, ``zero_point = round(-low / scale)``
    (HAWQ's integral zero point; papers, sections 0 and 1a.5). ``low`` and ``high`` are tensors of
    one shape: scalars per tensor, ``[C]`` per channel, ``[H]`` per head, ``[C, G]`` per group.
    """
    if scheme.kind != "uniform":
        raise SchemeError(
            f"a {scheme.kind} quantizer is not made from a range alone",
            where=where or f"scheme {scheme.text()}",
            fix="use fxquant.quant.search",
        )
    low = low.to(torch.float64).clamp(max=0.0)
    high = high.to(torch.float64).clamp(min=0.0)
    if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
        raise CalibrationError(
            "the observed range is not finite",
            where=where,
            why="NaN or infinity reached this tensor during calibration",
            fix="check the calibration data and the model's weights for NaN and infinity",
        )
    if scheme.symmetric:
        scale = torch.maximum(-low, high) / scheme.quant_max
        zero_point = torch.zeros_like(scale)
    else:
        scale = (high - low) / (scheme.quant_max - scheme.quant_min)
        zero_point = torch.round(scheme.quant_min - low / scale.clamp(min=SMALLEST_STEP))
        zero_point = zero_point.clamp(scheme.quant_min, scheme.quant_max)
    # A tensor that was zero throughout gets step 1, so that zero stays exactly zero.
    scale = torch.where(scale < SMALLEST_STEP, torch.ones_like(scale), scale)
    return QParams(scheme, scale.to(torch.float32), zero_point.to(torch.int64))
