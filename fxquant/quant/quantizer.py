"""Codes and values of any kind of quantizer, equal to what its operators make in a graph."""

from __future__ import annotations

from torch import Tensor

from fxquant.quant import uniform
from fxquant.quant.calls import activation_calls
from fxquant.quant.qparams import QParams


def quantize(x: Tensor, qparams: QParams, *, axis: int = 0) -> Tensor:
    """Codes of ``x`` (any float tensor), same shape; uint8, int8 or the scheme's own type.

    Granularity ``head`` takes ``[B, H, ...]``; ``axis`` is that of granularity ``channel``.
    """
    if qparams.scheme.kind == "uniform":
        return uniform.quantize(x, qparams, axis=axis)
    return activation_calls(qparams)[0](x)


def dequantize(codes: Tensor, qparams: QParams, *, axis: int = 0) -> Tensor:
    """Float32 values of ``codes``; same shape."""
    if qparams.scheme.kind == "uniform":
        return uniform.dequantize(codes, qparams, axis=axis)
    return activation_calls(qparams)[1](codes)


def fake_quantize(x: Tensor, qparams: QParams, *, axis: int = 0) -> Tensor:
    """``dequantize(quantize(x))``: the float32 value a quantized graph sees in place of ``x``."""
    return dequantize(quantize(x, qparams, axis=axis), qparams, axis=axis)
