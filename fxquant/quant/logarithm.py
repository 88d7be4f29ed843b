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
from fxquant.quant.library import library
from fxquant.quant.straight import per_head, straight_through

ADALOG_DENOMINATOR = 37
GELU_OFFSET = 0.16997124254703522  # -min GELU, at x = -0.7518; the papers' constant

_FORM = "int numerator, int denominator, float offset, int bits"
library.define(f"quantize_log(Tensor x, float scale, {_FORM}) -> Tensor")
library.define(f"dequantize_log(Tensor codes, float scale, {_FORM}, int levels) -> Tensor")
library.define(f"quantize_log_per_head(Tensor x, Tensor scale, {_FORM}) -> Tensor")
library.define(
    f"dequantize_log_per_head(Tensor codes, Tensor scale, {_FORM}, int levels) -> Tensor"
)
library.define(f"fake_quantize_log(Tensor x, float scale, {_FORM}, int levels) -> Tensor")
library.define(f"fake_quantize_log_per_head(Tensor x, Tensor scale, {_FORM}, int levels) -> Tensor")


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
    x: Tensor, scale: float, numerator: int, denominator: int, offset: float, bits: int
) -> Tensor:
    return _codes((x.to(torch.float32) + offset) * (1.0 / scale), numerator, denominator, bits)


def _dequantize(
    codes: Tensor,
    scale: float,
    numerator: int,
    denominator: int,
    offset: float,
    bits: int,
    levels: int,
) -> Tensor:
    return _levels(codes, numerator, denominator, bits, levels) * scale - offset


def _quantize_per_head(
    x: Tensor, scale: Tensor, numerator: int, denominator: int, offset: float, bits: int
) -> Tensor:
    ratio = (x.to(torch.float32) + offset) * (1.0 / per_head(scale, x))
    return _codes(ratio, numerator, denominator, bits)


def _dequantize_per_head(
    codes: Tensor,
    scale: Tensor,
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
    scale: float,
    numerator: int,
    denominator: int,
    offset: float,
    bits: int,
    levels: int,
) -> Tensor:
    form = (scale, numerator, denominator, offset, bits)
    value = _dequantize(_quantize(x, *form), *form, levels)
    return straight_through(x, value, -offset, scale - offset)


def _fake_quantize_per_head(
    x: Tensor,
    scale: Tensor,
    numerator: int,
    denominator: int,
    offset: float,
    bits: int,
    levels: int,
) -> Tensor:
    form = (scale, numerator, denominator, offset, bits)
    value = _dequantize_per_head(_quantize_per_head(x, *form), *form, levels)
    return straight_through(x, value, -offset, per_head(scale, x) - offset)


for _name, _function in {
    "quantize_log": _quantize,
    "dequantize_log": _dequantize,
    "quantize_log_per_head": _quantize_per_head,
    "dequantize_log_per_head": _dequantize_per_head,
    "fake_quantize_log": _fake_quantize,
    "fake_quantize_log_per_head": _fake_quantize_per_head,
}.items():
    library.impl(_name, _function, "CompositeImplicitAutograd")

quantize_log = torch.ops.fxquant.quantize_log.default
dequantize_log = torch.ops.fxquant.dequantize_log.default
quantize_log_per_head = torch.ops.fxquant.quantize_log_per_head.default
dequantize_log_per_head = torch.ops.fxquant.dequantize_log_per_head.default
fake_quantize_log = torch.ops.fxquant.fake_quantize_log.default
fake_quantize_log_per_head = torch.ops.fxquant.fake_quantize_log_per_head.default
