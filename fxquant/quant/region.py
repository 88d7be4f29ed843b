"""Two-region quantizers, ``Δ2 = 2^m Δ1``, so that a product is aligned by a shift (papers, 2a).

``sign`` split, for data with negatives (after GELU): region 1 is ``x < 0`` with step Δ1, region 2
the rest with step Δ2, and the sign of the code is the region bit. int8 codes ``c`` in
``-2^(b-1) .. 2^(b-1)-1``; ``x' = Δ1 c`` where ``c < 0``, else ``Δ1 (c << m)``. With ``m = 0`` it is
the symmetric signed uniform quantizer, bit for bit.

``magnitude`` split, for non-negative data (after softmax): uint8 codes ``flag 2^(b-1) + k``;
``x' = Δ1 (k << m flag)``. A value is in region 1 where ``round(x / Δ1)`` fits b-1 bits and, if
Δ2 leaves a gap above the largest such value, where it is nearer to that value than to Δ2.

The exact regions of OPT-m are not public: these are our reading [I] of "region-specific scaling
factors", with the regions of PTQ4ViT's twin quantizer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxquant.errors import InputError
from fxquant.quant.library import define_both
from fxquant.quant.straight import per_head, straight_through

LARGEST_SHIFT = 8

_FORM = "int shift, int bits, str split"


def _check(shift: int, bits: int, split: str) -> None:
    """Refuse what no search makes, as an altered file may ask for it."""
    if not (2 <= bits <= 8 and 0 <= shift <= LARGEST_SHIFT and split in {"sign", "magnitude"}):
        raise InputError(
            f"no region quantizer has {bits} bits, shift {shift} and split {split!r}",
            why=f"bits are 2 to 8, shifts 0 to {LARGEST_SHIFT}, splits sign and magnitude",
        )


def _codes(ratio: Tensor, shift: int, bits: int, split: str) -> Tensor:
    """Codes from ``ratio = x / Δ1``; multiplying by ``2^-m`` is exact, as dividing by Δ2 is.

    Sums of clamped parts, not ``torch.where``, which takes a hundred times as long on a CPU.
    """
    _check(shift, bits, split)
    half = 1 << (bits - 1)
    coarse = ratio * 2.0**-shift
    if split == "sign":
        codes = torch.round(ratio.clamp(-half, 0)) + torch.round(coarse.clamp(0, half - 1))
        return codes.to(torch.int8)
    fine = torch.round(ratio.clamp(0, half - 1))
    large = torch.round(coarse.clamp(0, half - 1)) + half
    flag = (ratio >= (max(half, 1 << shift) + half - 1) / 2).to(torch.float32)
    return (fine + flag * (large - fine)).to(torch.uint8)


def _multiples(codes: Tensor, shift: int, bits: int, split: str) -> Tensor:
    """``x' / Δ1`` as float32 integers: ``c << m`` in region 2."""
    _check(shift, bits, split)
    wide = codes.to(torch.int32)
    if split == "sign":
        return (wide.clamp(max=0) + (wide.clamp(min=0) << shift)).to(torch.float32)
    flag, level = wide >> (bits - 1), wide & ((1 << (bits - 1)) - 1)
    return (level + flag * ((level << shift) - level)).to(torch.float32)


def _quantize(x: Tensor, scale: float | Tensor, shift: int, bits: int, split: str) -> Tensor:
    return _codes(x.to(torch.float32) * (1.0 / per_head(scale, x)), shift, bits, split)


def _dequantize(codes: Tensor, scale: float | Tensor, shift: int, bits: int, split: str) -> Tensor:
    return _multiples(codes, shift, bits, split) * per_head(scale, codes)


def _ends(shift: int, bits: int, split: str) -> tuple[int, int]:
    """Smallest and largest ``x' / Δ1``."""
    half = 1 << (bits - 1)
    return (-half if split == "sign" else 0), (half - 1) << shift


def _fake_quantize(x: Tensor, scale: float | Tensor, shift: int, bits: int, split: str) -> Tensor:
    value = _dequantize(_quantize(x, scale, shift, bits, split), scale, shift, bits, split)
    low, high = _ends(shift, bits, split)
    spread = per_head(scale, x)
    return straight_through(x, value, low * spread, high * spread)


quantize_region, quantize_region_per_head = define_both("quantize_region", "x", _FORM, _quantize)
dequantize_region, dequantize_region_per_head = define_both(
    "dequantize_region", "codes", _FORM, _dequantize
)
fake_quantize_region, fake_quantize_region_per_head = define_both(
    "fake_quantize_region", "x", _FORM, _fake_quantize
)
