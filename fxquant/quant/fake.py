"""Fake quantizers with straight-through gradients, as operators of the ``fxquant`` namespace.

``y = s (c + stop(q - c) - z)`` with ``c = clamp(x / s + z)`` and ``q = clamp(round(x / s) + z)``:
the value of quantize-dequantize, the gradient of the clamp, so 1 inside the range and 0 where a
value was clipped. ``c + stop(q - c)`` is exactly ``q``: the two lie within half a code of each
other, where float subtraction is exact. Composite, so autograd and Inductor see plain ATen.
Those of region and log quantizers are beside their quantizers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxquant.quant.library import define
from fxquant.quant.ops import quantize_per_token
from fxquant.quant.straight import per_head


def _through(ratio: Tensor, zero_point: Tensor | int, low: int, high: int) -> Tensor:
    """Codes as floats that pass the gradient of the clamp; ``ratio`` is ``x / s``."""
    kept = (ratio + zero_point).clamp(low, high)
    codes = (torch.round(ratio) + zero_point).clamp(low, high)
    return kept + (codes - kept).detach()


def _fake_quantize(
    x: Tensor, scale: float | Tensor, zero_point: int | Tensor, low: int, high: int
) -> Tensor:
    scales, zeros = per_head(scale, x), per_head(zero_point, x)
    return (_through(x * (1.0 / scales), zeros, low, high) - zeros) * scales


def spread_rows(scale: Tensor, x: Tensor) -> Tensor:
    """``[out]`` or ``[out, groups]`` scales, shaped for a weight ``[out, in, ...]``."""
    if scale.dim() == 2:
        return scale.repeat_interleave(x.shape[1] // scale.shape[1], dim=1)
    return scale.reshape(-1, *[1] * (x.dim() - 1))


def _fake_quantize_rows(x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    rows = spread_rows(scale, x)
    return _through(x * (1.0 / rows), 0, low, high) * rows


def _fake_quantize_per_token(x: Tensor, low: int, high: int) -> Tensor:
    scale: Tensor
    zero_point: Tensor
    _, scale, zero_point = quantize_per_token(x.detach(), low, high, torch.uint8)
    return (_through(x * (1.0 / scale), zero_point, low, high) - zero_point) * scale


_RANGE = "int quant_min, int quant_max"
fake_quantize = define(
    f"fake_quantize(Tensor x, float scale, int zero_point, {_RANGE}) -> Tensor", _fake_quantize
)
fake_quantize_heads = define(
    f"fake_quantize_heads(Tensor x, Tensor scale, Tensor zero_point, {_RANGE}) -> Tensor",
    _fake_quantize,
)
fake_quantize_rows = define(
    f"fake_quantize_rows(Tensor x, Tensor scale, {_RANGE}) -> Tensor", _fake_quantize_rows
)
fake_quantize_per_token = define(
    f"fake_quantize_per_token(Tensor x, {_RANGE}) -> Tensor", _fake_quantize_per_token
)


def storage_dtype(low: int, high: int) -> torch.dtype:
    """Smallest storage type of codes ``low .. high``."""
    if low < 0:
        return torch.int8 if low >= -128 else torch.int16
    return torch.uint8 if high <= 255 else torch.uint16
