"""OPT-m: clipping and step ratio of a two-region quantizer, together (papers, section 2a).

The papers' objective and region definition are not public. Chosen here [I]: Δ2 over PTQ4ViT's 100
clipping values in [0.01, 1.2] of the largest magnitude, Δ1 = 2^-m Δ2, every pair of the two tried.
"""

from __future__ import annotations

import math

import torch

from fxquant.quant.qparams import SMALLEST_STEP, QParams, Split
from fxquant.quant.region import LARGEST_SHIFT
from fxquant.quant.scheme import Scheme
from fxquant.quant.search.best import best
from fxquant.quant.search.objective import Objective
from fxquant.quant.search.uniform import COARSE


def region_qparams(scheme: Scheme, large_step: float, shift: int, split: Split) -> QParams:
    """Parameters with ``Δ2 = large_step`` and ``Δ1 = 2^-shift Δ2``, scalar."""
    # Δ2 is rounded, not Δ1: halving is exact, so equal Δ2 stay equal whatever the ratio.
    scale = torch.tensor(large_step, dtype=torch.float64).to(torch.float32) * 2.0**-shift
    if float(scale) < SMALLEST_STEP:
        scale = torch.ones(())
    return QParams(scheme, scale, torch.zeros((), dtype=torch.int64), shift=shift, split=split)


def split_of(low: float) -> Split:
    """``sign`` where the data has negatives, else ``magnitude``."""
    return "sign" if low < 0 else "magnitude"


def plain_region(scheme: Scheme, reach: float, split: Split) -> QParams:
    """``m = 0`` up to the largest magnitude ``reach``: the symmetric signed uniform quantizer."""
    return region_qparams(scheme, reach / _largest(scheme), 0, split)


def best_of_shift(
    scheme: Scheme,
    reach: float,
    split: Split,
    shift: int,
    objective: Objective,
    *,
    bound: float = math.inf,
) -> tuple[float, QParams] | None:
    """Error and parameters of the best clipping at one m; at m = 0 the plain one is among them.

    None where every clipping costs more than ``bound``.
    """
    shares = [1.0, *COARSE] if shift == 0 else COARSE
    step = reach / _largest(scheme)
    made = [region_qparams(scheme, share * step, shift, split) for share in shares]
    found = best([(qparams,) for qparams in made], (objective,), bound=bound)
    return (found[0][0], made[found[0][1]]) if found else None


def search_region(
    scheme: Scheme, reaches: list[float], split: Split, objectives: tuple[Objective, ...]
) -> list[QParams]:
    """One m for all heads, a clipping for each: never worse than any fixed m; ties to larger m."""
    least = math.inf
    found: list[QParams] = []
    # From the middle, where the least usually is: what comes later is dropped early against it.
    for shift in sorted(range(LARGEST_SHIFT + 1), key=lambda m: abs(m - LARGEST_SHIFT // 2)):
        error, made = 0.0, []
        for reach, objective in zip(reaches, objectives, strict=True):
            rest = least - error  # what the remaining heads may cost
            one = best_of_shift(scheme, reach, split, shift, objective, bound=rest)
            if one is None:
                break
            error += one[0]
            made.append(one[1])
        if len(made) < len(reaches):
            continue
        if error < least or (error == least and shift > found[0].shift):
            least, found = error, made
    return found


def _largest(scheme: Scheme) -> int:
    return (1 << (scheme.bits - 1)) - 1
