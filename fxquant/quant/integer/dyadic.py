"""Dyadic numbers ``m 2^-e`` in place of float scales, and requantization by them.

``q' = clip(((q m + 2^(e-1)) >> e) + z)``: rounds half up, needs nothing but a product, a sum and a
shift (I-ViT, papers, section 4c; its code simulates this in float64 and rounds half to even).
``m`` has 31 bits, so for ``|q| <= 2^31`` every intermediate fits int64, and none fits less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.errors import InputError
from fxquant.quant.library import define

MANTISSA_BITS = 31
LARGEST_SHIFT = 62
_ADDEND_BITS = 61  # with |q m| <= 2^62 and the rounding constant below 2^61, sums stay below 2^63


@dataclass(frozen=True)
class Dyadic:
    """The number ``multiplier * 2^-shift``, ``0 <= |multiplier| <= 2^31``, ``1 <= shift <= 62``."""

    multiplier: int
    shift: int

    @property
    def value(self) -> float:
        """As a float."""
        return math.ldexp(self.multiplier, -self.shift)


@dataclass(frozen=True)
class DyadicRow:
    """A dyadic number and an addend for each channel, or each element: int64 tensors."""

    multiplier: Tensor
    shift: Tensor
    addend: Tensor


def dyadic(ratio: float, *, shift_limit: int = LARGEST_SHIFT) -> Dyadic:
    """The nearest dyadic number: the mantissa of ``frexp`` times 2^31, rounded half up.

    Relative error at most ``2^-31``, except for ratios so small that the shift, limited to
    ``shift_limit``, takes bits of the mantissa. Raises :class:`InputError` for what is not finite
    or reaches 2^30.
    """
    if not math.isfinite(ratio) or abs(ratio) >= 2.0**30:
        raise _no_ratio(ratio)
    exponent = math.frexp(ratio)[1]
    shift = min(MANTISSA_BITS - exponent, shift_limit)
    return Dyadic(math.floor(math.ldexp(ratio, shift) + 0.5), shift)


def dyadic_row(ratios: Tensor, addends: Tensor | None = None) -> DyadicRow:
    """:func:`dyadic` of each of ``ratios``, of any shape, and ``round(addend 2^e)`` to go with it.

    Addends, of the same shape and in output steps, are below 2^30; where one needs the room, the
    shift is smaller.
    """
    ratio = ratios.to(torch.float64)
    addend = torch.zeros_like(ratio) if addends is None else addends.to(torch.float64)
    if addend.shape != ratio.shape or not bool((addend.abs() < 2.0**30).all()):
        raise InputError(
            "an addend lies beyond any integer type",
            why="addends are counted in output steps and must be below 2^30",
            fix="check that the calibration data gives every tensor a range",
        )
    worst = ratio[~(ratio.abs() < 2.0**30)]
    if worst.numel():
        raise _no_ratio(float(worst[0]))
    room = _ADDEND_BITS - torch.frexp(addend).exponent.clamp(min=0)
    shift = torch.minimum(MANTISSA_BITS - torch.frexp(ratio).exponent, room)
    shift = shift.clamp(max=LARGEST_SHIFT).to(torch.int64)
    unit = torch.exp2(shift.to(torch.float64))
    rounded = (torch.floor(value * unit + 0.5).to(torch.int64) for value in (ratio, addend))
    multiplier, whole = rounded
    return DyadicRow(multiplier, shift, whole)


def _no_ratio(ratio: float) -> InputError:
    return InputError(
        f"{ratio} is no ratio of two quantization steps",
        why="requantization takes finite ratios below 2^30",
        fix="check that the calibration data gives every tensor a range",
    )


def _saturate(q: Tensor, zero_point: int, low: int, high: int, dtype: torch.dtype) -> Tensor:
    """``clip(q + z, low, high)`` in ``dtype``; sums of narrow types are taken in int32."""
    wide = q if q.dtype is torch.int64 else q.to(torch.int32)
    return (wide + zero_point).clamp(low, high).to(dtype)


def _requantize(
    q: Tensor,
    multiplier: int,
    shift: int,
    zero_point: int,
    low: int,
    high: int,
    dtype: torch.dtype,
) -> Tensor:
    wide = q.to(torch.int64) * multiplier + (1 << (shift - 1))
    return _saturate(wide >> shift, zero_point, low, high, dtype)


def _requantize_channels(
    q: Tensor,
    multiplier: Tensor,
    shift: Tensor,
    addend: Tensor,
    zero_point: int,
    low: int,
    high: int,
    dtype: torch.dtype,
) -> Tensor:
    half = torch.bitwise_left_shift(torch.ones_like(shift), shift - 1)
    wide = q.to(torch.int64) * multiplier + (addend + half)
    return _saturate(torch.bitwise_right_shift(wide, shift), zero_point, low, high, dtype)


_ENDS = "int zero_point, int low, int high, ScalarType dtype"
saturate = define(f"saturate(Tensor q, {_ENDS}) -> Tensor", _saturate)
requantize = define(
    f"requantize(Tensor q, int multiplier, int shift, {_ENDS}) -> Tensor", _requantize
)
requantize_channels = define(
    f"requantize_channels(Tensor q, Tensor multiplier, Tensor shift, Tensor addend, {_ENDS})"
    " -> Tensor",
    _requantize_channels,
)
