"""Division as a product and a shift, by a constant or by a row's total, and bit lengths."""

from __future__ import annotations

import torch
from torch import Tensor

from fxquant.errors import InputError

_INT32 = 1 << 31
RECIPROCAL_BITS = 61  # I-ViT: 31, of which as few as one is left where the total takes the others


def divided(p: Tensor, divisor: int, largest: int) -> Tensor:
    """``floor(p / divisor)`` for ``0 <= p <= largest``, in int32 or int64 as ``p`` is.

    ``(p M) >> k`` with ``M = floor(2^k / d) + 1`` is exact where ``p (M d - 2^k) < 2^k`` (papers,
    section 6.3). ``M d - 2^k <= d``, so ``2^k > largest d`` will do; smaller k are tried first, as
    their products may fit int32, in which Inductor vectorises them.
    """
    if not divisor > 0 or not 0 <= largest < _INT32:
        raise InputError(f"cannot divide numbers up to {largest} by {divisor}")
    limit = _INT32 if p.dtype is torch.int32 else 1 << 63
    for k in range(63):
        factor = (1 << k) // divisor + 1
        if largest * factor >= 1 << 63:
            break
        if largest * (factor * divisor - (1 << k)) < 1 << k:
            if largest * factor < limit:
                return (p * factor) >> k
            return ((p.to(torch.int64) * factor) >> k).to(p.dtype)
    return torch.div(p, divisor, rounding_mode="floor")


def share_of(part: Tensor, total: Tensor, bits: int) -> Tensor:
    """``(p f) >> (62 - k)``, ``f = floor((2^61 - 1) / t)``: ``p / t`` in steps of ``2^-(k-1)``.

    int64, ``0 <= p <= t``, so ``p f < 2^61``; a total of 0 counts as 1.
    """
    whole = total.clamp(min=1)
    most = torch.full_like(whole, (1 << RECIPROCAL_BITS) - 1)
    reciprocal = torch.div(most, whole, rounding_mode="floor")
    return (part * reciprocal) >> (RECIPROCAL_BITS + 1 - bits)


def bit_length(x: Tensor) -> Tensor:
    """Bits of ``0 <= x < 2^63``, as Python's ``int.bit_length``; int64, by bisection."""
    x = x.to(torch.int64)
    length = torch.zeros_like(x)
    for step in (32, 16, 8, 4, 2, 1):
        large = ((x >> step) > 0).to(torch.int64) * step
        length = length + large
        x = torch.bitwise_right_shift(x, large)
    return length + x
