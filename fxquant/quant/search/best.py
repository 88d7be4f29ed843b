"""The least of many errors, without computing most of them to the end."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Sequence
from dataclasses import replace

import torch

from fxquant.quant.qparams import QParams
from fxquant.quant.scheme import Scheme
from fxquant.quant.search.objective import Objective

Candidate = tuple[QParams, ...]  # one per head; of one member per tensor


def joined(scheme: Scheme, candidate: Candidate) -> QParams:
    """Parameters per tensor, or those of all heads with scales ``[H]``."""
    first = candidate[0]
    if scheme.granularity != "head":
        return replace(first, scheme=scheme)
    scale = torch.stack([one.scale for one in candidate])
    zero_point = torch.stack([one.zero_point for one in candidate])
    return replace(first, scheme=scheme, scale=scale, zero_point=zero_point)


def total(candidate: Candidate, objectives: tuple[Objective, ...]) -> float:
    """Squared error over all heads."""
    pairs = zip(candidate, objectives, strict=True)
    return sum(objective.total(qparams) for qparams, objective in pairs)


def best(
    candidates: Sequence[Candidate],
    objectives: tuple[Objective, ...],
    *,
    keep: int = 1,
    bound: float = math.inf,
) -> list[tuple[float, int]]:
    """Error and index of the ``keep`` best candidates, best first; the first wins ties.

    Those that cost more than ``bound`` are left out. Exact: chunks add non-negative errors, so a
    candidate whose first chunks already cost more than the best so far can be dropped. Candidates
    come in the order of their first chunk's error, which puts good ones first.
    """
    first = [(_partial(c, objectives, 0), index) for index, c in enumerate(candidates)]
    done: list[tuple[float, int]] = []
    for start, index in sorted(first):
        error = start
        for chunk in range(1, objectives[0].chunks):
            if error > bound:
                break
            error += _partial(candidates[index], objectives, chunk)
        if error <= bound:
            insort(done, (error, index))
            del done[keep:]
        if len(done) == keep:
            bound = done[-1][0]
    return done


def _partial(candidate: Candidate, objectives: tuple[Objective, ...], chunk: int) -> float:
    return sum(
        objective.partial(qparams, chunk)
        for qparams, objective in zip(candidate, objectives, strict=True)
    )
