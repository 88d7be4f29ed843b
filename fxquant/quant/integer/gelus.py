"""GELU in integers: i-GELU (I-BERT) with an adaptive shift, ShiftGELU (I-ViT); papers, 4c.

Both take signed codes of one step S, at most 16 bits, and return int32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.errors import InputError
from fxquant.quant.integer.division import share_of
from fxquant.quant.integer.exponents import finer, positive, shift_exp
from fxquant.quant.library import define

_A, _BETA, _ROOT2 = -0.2888, -1.769, 1.4142  # I-BERT's code
SIGMOID = 1.702
SIGMOID_BITS = 16  # I-ViT: 8, whose floor alone is off by up to x / 128
SHIFT_GELU_BITS = 23
_INT31 = (1 << 31) - 1


@dataclass(frozen=True)
class IGelu:
    """Integer constants of i-GELU at a step S; ``unit`` is the (negative) step of ``y``."""

    beta: int
    c: int
    shift: int
    one: int
    unit: float

    @staticmethod
    def of(scale: float) -> IGelu:
        """``n = max(0, floor(log2(1 / (|a| s^2))) - 12)``, ``s = S / √2``, in place of 14.

        I-BERT's constant 14 holds for fc1 accumulators only; at S = 0.04 it is off by 22 (papers,
        section 4c).
        """
        s = positive(scale, what="i-GELU") / _ROOT2
        if s < 2.0**-20:
            raise InputError(
                f"i-GELU cannot take codes of step {scale}",
                why="squares of its clipped codes would exceed 43 bits",
                fix="use fewer bits for its input",
            )
        shift = max(0, math.floor(math.log2(1.0 / (-_A * s**2))) - 12)
        unit = _A * s**2 * 2.0**shift
        return IGelu(
            beta=math.floor(_BETA / s),
            c=math.floor(1.0 / _A / s**2),
            shift=shift,
            one=math.floor(1.0 / unit),
            unit=unit,
        )


def i_gelu_scale(scale: float) -> float:
    """Step of what ``i_gelu`` returns: ``S |a| s^2 2^n / 2``."""
    return -scale * IGelu.of(scale).unit / 2.0


def _i_gelu(q: Tensor, scale: float) -> Tensor:
    """``-q (y + one)``, ``y = (sgn(q) ((min(|q|, -β) + β)^2 + c)) >> n``; int32.

    The square is int32 where ``|β| < 46340``, else int64; ``|y + one| <= 2^14`` by the choice of n.
    """
    form = IGelu.of(scale)
    wide = q.to(torch.int32 if -form.beta < 46340 and -form.c <= _INT31 else torch.int64)
    clipped = wide.abs().clamp(max=-form.beta) + form.beta
    y = (torch.sign(wide) * (clipped * clipped + form.c)) >> form.shift
    return (-(wide * (y + form.one))).to(torch.int32)


def shift_gelu_scale(scale: float, bits: int) -> float:
    """Step of what ``shift_gelu`` returns: ``S 2^-(k-1)``."""
    return positive(scale, what="ShiftGELU") * 2.0 ** (1 - bits)


def _shift_gelu(q: Tensor, scale: float, bits: int) -> Tensor:
    """``q σ``, ``σ = e^(1.702 (x - M)) / (e^(1.702 (x - M)) + e^(-1.702 M))`` in k bits; int32.

    M is the maximum over the last axis, at least 0 [I]: with a negative one ``e^-M`` would exceed
    what the shift can hold. 1.702 goes into the step, as in the authors' code. They take the
    reciprocal of the sum as ``floor((2^31 - 1) / Σe)``, of which 3 bits can be left: σ is 14 % off
    at S = 0.002, 5 % at S = 0.05. Here it has 30 bits more, in int64 [I].
    """
    shift, step = finer(SIGMOID * scale)
    wide = q.to(torch.int32)
    most = wide.amax(-1, keepdim=True).clamp(min=0)
    e = shift_exp((wide - most) * (1 << shift), step, SHIFT_GELU_BITS).to(torch.int64)
    total = e + shift_exp(most * -(1 << shift), step, SHIFT_GELU_BITS)
    return wide * share_of(e, total, bits).to(torch.int32)


i_gelu = define("i_gelu(Tensor q, float scale) -> Tensor", _i_gelu)
shift_gelu = define("shift_gelu(Tensor q, float scale, int bits) -> Tensor", _shift_gelu)
