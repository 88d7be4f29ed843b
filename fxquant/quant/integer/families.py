"""Which kernels each family uses for a non-linearity, codes in, codes out.

I-BERT, I-ViT and FQ-ViT (papers, section 4c) are the families that a mix is made of; ``lut`` is the
upper bound at 8 bits: exact functions of the codes. FQ-ViT has no integer GELU: it evaluates the
float one between quantizers, which for 8-bit codes is what a table does, so that is what stands
for it here, and no mix takes it from there. LayerNorm is no function of one code; in ``lut`` it is
the one with the exact root, as in I-ViT.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fxquant.quant.calls import Call
from fxquant.quant.integer import gelus, norms, power_norm, softmaxes, table
from fxquant.quant.integer.codes import Codes
from fxquant.quant.integer.dyadic import (
    dyadic,
    dyadic_row,
    requantize,
    requantize_channels,
    saturate,
)

Kind = Literal["softmax", "gelu", "layer_norm"]
FAMILIES = ("i-bert", "i-vit", "fq-vit")
METHODS = (*FAMILIES, "lut")
LOG_BITS = 6  # HNQ's; FQ-ViT's own is 4
SHARE_BITS = 14


@dataclass(frozen=True)
class Slot:
    """What a kernel is made for: codes in and out, and what the layer itself holds.

    ``gamma`` and ``beta``: float ``[C]`` of a LayerNorm. ``tokens``: size of the last axis.
    ``newton_steps``: 0 for exact roots in I-ViT's LayerNorm, 10 for the paper's.
    """

    kind: Kind
    given: Codes
    made: Codes
    tokens: int
    gamma: Tensor | None = None
    beta: Tensor | None = None
    newton_steps: int = 0


@dataclass(frozen=True)
class Learned:
    """What calibration finds for one method: ``shift`` of I-BERT's LayerNorm, PTF's parameters."""

    shift: int = 0
    scale: float = 0.0
    zero_point: int = 0
    alpha: tuple[int, ...] = field(default=())


def own_output(slot: Slot, method: str) -> Codes:
    """Codes that a method gives: those asked for, or the powers of two of Log-Int-Softmax."""
    if slot.kind == "softmax" and method == "fq-vit":
        return Codes(2.0**-SHARE_BITS, 0, 0, 1 << SHARE_BITS, torch.int16)
    return slot.made


def refusal(slot: Slot, method: str) -> str:
    """Why a method cannot stand at a slot; empty where it can."""
    tabled = method == "lut" and slot.kind != "layer_norm"
    tabled = tabled or (method == "fq-vit" and slot.kind == "gelu")
    if tabled and slot.given.high - slot.given.low > 255:
        return "a table takes 8-bit codes"
    return ""


def in_mix(kind: Kind, method: str) -> bool:
    """Whether a mix may take a method: the three families, but for FQ-ViT's float GELU."""
    return method in FAMILIES and not (kind == "gelu" and method == "fq-vit")


def kernels(slot: Slot, method: str, learned: Learned) -> tuple[Call, ...]:
    """Calls from codes ``slot.given`` to codes :func:`own_output`."""
    if slot.kind == "softmax":
        return _softmax(slot, method)
    return _gelu(slot, method) if slot.kind == "gelu" else _norm(slot, method, learned)


def _rescale(scale: float, made: Codes) -> Call:
    factor = dyadic(scale / made.scale)
    return Call(requantize, (factor.multiplier, factor.shift, *made.ends))


def _softmax(slot: Slot, method: str) -> tuple[Call, ...]:
    scale, bits = slot.given.scale, softmaxes.PROBABILITY_BITS
    if method == "i-bert":
        return Call(softmaxes.i_softmax, (scale, bits)), _rescale(2.0**-bits, slot.made)
    if method == "i-vit":
        return Call(softmaxes.shiftmax, (scale, bits)), _rescale(2.0 ** (1 - bits), slot.made)
    if method == "lut":
        entries = softmaxes.exp_table(scale, slot.tokens)
        return Call(softmaxes.table_softmax, (entries, bits)), _rescale(2.0**-bits, slot.made)
    width = min((slot.made.high - slot.made.low).bit_length(), LOG_BITS)
    return (
        Call(softmaxes.log_int_softmax, (scale, width)),
        Call(softmaxes.exp2_codes, (SHARE_BITS,)),
        Call(saturate, own_output(slot, method).ends),
    )


def _gelu(slot: Slot, method: str) -> tuple[Call, ...]:
    scale = slot.given.scale
    if method == "i-bert":
        return Call(gelus.i_gelu, (scale,)), _rescale(gelus.i_gelu_scale(scale), slot.made)
    if method == "i-vit":
        bits = gelus.SIGMOID_BITS
        step = gelus.shift_gelu_scale(scale, bits)
        return Call(gelus.shift_gelu, (scale, bits)), _rescale(step, slot.made)
    low = slot.given.low
    entries = table.function_table(
        table.gelu,
        scale=scale,
        low=low,
        high=slot.given.high,
        out_scale=slot.made.scale,
        zero_point=slot.made.zero_point,
        ends=(slot.made.low, slot.made.high),
        dtype=slot.made.dtype,
    )
    return (Call(table.lookup, (entries, low)),)


def _norm(slot: Slot, method: str, learned: Learned) -> tuple[Call, ...]:
    gamma, beta = slot.gamma, slot.beta
    assert gamma is not None
    assert beta is not None
    if method == "fq-vit":
        return _power_norm(slot, learned)
    ratios = gamma.double() * norms.norm_scale(slot.tokens) / slot.made.scale
    row = dyadic_row(ratios, beta.double() / slot.made.scale)
    affine = (row.multiplier, row.shift, row.addend, *slot.made.ends)
    if method == "i-bert":
        first = Call(norms.i_layer_norm, (learned.shift,))
    else:
        steps = slot.newton_steps if method == "i-vit" else 0
        first = Call(norms.shift_layer_norm, (steps,))
    return first, Call(requantize_channels, affine)


def power_codes(slot: Slot, learned: Learned) -> Call:
    """From the codes of the residual stream to PTF's 8-bit codes."""
    steps = learned.scale * torch.exp2(torch.tensor(learned.alpha, dtype=torch.float64))
    ratios = slot.given.scale / steps
    row = dyadic_row(ratios, -slot.given.zero_point * ratios)
    ends = (learned.zero_point, 0, 255, torch.uint8)
    return Call(requantize_channels, (row.multiplier, row.shift, row.addend, *ends))


def _power_norm(slot: Slot, learned: Learned) -> tuple[Call, ...]:
    assert slot.gamma is not None
    assert slot.beta is not None
    alpha = torch.tensor(learned.alpha, dtype=torch.int64)
    affine = power_norm.affine_of(slot.gamma, slot.beta, slot.made.scale)
    norm = Call(power_norm.power_layer_norm, (alpha, learned.zero_point, *affine))
    return power_codes(slot, learned), norm, Call(saturate, slot.made.ends)


def learn(slot: Slot, method: str, x: Tensor) -> Learned:
    """What a method must learn from calibration values ``x [..., C]`` of the slot's input."""
    if slot.kind != "layer_norm" or method not in {"i-bert", "fq-vit"}:
        return Learned()
    if method == "fq-vit":
        found = power_norm.power_factors(x, 8)
        return Learned(
            scale=found.scale, zero_point=found.zero_point, alpha=tuple(found.alpha.tolist())
        )
    y = norms.centred(slot.given.quantize(x)).to(torch.int64)
    return Learned(shift=norms.i_layer_norm_shift(int((y * y).sum(-1).max())))


def run(slot: Slot, method: str, learned: Learned, codes: Tensor) -> Tensor:
    """The float value of what a method makes of codes."""
    for call in kernels(slot, method, learned):
        codes = call(codes)
    return own_output(slot, method).dequantize(codes)
