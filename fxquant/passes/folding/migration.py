"""Shift and scale per channel, as four methods choose them. Pure arithmetic, float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fxquant.passes.folding.views import View

Center = Literal["mean", "midrange", "none"]
SMALLEST = 1e-5  # SmoothQuant's guard for weight maxima and scales
PERCENTILES = (0.999, 0.9999, 0.99999)
NARROWEST = 0.05  # smallest step of a channel in RepQ, as a share of the median channel's


@dataclass(frozen=True)
class Migration:
    """``Y' = (Y - shift) * scale`` per channel; float64 ``[C]``, ``scale`` positive."""

    shift: Tensor
    scale: Tensor


def unchanged(channels: int) -> Migration:
    """``Y' = Y``."""
    zeros = torch.zeros(channels, dtype=torch.float64)
    return Migration(zeros, torch.ones_like(zeros))


def center_of(view: View, center: Center) -> Tensor:
    """The shift per channel: its mean (MPTQ-ViT), the middle of its range, or zero; ``[C]``."""
    if center == "mean":
        return view.mean
    return (view.low + view.high) / 2 if center == "midrange" else torch.zeros_like(view.mean)


def sqb(view: View, columns: Tensor, alpha: float, center: Center) -> Migration:
    """``scale_j = max|W_:j|^(1-alpha) / max|Y_j - shift_j|^alpha`` (papers, section 2a).

    ``columns``: ``max_i |W_ij|`` over all readers, ``[C]``. The centred maximum is [I], the guards
    are SmoothQuant's [C]. ``center="none"`` is SmoothQuant itself.
    """
    shift = center_of(view, center)
    reach = torch.maximum(view.high - shift, shift - view.low)
    divisor = reach**alpha / columns.clamp(min=SMALLEST) ** (1.0 - alpha)
    return Migration(shift, 1.0 / divisor.clamp(min=SMALLEST))


def osplus(view: View, threshold: float) -> Migration:
    """``shift = midrange``; ``scale_j = min(1, threshold / half range_j)`` (Outlier Suppression+).

    Only channels that reach beyond the threshold are scaled, down to it.
    """
    reach = (view.high - view.low) / 2
    scale = (threshold / reach.clamp(min=SMALLEST * threshold)).clamp(max=1.0)
    return Migration(center_of(view, "midrange"), scale)


def channel_quantizers(rows: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Step ``s_j`` and integer zero point ``z_j`` of each channel: float64 ``[C]`` each.

    ``rows``: ``[n, C]``. Of the percentile pairs ``(1 - p, p)`` for p in {0.999, 0.9999, 0.99999}
    the one with the least squared error (RepQ-ViT; papers, section 5.2). As there, the range need
    not hold zero, so that z_j may lie outside the codes.

    No step is below ``NARROWEST`` times the median [I]: channels that hardly move would be scaled
    up so far that their few values beyond the percentiles set the range of the whole tensor (at 4
    bits DeiT-Tiny's first blocks lost 5 dB by it).
    """
    rows, top = rows.to(torch.float64), (1 << bits) - 1
    least = torch.full((rows.shape[1],), torch.inf, dtype=torch.float64)
    step, zero_point, middle = torch.ones_like(least), torch.zeros_like(least), rows.mean(0)
    ends = torch.tensor(PERCENTILES, dtype=torch.float64)
    pairs = torch.quantile(rows, torch.cat([1.0 - ends, ends]), dim=0)  # one sort for all
    for low, high in zip(*pairs.chunk(2), strict=True):
        s = ((high - low) / top).clamp(min=SMALLEST)
        z = torch.round(-low / s)
        codes = (torch.round(rows / s) + z).clamp(0, top)
        error = (rows - s * (codes - z)).square().sum(0)
        better = error < least
        step, zero_point = torch.where(better, s, step), torch.where(better, z, zero_point)
        middle = torch.where(better, (low + high) / 2, middle)
        least = torch.minimum(least, error)
    narrow = step < NARROWEST * step.median()
    step = torch.where(narrow, NARROWEST * step.median(), step)
    centred = torch.round(top / 2 - middle / step)
    return step, torch.where(narrow, centred, zero_point)


def common_quantizer(step: Tensor, zero_point: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """``s~ = mean s`` and ``z~ = round(mean z)``, which is held among the codes; scalars.

    The integer z~ is what keeps the codes (papers, section 5.2): any integer would do.
    """
    top = (1 << bits) - 1
    return step.mean(), torch.round(zero_point.mean()).clamp(0, top)


def repq(step: Tensor, zero_point: Tensor, common: tuple[Tensor, Tensor]) -> Migration:
    """``r1 = s / s~``, ``r2 = z - z~``: ``scale = 1 / r1``, ``shift = -s r2``.

    Then ``round(Y'/s~) + z~ = round(Y/s) + z``: a quantizer per channel becomes one per tensor
    (RepQ-ViT; papers, section 5.2).
    """
    return Migration(-step * (zero_point - common[1]), common[0] / step)
