"""Integer operators with gradients: the values of the kernels, the derivatives of what they stand
for.

Codes travel as floats. Every function takes the arguments of its operator, gives exactly its
result (as far as float32 holds integers: beyond 2^24 accumulators round), and passes the gradient
of the real function, cut where codes are clipped. Weights are float masters in units of codes, so
one step of an optimizer means the same in every layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fxquant.quant import ops
from fxquant.quant.integer import (
    dyadic,
    gelus,
    norms,
    power_norm,
    products,
    softmaxes,
    table,
)

BIAS_UNIT = 64  # a bias master counts in these: about what one code of a weight moves a sum by


def through(surrogate: Tensor, exact: Tensor) -> Tensor:
    """The value of ``exact``, the gradient of ``surrogate``."""
    return exact.to(surrogate.dtype).detach() + (surrogate - surrogate.detach())


def integers(x: Tensor) -> Tensor:
    """int64 codes behind floats that carry them; integers pass as they are."""
    return torch.round(x.detach()).to(torch.int64) if x.is_floating_point() else x


def quantize(x: Tensor, scale: float, zero_point: int, low: int, high: int, *_: Any) -> Tensor:
    """``clamp(round(x / s) + z)``."""
    ratio = x * (1.0 / scale)
    kept = (ratio + zero_point).clamp(low, high)
    return through(kept, (torch.round(ratio) + zero_point).clamp(low, high))


def dequantize(q: Tensor, scale: float, zero_point: int, *_: Any) -> Tensor:
    """``s (q - z)``."""
    return (q.to(torch.float32) - zero_point) * scale


def saturate(q: Tensor, zero_point: int, low: int, high: int, *_: Any) -> Tensor:
    """``clamp(q + z)``."""
    return (q.to(torch.float32) + zero_point).clamp(low, high)


def requantize(
    q: Tensor, multiplier: int, shift: int, zero_point: int, low: int, high: int, *_: Any
) -> Tensor:
    """``clamp(q m 2^-e + z)``, rounded as the integers are."""
    ends = (zero_point, low, high, torch.int64)
    exact = dyadic.requantize(integers(q), multiplier, shift, *ends)
    return through((q * math.ldexp(multiplier, -shift) + zero_point).clamp(low, high), exact)


def requantize_channels(
    q: Tensor,
    multiplier: Tensor,
    shift: Tensor,
    addend: Tensor,
    zero_point: int,
    low: int,
    high: int,
    *_: Any,
) -> Tensor:
    """``clamp((q m + a) 2^-e + z)`` per channel."""
    ends = (zero_point, low, high, torch.int64)
    exact = dyadic.requantize_channels(integers(q), multiplier, shift, addend, *ends)
    unit = torch.exp2(-shift.to(torch.float64))
    ratio, offset = ((v * unit).to(torch.float32) for v in (multiplier, addend))
    return through((q * ratio + (offset + zero_point)).clamp(low, high), exact)


def code_end(weight: Tensor) -> int:
    """The largest code of the fewest bits that hold a weight's codes: 127 for 8 bits."""
    largest = max(int(weight.max()), -int(weight.min()) - 1, 1)
    return (1 << largest.bit_length()) - 1


def rounded_weight(master: Tensor, end: int) -> Tensor:
    """Codes of a weight's master, ``-end - 1 .. end``; the gradient ends where they do."""
    kept = master.clamp(-end - 1, end)
    return through(kept, torch.round(kept))


def rounded_bias(master: Tensor) -> Tensor:
    """Codes of a bias's float64 master, which counts in units of ``BIAS_UNIT``."""
    wide = master * BIAS_UNIT
    return through(wide, torch.round(wide))


def int_linear(x: Tensor, weight: Tensor, bias: Tensor, offset: int, end: int) -> Tensor:
    """``(x - offset) round(W) + round(b)``; ``end`` as :func:`code_end` has it."""
    codes = rounded_weight(weight, end)
    return F.linear(x.to(torch.float32) - offset, codes, rounded_bias(bias).to(torch.float32))


def int_matmul(a: Tensor, b: Tensor, a_zero: int, b_zero: int) -> Tensor:
    """``(a - z_a) (b - z_b)``."""
    return (a.to(torch.float32) - a_zero) @ (b.to(torch.float32) - b_zero)


def int_product(a: Tensor, b: Tensor, a_zero: int, b_zero: int) -> Tensor:
    """``(a - z_a) (b - z_b)`` element by element, in float64: products of 16 bits need 31."""
    return (a.to(torch.float64) - a_zero) * (b.to(torch.float64) - b_zero)


def int_sum(x: Tensor, dims: list[int], keepdim: bool, zero_point: int) -> Tensor:  # noqa: FBT001
    """``Σ (x - z)``."""
    return (x.to(torch.float32) - zero_point).sum(dims, keepdim=keepdim)


def i_softmax(q: Tensor, scale: float, bits: int) -> Tensor:
    """Gradient of ``2^k softmax``."""
    exact = softmaxes.i_softmax(integers(q), scale, bits)
    return through(torch.softmax(q * scale, -1) * 2.0**bits, exact)


def shiftmax(q: Tensor, scale: float, bits: int) -> Tensor:
    """Gradient of ``2^(k-1) softmax``."""
    exact = softmaxes.shiftmax(integers(q), scale, bits)
    return through(torch.softmax(q * scale, -1) * 2.0 ** (bits - 1), exact)


def log_int_softmax(q: Tensor, scale: float, bits: int) -> Tensor:
    """Gradient of ``-log2 softmax``, none where a share was flushed."""
    exact = softmaxes.log_int_softmax(integers(q), scale, bits)
    kept = (exact != softmaxes.FLUSHED).to(torch.float32)
    return through(torch.log_softmax(q * scale, -1) * (-1.0 / math.log(2.0)) * kept, exact)


def exp2_codes(codes: Tensor, one: int) -> Tensor:
    """Gradient of ``2^(one - code)``."""
    return through(torch.exp2(one - codes), softmaxes.exp2_codes(integers(codes), one))


def table_softmax(q: Tensor, entries: Tensor, bits: int) -> Tensor:
    """Gradient of ``2^k softmax`` at the step that the table was made for."""
    scale = math.log(float(entries[0]) / max(float(entries[1]), 1.0))
    exact = softmaxes.table_softmax(integers(q), entries, bits)
    return through(torch.softmax(q * scale, -1) * 2.0**bits, exact)


def i_gelu(q: Tensor, scale: float) -> Tensor:
    """Gradient of GELU."""
    value = F.gelu(q * scale) * (1.0 / gelus.i_gelu_scale(scale))
    return through(value, gelus.i_gelu(integers(q), scale))


def shift_gelu(q: Tensor, scale: float, bits: int) -> Tensor:
    """Gradient of GELU."""
    value = F.gelu(q * scale) * (1.0 / gelus.shift_gelu_scale(scale, bits))
    return through(value, gelus.shift_gelu(integers(q), scale, bits))


def lookup(q: Tensor, entries: Tensor, low: int) -> Tensor:
    """Gradient of the table: half the difference of an entry's neighbours."""
    codes = integers(q)
    wide = F.pad(entries.to(torch.float32)[None, None], (1, 1), mode="replicate")[0, 0]
    slopes = (wide[2:] - wide[:-2]) / 2
    slope = slopes[(codes - low).clamp(0, len(slopes) - 1)]
    return through(q * slope, table.lookup(codes, entries, low))


def i_layer_norm(q: Tensor, shift: int) -> Tensor:
    """Gradient of LayerNorm without scale and shift."""
    return through(_normalised(q), norms.i_layer_norm(integers(q), shift))


def shift_layer_norm(q: Tensor, newton_steps: int) -> Tensor:
    """Gradient of LayerNorm without scale and shift."""
    return through(_normalised(q), norms.shift_layer_norm(integers(q), newton_steps))


def _normalised(q: Tensor) -> Tensor:
    channels = q.shape[-1]
    return F.layer_norm(q.to(torch.float32), (channels,)) * (1.0 / norms.norm_scale(channels))


def power_layer_norm(
    q: Tensor, alpha: Tensor, zero_point: int, gain: Tensor, offset: Tensor
) -> Tensor:
    """Gradient of LayerNorm over the channels' powers of two."""
    exact = power_norm.power_layer_norm(integers(q), alpha, zero_point, gain, offset)
    unit = 2.0**-power_norm.FRACTION_BITS
    x = (q.to(torch.float32) - zero_point) * torch.exp2(alpha.to(torch.float32))
    y = F.layer_norm(x, (q.shape[-1],))
    return through(y * (gain * unit).to(torch.float32) + (offset * unit).to(torch.float32), exact)


TRAINED: dict[Any, Callable[..., Tensor]] = {
    ops.quantize_per_tensor: quantize,
    ops.dequantize_per_tensor: dequantize,
    dyadic.saturate: saturate,
    dyadic.requantize: requantize,
    dyadic.requantize_channels: requantize_channels,
    products.int_linear: int_linear,
    products.int_matmul: int_matmul,
    products.int_product: int_product,
    products.int_sum: int_sum,
    softmaxes.i_softmax: i_softmax,
    softmaxes.shiftmax: shiftmax,
    softmaxes.log_int_softmax: log_int_softmax,
    softmaxes.exp2_codes: exp2_codes,
    softmaxes.table_softmax: table_softmax,
    gelus.i_gelu: i_gelu,
    gelus.shift_gelu: shift_gelu,
    table.lookup: lookup,
    norms.i_layer_norm: i_layer_norm,
    norms.shift_layer_norm: shift_layer_norm,
    power_norm.power_layer_norm: power_layer_norm,
}
"""What stands for each operator while a graph is trained."""
