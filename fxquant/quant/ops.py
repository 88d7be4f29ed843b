"""The operators a quantized graph is written in.

``quantized_decomposed`` is torch's interchange namespace; importing the module below registers
it, and this is the only place that touches ``torch.ao``. What it lacks lives in ``fxquant``:
composite operators, so that fake tensors, autograd and Inductor see plain ATen inside.
"""

from __future__ import annotations

import torch
import torch.ao.quantization.fx._decomposed  # registers quantized_decomposed
from torch import Tensor

from fxquant.quant import logarithm, region
from fxquant.quant.integer import operators as integer
from fxquant.quant.library import define, library

__all__ = ["library"]

SMALLEST_SCALE = torch.finfo(torch.float32).tiny * 2**10


def _quantize_per_token(
    x: Tensor, quant_min: int, quant_max: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, float32 scale and zero point ``[..., 1]`` from each token's own range.

    ``scale = (max - min) / (qmax - qmin)`` over the last axis, the range extended to hold 0. A
    token's result depends on nothing else in the batch. The zero point is an integral float32,
    which is what the arithmetic around it needs.
    """
    x = x.to(torch.float32)
    low = x.amin(-1, keepdim=True).clamp(max=0.0)
    high = x.amax(-1, keepdim=True).clamp(min=0.0)
    scale = ((high - low) / (quant_max - quant_min)).clamp(min=SMALLEST_SCALE)
    inverse = 1.0 / scale
    zero_point = torch.round(quant_min - low * inverse).clamp(quant_min, quant_max)
    codes = (torch.round(x * inverse) + zero_point).clamp(quant_min, quant_max).to(dtype)
    return codes, scale, zero_point


def _dequantize_per_token(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """``scale * (codes - zero_point)``, float32."""
    return (codes.to(torch.float32) - zero_point) * scale


decomposed = torch.ops.quantized_decomposed
quantize_per_tensor = decomposed.quantize_per_tensor.default
dequantize_per_tensor = decomposed.dequantize_per_tensor.default
quantize_per_channel = decomposed.quantize_per_channel.default
dequantize_per_channel = decomposed.dequantize_per_channel.default
dequantize_per_channel_group = decomposed.dequantize_per_channel_group.default
quantize_per_token = define(
    "quantize_per_token(Tensor x, int quant_min, int quant_max, ScalarType dtype)"
    " -> (Tensor, Tensor, Tensor)",
    _quantize_per_token,
)
dequantize_per_token = define(
    "dequantize_per_token(Tensor codes, Tensor scale, Tensor zero_point) -> Tensor",
    _dequantize_per_token,
)
quantize_region = region.quantize_region
dequantize_region = region.dequantize_region
quantize_region_per_head = region.quantize_region_per_head
dequantize_region_per_head = region.dequantize_region_per_head
quantize_log = logarithm.quantize_log
dequantize_log = logarithm.dequantize_log
quantize_log_per_head = logarithm.quantize_log_per_head
dequantize_log_per_head = logarithm.dequantize_log_per_head

INTEGER = integer.OPERATORS
"""Operators of integer arithmetic, see :mod:`fxquant.quant.integer`."""

QUANTIZE = frozenset(
    {
        quantize_per_tensor,
        quantize_per_channel,
        quantize_per_token,
        quantize_region,
        quantize_region_per_head,
        quantize_log,
        quantize_log_per_head,
    }
)
DEQUANTIZE = frozenset(
    {
        dequantize_per_tensor,
        dequantize_per_channel,
        dequantize_per_channel_group,
        dequantize_per_token,
        dequantize_region,
        dequantize_region_per_head,
        dequantize_log,
        dequantize_log_per_head,
    }
)
