"""Softmax over the last axis in integers: i-softmax, Shiftmax, Log-Int-Softmax, and a table.

All take signed codes ``q`` of one step S, at most 16 bits, ``[..., T]``, and look at ``q - max``
alone, shifted to a step that is fine enough for their exponential. papers, sections 4c and 6.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fxquant.quant.integer.division import bit_length, share_of
from fxquant.quant.integer.dyadic import dyadic, requantize
from fxquant.quant.integer.exponents import (
    I_EXP_BITS,
    IExp,
    finer,
    i_exp,
    shift_exp,
)
from fxquant.quant.library import define

PROBABILITY_BITS = 16
FLUSHED = 255  # Log-Int-Softmax's code for nothing
SHIFTMAX_BITS = 15
_SIXTEEN = (1 << 15) - 1  # symmetric signed 16 bits


def _below_max(q: Tensor, shift: int = 0) -> Tensor:
    wide = q.to(torch.int32)
    return (wide - wide.amax(-1, keepdim=True)) * (1 << shift)


def i_exp_bits(scale: float, tokens: int) -> int:
    """I-BERT's n = 30, or less where a row's doubled sum would not fit int64."""
    return min(I_EXP_BITS, 61 - IExp.of(scale).c.bit_length() - tokens.bit_length())


def _i_softmax(q: Tensor, scale: float, bits: int) -> Tensor:
    """``(e f) >> (32 - k)``, ``f = floor(2^32 / sum e)``, ``e`` i-exp in 16 bits; step ``2^-k``.

    int32, 0 to ``2^k``. I-BERT learns the range of ``e`` while it trains; as every row has its
    maximum, that range is known: ``e(0)`` becomes 32767 [I].
    """
    shift, step = finer(scale)
    n = i_exp_bits(step, q.shape[-1])
    largest = IExp.of(step).c << n
    dropped = max(0, largest.bit_length() - 31)
    factor = dyadic(_SIXTEEN / (largest >> dropped))
    wide = i_exp(_below_max(q, shift), step, n) >> dropped
    e = requantize(wide, factor.multiplier, factor.shift, 0, 0, _SIXTEEN, torch.int64)
    share = torch.div(
        torch.full_like(total := e.sum(-1, keepdim=True), 1 << 32), total, rounding_mode="floor"
    )
    made: Tensor = ((e * share) >> (32 - bits)).to(torch.int32)
    return made


def _shiftmax(q: Tensor, scale: float, bits: int) -> Tensor:
    """``(e f) >> (62 - k)``, ``f = floor((2^61 - 1) / sum e)``, ``e`` ShiftExp; step ``2^-(k-1)``.

    int32, 0 to ``2^(k-1)``, n = 15. ``e <= sum e``, so ``e f < 2^61``. The authors' f of 31 bits
    keeps few bits of its own where the sum takes most of them, hence int64 [I].
    """
    shift, step = finer(scale)
    e = shift_exp(_below_max(q, shift), step, SHIFTMAX_BITS).to(torch.int64)
    return share_of(e, e.sum(-1, keepdim=True), bits).to(torch.int32)


def _log_int_softmax(q: Tensor, scale: float, bits: int) -> Tensor:
    """``code = floor(log2 t)``, one more where ``t >= 1.5 2^code``, ``t = round(sum e / e_i)``.

    The share is ``2^-code``; codes of ``2^bits`` and more become ``FLUSHED``, a share of 0. uint8.
    The threshold is FQ-ViT's 1.5, not √2. ``e`` is i-exp; one that is 0 counts as 1.
    """
    shift, step = finer(scale)
    n = i_exp_bits(step, q.shape[-1])
    e = i_exp(_below_max(q, shift), step, n).clamp(min=1)
    t = torch.div(2 * e.sum(-1, keepdim=True) + e, 2 * e, rounding_mode="floor")
    f = bit_length(t) - 1
    above = (2 * t >= 3 * torch.bitwise_left_shift(torch.ones_like(t), f)).to(torch.int64)
    code = f + above
    kept = (code < 1 << bits).to(torch.int64)
    return (code * kept + FLUSHED * (1 - kept)).to(torch.uint8)


def _exp2_codes(codes: Tensor, one: int) -> Tensor:
    """``2^one >> code``: shares of step ``2^-one``, int32; 0 for ``FLUSHED``."""
    shift = codes.to(torch.int32).clamp(max=31)
    return torch.bitwise_right_shift(torch.full_like(shift, 1 << one), shift)


def exp_table(scale: float, tokens: int) -> Tensor:
    """``round(2^n exp(-d S))`` for d = 0..255, int32, n so that a row's sum fits int32."""
    n = 30 - math.ceil(math.log2(tokens))
    entries = [math.floor(math.ldexp(math.exp(-d * scale), n) + 0.5) for d in range(256)]
    return torch.tensor(entries, dtype=torch.int32)


def _table_softmax(q: Tensor, table: Tensor, bits: int) -> Tensor:
    """``round(2^k e / sum e)`` with ``e = table[max - q]``: all but exact; int32, step ``2^-k``."""
    e = table[(-_below_max(q)).clamp(max=table.shape[0] - 1).to(torch.int64)].to(torch.int64)
    total = e.sum(-1, keepdim=True)
    return torch.div((e << (bits + 1)) + total, 2 * total, rounding_mode="floor").to(torch.int32)


i_softmax = define("i_softmax(Tensor q, float scale, int bits) -> Tensor", _i_softmax)
shiftmax = define("shiftmax(Tensor q, float scale, int bits) -> Tensor", _shiftmax)
log_int_softmax = define(
    "log_int_softmax(Tensor q, float scale, int bits) -> Tensor", _log_int_softmax
)
exp2_codes = define("exp2_codes(Tensor codes, int one) -> Tensor", _exp2_codes)
table_softmax = define("table_softmax(Tensor q, Tensor table, int bits) -> Tensor", _table_softmax)
