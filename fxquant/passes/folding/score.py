"""How much quantization disturbs the outputs of linears, before and after a migration."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.passes.folding.migration import Migration
from fxquant.passes.folding.views import View
from fxquant.passes.running import fast_linear
from fxquant.quant import ops
from fxquant.quant.observers import make_observer
from fxquant.quant.qparams import qparams_from_range
from fxquant.quant.scheme import Scheme
from fxquant.quant.uniform import fake_quantize
from fxquant.quant.weight import weight_qparams

SCORED = 512  # rows per linear


@dataclass(frozen=True)
class Reading:
    """A linear's input, its weight ``[O, C]`` and its exact output on the scored rows."""

    view: View
    weight: Tensor
    exact: Tensor

    @staticmethod
    def of(view: View, weight: Tensor) -> Reading:
        """The reading of a weight at a view."""
        return Reading(view, weight, fast_linear(scored(view), weight))


def scored(view: View) -> Tensor:
    """The rows that errors are measured on, float32 ``[n, C]``, spread over all batches."""
    step = max(1, -(-view.rows.shape[0] // SCORED))
    return view.rows[::step].contiguous()


def output_error(
    readings: list[Reading], migrations: list[Migration], activation: Scheme, weight: Scheme
) -> float:
    """``sum ||Y W^T - q(Y') q(W')^T - (W shift)^T||^2 / sum ||Y W^T||^2`` over all linears.

    ``Y' = (Y - shift) scale`` and ``W' = W / scale``; 0 is exact. The ranges of a min-max scheme
    come from all rows seen, those of other rules from the scored rows.
    """
    noise = signal = 0.0
    for reading, migration in zip(readings, migrations, strict=True):
        shift, scale = (t.to(torch.float32) for t in (migration.shift, migration.scale))
        moved = reading.weight / scale
        moved = fake_quantize(moved, weight_qparams(moved, weight))
        values = _quantized(
            reading.view, (scored(reading.view) - shift) * scale, migration, activation
        )
        wanted = reading.exact - reading.weight @ shift
        noise += float((wanted - fast_linear(values, moved)).square().sum(dtype=torch.float64))
        signal += float(reading.exact.square().sum(dtype=torch.float64))
    return noise / max(signal, torch.finfo(torch.float32).tiny)


def _quantized(view: View, rows: Tensor, migration: Migration, scheme: Scheme) -> Tensor:
    if scheme.rule == "dynamic":
        codes = ops.quantize_per_token(rows, scheme.quant_min, scheme.quant_max, scheme.dtype)
        values: Tensor = ops.dequantize_per_token(*codes)
        return values
    if scheme.rule == "minmax":
        low, high = ((end - migration.shift) * migration.scale for end in (view.low, view.high))
        return fake_quantize(rows, qparams_from_range(scheme, low.amin(), high.amax()))
    observer = make_observer(scheme)
    observer.update(rows)
    return fake_quantize(rows, observer.qparams(scheme))
