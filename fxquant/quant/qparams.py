"""What calibration found: scale and zero point, with the range they came from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.errors import CalibrationError
from fxquant.quant.scheme import Scheme

# A range narrower than this is a constant tensor; the step must still be a normal float32.
SMALLEST_STEP = torch.finfo(torch.float32).tiny * 2**10


@dataclass(frozen=True)
class QParams:
    """``scale`` float32 and ``zero_point`` int64, scalar tensors or one entry per channel/group.

    ``x ~ scale * (code - zero_point)`` with ``quant_min <= code <= quant_max``.
    """

    scheme: Scheme
    scale: Tensor
    zero_point: Tensor


def qparams_from_range(scheme: Scheme, low: Tensor, high: Tensor, *, where: str = "") -> QParams:
    """Scale and zero point so that ``[low, high]`` (extended to hold 0) is representable.

    Symmetric: ``scale = max(-low, high) / quant_max`` and no zero point. Affine:
    ``scale = (high - low) / (quant_max - quant_min)``, ``zero_point = round(-low / scale)``
    (HAWQ's integral zero point; papers, sections 0 and 1a.5). ``low`` and ``high`` are tensors of
    one shape: scalars per tensor, ``[C]`` per channel, ``[C, G]`` per group.
    """
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
