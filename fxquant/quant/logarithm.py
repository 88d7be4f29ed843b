"""Log quantizers ``code = round(-log2((x + o) / s) r / p)``, ``x' = s 2^(-code p / r) - o``.

``p / r`` is 1 for log2, 1/2 for log√2 and q/37 for AdaLog (papers, sections 5.2 and 5.3). The
offset ``o`` makes the values non-negative; at a linear's input that equals folding ``-o`` into the
bias. The last of the ``2^b`` codes decodes to nothing, ``x' = -o``, and takes every value whose
unclamped code is at least that. The papers give that code a level and flush codes of ``2^b`` or
more: a ``2^b + 1``-th value, which b bits cannot hold.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fxquant.errors import InputError
from fxquant.quant.library import define_both
from fxquant.quant.straight import per_head, straight_through

ADALOG_DENOMINATOR = 37
GELU_OFFSET = 0.16997124254703522  # -min GELU, at x = -0.7518; the papers' constant

_FORM = "int numerator, int denominator, float offset, int bits"


def level_table(numerator: int, denominator: int, bits: int, levels: int) -> list[float]:
    """``2^(-code p / r)`` for each code, 0 for the last.

    With ``levels`` > 0 the fraction ``2^-((code p mod r) / r)`` is rounded to a multiple of
    ``1 / levels``, as in AdaLog's table, which makes decoding an integer product and a shift.
    """
    table = []
    for code in range((1 << bits) - 1):
        shift, rest = divmod(code * numerator, denominator)
        fraction = 2.0 ** (-rest / denominator)
        if levels:
            fraction = round(fraction * levels) / levels
        table.append(math.ldexp(fraction, -shift))
    return [*table, 0.0]


def _check(numerator: int, denominator: int, bits: int) -> None:
    """Refuse what no search makes, as an altered file may ask for it."""
    if not (2 <= bits <= 8 and numerator > 0 and denominator > 0):
        raise InputError(
            f"no log quantizer has {bits} bits and base 2^({numerator}/{denominator})",
            why="bits are 2 to 8 and bases above 1",
        )


def _codes(ratio: Tensor, numerator: int, denominator: int, bits: int) -> Tensor:
    """Codes from ``(x + o) / s``; zero, and what may lie below it, has log -inf."""
    _check(numerator, denominator, bits)
    steps = torch.log2(ratio.clamp(min=0.0)) * -(denominator / numerator)
    return torch.round(steps).clamp(0, (1 << bits) - 1).to(torch.uint8)


def _levels(codes: Tensor, numerator: int, denominator: int, bits: int, levels: int) -> Tensor:
    _check(numerator, denominator, bits)
    table = torch.tensor(level_table(numerator, denominator, bits, levels), dtype=torch.float32)
    return table[codes.to(torch.int32)]


def _quantize(
    x: Tensor, scale: float | Tensor, numerator: int, denominator: int, offset: float, bits: int
) -> Tensor:
    ratio = (x.to(torch.float32) + offset) * (1.0 / per_head(scale, x))
    return _codes(ratio, numerator, denominator, bits)


def _dequantize(
    codes: Tensor,
    scale: float | Tensor,
    numerator: int,
    denominator: int,
    offset: float,
    bits: int,
    levels: int,
) -> Tensor:
    table = _levels(codes, numerator, denominator, bits, levels)
    return table * per_head(scale, codes) - offset


def _fake_quantize(
    x: Tensor,
    scale: float | Tensor,
    numerator: int,
    denominator: int,
    offset: float,
    bits: int,
    levels: int,
) -> Tensor:
    form = (scale, numerator, denominator, offset, bits)
    value = _dequantize(_quantize(x, *form), *form, levels)
    return straight_through(x, value, -offset, per_head(scale, x) - offset)


quantize_log, quantize_log_per_head = define_both("quantize_log", "x", _FORM, _quantize)
dequantize_log, dequantize_log_per_head = define_both(
    "dequantize_log", "codes", f"{_FORM}, int levels", _dequantize
)
fake_quantize_log, fake_quantize_log_per_head = define_both(
    "fake_quantize_log", "x", f"{_FORM}, int levels", _fake_quantize
)
