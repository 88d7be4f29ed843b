"""Clipping of a uniform quantizer: a coarse grid over the whole range, then fine ones around."""

from __future__ import annotations

import torch
from torch import Tensor

from fxquant.quant.qparams import QParams, qparams_from_range
from fxquant.quant.scheme import Scheme
from fxquant.quant.search.best import best
from fxquant.quant.search.objective import Objective

# Shares of the observed range, as in PTQ4ViT: 1.2 because a wider step can meet the data better.
COARSE = torch.linspace(0.01, 1.2, 100, dtype=torch.float64).tolist()
_STEP = COARSE[1] - COARSE[0]
_FINE = torch.linspace(-_STEP, _STEP, 21, dtype=torch.float64).tolist()
# One end at a time, as shares of where the joint search left it: wide, then close.
_ENDS = (
    torch.linspace(0.4, 1.4, 41, dtype=torch.float64).tolist(),
    torch.linspace(0.96, 1.04, 17, dtype=torch.float64).tolist(),
)


def plain_uniform(scheme: Scheme, low: float, high: float) -> QParams:
    """The whole observed range."""
    return qparams_from_range(scheme, _wide(low), _wide(high))


def search_uniform(scheme: Scheme, low: float, high: float, objective: Objective) -> QParams:
    """``argmin`` over clipping ranges; the whole range is among them.

    Symmetric schemes have one clipping value. Affine ones first shrink both ends by one share, then
    each end by itself, twice.
    """

    def at(ends: tuple[float, float]) -> QParams:
        return plain_uniform(scheme, *ends)

    def best_of(ranges: list[tuple[float, float]]) -> tuple[float, float]:
        found = best([(at(ends),) for ends in ranges], (objective,))
        return ranges[found[0][1]]

    def scaled(share: float) -> tuple[float, float]:
        return share * low, share * high

    shares = {scaled(share): share for share in [1.0, *COARSE]}
    share = shares[best_of(list(shares))]
    ends = best_of([scaled(share), *(scaled(share + step) for step in _FINE if share + step > 0)])
    if scheme.symmetric:
        return at(ends)
    for steps in _ENDS:
        if low < 0:
            ends = best_of([ends, *((ends[0] * step, ends[1]) for step in steps)])
        if high > 0:
            ends = best_of([ends, *((ends[0], ends[1] * step) for step in steps)])
    return at(ends)


def _wide(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
