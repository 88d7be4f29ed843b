"""Exponentials of non-positive codes: i-exp (I-BERT) and ShiftExp (I-ViT); papers, section 4c.

Both are monotonic in the codes, to the last bit. Their constants are integers at the codes' step,
so at the coarse steps of 8-bit scores they are off by much (ln 2 by a seventh at S = 0.2);
:func:`finer` tells by how many bits to shift codes before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.errors import InputError
from fxquant.quant.integer.division import divided
from fxquant.quant.library import define

I_EXP_BITS = 30
_A, _B, _C = 0.35815147, 0.96963238, 1.0  # a p^2 + b p + c on (-ln 2, 0], I-BERT's code
_LN2 = -0.6931
_LARGEST = 1 << 31
FINE_BITS = 11  # steps of at most 2^-11 hold the bounds of both approximations
_MOST_FINER = 13  # differences of 16-bit codes stay within int32


def positive(scale: float, *, what: str) -> float:
    """The scale; :class:`InputError` where it is no step of codes."""
    if not (math.isfinite(scale) and scale > 0.0):
        raise InputError(f"{what} takes a positive step, not {scale}")
    return scale


def finer(scale: float) -> tuple[int, float]:
    """Bits n, and the step ``S 2^-n`` of codes shifted left by them: fine enough for the constants.

    The codes' values stay as they are. The papers' kernels take accumulators or 16 bits, whose
    steps are fine, where n is 0 [I].
    """
    wanted = FINE_BITS + math.ceil(math.log2(positive(scale, what="an exponential")))
    bits = min(max(wanted, 0), _MOST_FINER)
    return bits, math.ldexp(scale, -bits)


@dataclass(frozen=True)
class IExp:
    """Integer constants of i-exp at a step S: ``x0 = floor(-ln 2 / S)``, ``b``, ``c``."""

    x0: int
    b: int
    c: int

    @staticmethod
    def of(scale: float) -> IExp:
        """Constants; :class:`InputError` for steps below 2.6e-5, whose ``c`` exceeds 32 bits."""
        positive(scale, what="i-exp")
        made = IExp(
            x0=math.floor(_LN2 / scale),
            b=math.floor(_B / _A / scale),
            c=math.floor(_C / _A / scale**2),
        )
        if made.c.bit_length() > 32:
            raise InputError(
                f"i-exp cannot take codes of step {scale}",
                why="its constant 1 / (a S^2) exceeds 32 bits",
                fix="use fewer bits for its input",
            )
        return made


def i_exp_scale(scale: float, bits: int) -> float:
    """Step of what ``i_exp`` returns: ``a S^2 / 2^n``."""
    return _A * scale**2 / 2.0**bits


def _i_exp(q: Tensor, scale: float, bits: int) -> Tensor:
    """``e = (r (r + b) + c) << (n - z)``, ``q = x0 z + r``; int64, ``q <= 0`` of step ``scale``.

    ``n = bits`` is 30 in I-BERT; codes are clamped at ``n x0``, so at least one bit remains.
    """
    form = IExp.of(scale)
    lowest = bits * form.x0
    clamped = q.to(torch.int32).clamp(min=max(lowest, 1 - _LARGEST), max=0)
    z = divided(-clamped, -form.x0, min(-lowest, _LARGEST - 1))
    r = (clamped - z * form.x0).to(torch.int64)
    return torch.bitwise_left_shift(r * (r + form.b) + form.c, (bits - z).to(torch.int64))


def shift_exp_unit(scale: float) -> int:
    """``I0 = ceil(1 / S)``, the codes in which ShiftExp's result halves (I-ViT's code)."""
    return math.ceil(1.0 / positive(scale, what="ShiftExp"))


def _shift_exp(q: Tensor, scale: float, bits: int) -> Tensor:
    """``e = ((r + 2 I0) << (n - z)) >> 1`` of ``p = q + (q >> 1) - (q >> 4) = r - z I0``.

    ``q <= 0`` of step S, result of step ``S / 2^n``; int32 where ``2 I0 2^n < 2^31``, else int64.
    The floor comes after the shift, as in the authors' code (papers, section 6.7).
    """
    unit = shift_exp_unit(scale)
    narrow = (2 * unit) << bits < _LARGEST and bits * unit < _LARGEST
    p = q.to(torch.int32 if narrow else torch.int64)
    p = (p + (p >> 1) - (p >> 4)).clamp(min=-bits * unit, max=0)
    z = divided(-p, unit, min(bits * unit, _LARGEST - 1))
    r = p + z * unit
    return torch.bitwise_left_shift(r + 2 * unit, bits - z) >> 1


i_exp = define("i_exp(Tensor q, float scale, int bits) -> Tensor", _i_exp)
shift_exp = define("shift_exp(Tensor q, float scale, int bits) -> Tensor", _shift_exp)
