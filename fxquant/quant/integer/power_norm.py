"""FQ-ViT's LayerNorm over power-of-two factors (PTF): one step and one α per channel; papers, 4c.

``x ~ s (q_c - z) 2^α_c`` with ``α in {0, 1, 2, 3}``: shifting brings all channels to the step s.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.errors import InputError
from fxquant.quant.integer.division import bit_length
from fxquant.quant.integer.roots import isqrt
from fxquant.quant.library import define

LARGEST_POWER = 3
FRACTION_BITS = 16
_GUARD_BITS = 20
_CLIP = (1 << 31) - 1


@dataclass(frozen=True)
class PowerFactors:
    """``scale`` of α = 0, ``zero_point`` of unsigned codes, ``alpha`` int64 ``[C]``."""

    scale: float
    zero_point: int
    alpha: Tensor


def power_factors(x: Tensor, bits: int) -> PowerFactors:
    """PTF for ``x [..., C]``: ``s = (max - min) / (2^b - 1) / 8``, α by least squared error.

    The zero point is that of α = 3, whatever α, as in FQ-ViT.
    """
    rows = x.reshape(-1, x.shape[-1]).to(torch.float64)
    most = (1 << bits) - 1
    low, high = float(rows.min().clamp(max=0.0)), float(rows.max().clamp(min=0.0))
    widest = max(high - low, 1e-12) / most
    scale = widest / (1 << LARGEST_POWER)
    zero_point = min(max(round(-low / widest), 0), most)
    errors = []
    for alpha in range(LARGEST_POWER + 1):
        step = scale * (1 << alpha)
        codes = (torch.round(rows / step) + zero_point).clamp(0, most)
        errors.append(((codes - zero_point) * step - rows).square().sum(0))
    return PowerFactors(scale, zero_point, torch.stack(errors).argmin(0))


def affine_of(gamma: Tensor, beta: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """``γ / s_out`` and ``β / s_out`` with 16 fractional bits, int64 ``[C]``."""
    made = [
        torch.floor(value.to(torch.float64) / scale * (1 << FRACTION_BITS) + 0.5).to(torch.int64)
        for value in (gamma, beta)
    ]
    channels = gamma.shape[-1]
    if int(made[0].abs().max()) * channels >= 1 << 42 or int(made[1].abs().max()) > _CLIP:
        raise InputError(
            "a LayerNorm's scale is too large for its output step",
            fix="leave this layer to another method",
        )
    return made[0], made[1]


def _power_layer_norm(
    q: Tensor, alpha: Tensor, zero_point: int, gain: Tensor, offset: Tensor
) -> Tensor:
    """``y = round((sgn(A) M X + B) / 2^N)`` in output steps, before zero point and clipping; int32.

    ``X = (q - z) << α``, ``A = γ / (σ s_out) = M 2^-N`` with 8 bits of M,
    ``N = clip(7 - floor(log2 |A|), 0, 31)``, ``B = round((β - μ γ / σ) / s_out 2^N)``. ``gain``,
    ``offset``: from :func:`affine_of`. FQ-ViT finds σ and A in float; here
    ``σ = √(C ΣX² - (ΣX)²) / C`` is an integer root, A an integer quotient with 36 fractional bits.
    """
    x = torch.bitwise_left_shift(q.to(torch.int64) - zero_point, alpha)
    channels = x.shape[-1]
    total = x.sum(-1, keepdim=True)
    root = isqrt(channels * (x * x).sum(-1, keepdim=True) - total * total, 0).clamp(min=1)
    a = torch.div(gain.abs() * channels << _GUARD_BITS, root, rounding_mode="floor")
    point = FRACTION_BITS + _GUARD_BITS
    n = (7 + 1 + point - bit_length(a)).clamp(0, 31)
    m = torch.bitwise_right_shift(a, point - n).clamp(max=255)
    b = offset - torch.div(gain * total, root, rounding_mode="floor")
    one = torch.bitwise_left_shift(torch.ones_like(n), n)
    b = (b.clamp(-_CLIP, _CLIP) * one + (1 << (FRACTION_BITS - 1))) >> FRACTION_BITS
    y = torch.bitwise_right_shift(torch.sign(gain) * m * x + b + (one >> 1), n)
    return y.clamp(-_CLIP, _CLIP).to(torch.int32)


power_layer_norm = define(
    "power_layer_norm(Tensor q, Tensor alpha, int zero_point, Tensor gain, Tensor offset)"
    " -> Tensor",
    _power_layer_norm,
)
