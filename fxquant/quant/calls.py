"""The operators, with their arguments, that a quantizer is in a graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fxquant.errors import SchemeError
from fxquant.quant import ops
from fxquant.quant.qparams import QParams


@dataclass(frozen=True)
class Call:
    """``target(x, *arguments)``; tensors among the arguments are buffers in a graph."""

    target: Callable[..., Any]
    arguments: tuple[Any, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """Carry the call out."""
        result: Tensor = self.target(x, *self.arguments)
        return result


def activation_calls(qparams: QParams) -> tuple[Call, Call]:
    """Quantize and dequantize of a static activation, ``[..., C]`` or ``[B, H, N, d]`` per head.

    Scales per tensor are numbers, scales (and zero points) per head tensors ``[H]``.
    """
    scheme = qparams.scheme
    heads = scheme.granularity == "head"
    if scheme.granularity not in {"tensor", "head"}:
        raise SchemeError(
            f"no static operators for a range per {scheme.granularity}",
            where=f"scheme {scheme.text()}",
            fix="use granularity tensor or head",
        )
    scale = qparams.scale if heads else float(qparams.scale)
    if scheme.kind == "region":
        form = (scale, qparams.shift, scheme.bits, qparams.split)
        if heads:
            targets = ops.quantize_region_per_head, ops.dequantize_region_per_head
        else:
            targets = ops.quantize_region, ops.dequantize_region
        return Call(targets[0], form), Call(targets[1], form)
    if scheme.kind != "uniform":
        levels = (scale, *qparams.exponent, qparams.offset, scheme.bits)
        if heads:
            targets = ops.quantize_log_per_head, ops.dequantize_log_per_head
        else:
            targets = ops.quantize_log, ops.dequantize_log
        return Call(targets[0], levels), Call(targets[1], (*levels, qparams.fraction_levels))
    ends = (scheme.quant_min, scheme.quant_max, scheme.dtype)
    if heads:
        uniform: tuple[Any, ...] = (scale, qparams.zero_point, 1, *ends)
        targets = ops.quantize_per_channel, ops.dequantize_per_channel
    else:
        uniform = (scale, int(qparams.zero_point), *ends)
        targets = ops.quantize_per_tensor, ops.dequantize_per_tensor
    return Call(targets[0], uniform), Call(targets[1], uniform)
