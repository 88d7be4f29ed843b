"""Quantizers written a second time, number by number, exactly where that is possible."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np


def half_even(value: Fraction) -> int:
    """Python rounds fractions half to even."""
    return round(value)


def clamp(value: int, low: int, high: int) -> int:
    return min(max(value, low), high)


def ratio_of(x: float, scale: float, offset: float = 0.0) -> Fraction:
    """``(x + o) (1 / s)`` in float32, as the operators compute it, as an exact number."""
    inverse = np.float32(1.0) / np.float32(scale)
    return Fraction(float((np.float32(x) + np.float32(offset)) * inverse))


def region_code(x: float, scale: float, shift: int, bits: int, split: str) -> int:
    ratio, half = ratio_of(x, scale), 2 ** (bits - 1)
    large = half_even(ratio / 2**shift)
    if split == "sign":
        return clamp(half_even(ratio), -half, 0) if x < 0 else clamp(large, 0, half - 1)
    small = clamp(half_even(ratio), 0, half - 1)
    in_gap = 2**shift > half and abs(ratio - small) < abs(ratio - 2**shift)
    if half_even(ratio) < half or in_gap:
        return small
    return half + clamp(large, 0, half - 1)


def region_value(code: int, scale: float, shift: int, bits: int, split: str) -> float:
    """``Δ1 (k << m flag)``, rounded once."""
    half = 2 ** (bits - 1)
    if split == "sign":
        multiple = code if code < 0 else code << shift
    else:
        flag, level = divmod(code, half)
        multiple = level << (shift * flag)
    return float(np.float32(multiple) * np.float32(scale))


def log_steps(x: float, scale: float, offset: float, exponent: tuple[int, int]) -> Decimal:
    """``-log2((x + o) / s) r / p`` to 50 digits; infinite for nothing."""
    ratio = ratio_of(x, scale, offset)
    if ratio <= 0:
        return Decimal("Infinity")
    with localcontext() as context:
        context.prec = 50
        exact = Decimal(ratio.numerator) / Decimal(ratio.denominator)
        return -exact.ln() / Decimal(2).ln() * exponent[1] / exponent[0]


def log_value(
    code: int, scale: float, offset: float, bits: int, exponent: tuple[int, int], levels: int
) -> float:
    """``s 2^-floor(c p / r) fraction - o`` with the fraction from AdaLog's table."""
    if code == 2**bits - 1:
        level = 0.0
    else:
        fraction = 2.0 ** -((code * exponent[0]) % exponent[1] / exponent[1])
        if levels:
            fraction = math.floor(fraction * levels + 0.5) / levels
        level = fraction * 2.0 ** -(code * exponent[0] // exponent[1])
    return float(np.float32(level) * np.float32(scale) - np.float32(offset))
