"""LayerNorm without its affine part in integers: I-BERT's and I-ViT's; papers, section 4c.

``y = q - round(mean q)``, ``σ = floor(√Σy²)``, result ``y / σ`` of step ``√C / 2^30``: Σ is no
mean, so √C goes into the step; eps is dropped. Both take codes of one step, at most 16 bits,
``[..., C]``, whose step does not matter. Scale and shift follow in the requantization, as
``m n + β`` and not as ``γ (n + β / γ)``: a γ near 0 does no harm.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fxquant.quant.integer.roots import isqrt
from fxquant.quant.library import define

_INT31 = (1 << 31) - 1


def norm_scale(channels: int) -> float:
    """Step of what both norms return: ``√C / 2^30``."""
    return math.sqrt(channels) / 2.0**30


def centred(q: Tensor) -> Tensor:
    """``q - floor((2 Σq + C) / (2 C))``, the mean rounded half up; int32."""
    wide = q.to(torch.int32)
    channels = q.shape[-1]
    total = wide.sum(-1, keepdim=True, dtype=torch.int32)
    mean = torch.div(2 * total + channels, 2 * channels, rounding_mode="floor")
    return wide - mean


def i_layer_norm_shift(largest: int) -> int:
    """I-BERT's shift: the least with ``Σ(y >> shift)² < 2^32``, where Σy² is at most ``largest``.

    ``ceil(log2 √(v / 2^32))``; found during calibration and frozen (papers, section 4c).
    """
    return max(0, math.ceil(math.log2(max(largest, 1) / 2.0**32) / 2.0))


def _i_layer_norm(q: Tensor, shift: int) -> Tensor:
    """``(y f) >> 1``, ``f = floor(2^31 / σ)``, ``σ = isqrt(Σ(y >> shift)²) << shift``; int32.

    int64 inside: with 2^31 in place of ``2^31 - 1`` the product can exceed int32 by one.
    """
    y = centred(q)
    part = (y >> shift).to(torch.int64)
    sigma = isqrt((part * part).sum(-1, keepdim=True), 0).clamp(min=1) << shift
    factor = torch.div(torch.full_like(sigma, 1 << 31), sigma, rounding_mode="floor")
    return ((y.to(torch.int64) * factor) >> 1).to(torch.int32)


def _shift_layer_norm(q: Tensor, newton_steps: int) -> Tensor:
    """``(y f) >> 1``, ``f = floor((2^31 - 1) / σ)``; int32. I-ViT's I-LayerNorm.

    ``newton_steps``: 0 for the exact root, 10 for the paper's. ``|y| <= σ`` keeps ``y f`` in int32;
    the sum of squares needs int64.
    """
    y = centred(q)
    wide = y.to(torch.int64)
    sigma = isqrt((wide * wide).sum(-1, keepdim=True), newton_steps).clamp(min=1)
    factor = torch.div(torch.full_like(sigma, _INT31), sigma, rounding_mode="floor")
    return (y * factor.to(torch.int32)) >> 1


i_layer_norm = define("i_layer_norm(Tensor q, int shift) -> Tensor", _i_layer_norm)
shift_layer_norm = define(
    "shift_layer_norm(Tensor q, int newton_steps) -> Tensor", _shift_layer_norm
)
