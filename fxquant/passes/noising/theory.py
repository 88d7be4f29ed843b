"""What the theorem of NoisyQuant promises for a sample, before anything is measured."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxquant.passes.noising.search import Sample
from fxquant.quant import ops
from fxquant.quant.noise import expected_error, threshold_distance


def provable_share(sample: Sample, n: float, clip: float) -> float:
    """Share of the sampled values whose expected error ``N ~ U(-n, n)`` provably lowers.

    By the exact expectation for any n, which within ``x <= n <= 2b - x`` is the paper's condition
    ``x < n (1 - sqrt(n / 3b))``, for a distance x from the rounding threshold and a step 2b
    (papers, 3b). Values that are clipped do not count as helped.
    """
    if n <= 0.0:
        return 0.0
    helped = 0
    for step, where in _regions(sample, clip):
        distance = threshold_distance(sample.rows[where].to(torch.float64), step)
        after = expected_error(distance, n, step / 2)
        helped += int((after < expected_error(distance, 0.0, step / 2)).sum())
    return helped / sample.rows.numel()


def _regions(sample: Sample, clip: float) -> list[tuple[float, Tensor]]:
    """Each step with the values that it rounds and does not clip."""
    rows, step = sample.rows, sample.site.step * clip
    arguments: Any = sample.site.quantize.args
    if sample.site.quantize.target is ops.quantize_per_tensor:
        zero_point, low, high = arguments[2:5]
        codes = rows / step + zero_point
        return [(step, (codes >= low) & (codes <= high))]
    shift, bits, split = arguments[2:5]
    half, coarse = 1 << (bits - 1), step * 2.0**shift
    fine = rows < 0 if split == "sign" else torch.round(rows / step) < half
    reached = rows >= (-half * step if split == "sign" else 0.0)
    return [(step, fine & reached), (coarse, ~fine & (rows <= (half - 1) * coarse))]
