"""Division by a constant as a product and a shift, and bit lengths."""

from __future__ import annotations

import torch
from torch import Tensor

from fxquant.errors import InputError

_INT32 = 1 << 31


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


def bit_length(x: Tensor) -> Tensor:
    """Bits of ``0 <= x < 2^63``, as Python's ``int.bit_length``; int64, by bisection."""
    x = x.to(torch.int64)
    length = torch.zeros_like(x)
    for step in (32, 16, 8, 4, 2, 1):
        large = ((x >> step) > 0).to(torch.int64) * step
        length = length + large
        x = torch.bitwise_right_shift(x, large)
    return length + x
