"""The uniform affine quantizer: ``q = clamp(round(x / s) + z, qmin, qmax)``, ``x' = s (q - z)``.

Rounding is half to even (``torch.round``), and the integer zero point is added after rounding
(papers, section 0); the division is a multiplication by the reciprocal, as in
``quantized_decomposed``, so that codes made here equal those made inside a graph. What is not
uniform is in :mod:`fxquant.quant.quantizer`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxquant.errors import InputError
from fxquant.quant.qparams import QParams


def _spread(parameter: Tensor, qparams: QParams, x: Tensor, axis: int) -> Tensor:
    """Shape ``parameter`` so that it broadcasts against ``x`` for the scheme's granularity."""
    granularity = qparams.scheme.granularity
    if granularity in {"channel", "head"}:
        shape = [1] * x.dim()
        shape[1 if granularity == "head" else axis] = -1
        return parameter.reshape(shape)
    if granularity == "group":
        size = qparams.scheme.group_size
        if x.dim() != 2 or x.shape[1] % size:
            raise InputError(
                f"groups of {size} do not divide a weight of shape {tuple(x.shape)}",
                fix="choose a group size that divides the input channels, or per-channel scales",
            )
        return parameter.repeat_interleave(size, dim=1)
    return parameter


def quantize(x: Tensor, qparams: QParams, *, axis: int = 0) -> Tensor:
    """Codes of ``x`` (any float tensor) in the scheme's storage dtype; same shape as ``x``."""
    scheme = qparams.scheme
    inverse = 1.0 / _spread(qparams.scale, qparams, x, axis)
    zero_point = _spread(qparams.zero_point, qparams, x, axis)
    codes = torch.round(x.to(torch.float32) * inverse) + zero_point
    return codes.clamp(scheme.quant_min, scheme.quant_max).to(scheme.dtype)


def dequantize(codes: Tensor, qparams: QParams, *, axis: int = 0) -> Tensor:
    """Float32 values of ``codes``; same shape."""
    zero_point = _spread(qparams.zero_point, qparams, codes, axis)
    scale = _spread(qparams.scale, qparams, codes, axis)
    return (codes.to(torch.int32) - zero_point).to(torch.float32) * scale


def fake_quantize(x: Tensor, qparams: QParams, *, axis: int = 0) -> Tensor:
    """``dequantize(quantize(x))``: the float32 value a quantized graph sees in place of ``x``."""
    return dequantize(quantize(x, qparams, axis=axis), qparams, axis=axis)
