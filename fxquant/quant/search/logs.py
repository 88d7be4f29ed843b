"""Scale, and for AdaLog the base, of a log quantizer (papers, sections 5.2 and 5.3)."""

from __future__ import annotations

from dataclasses import replace

import torch

from fxquant.quant.logarithm import ADALOG_DENOMINATOR, GELU_OFFSET
from fxquant.quant.qparams import SMALLEST_STEP, QParams
from fxquant.quant.scheme import Scheme
from fxquant.quant.search.best import Candidate, best
from fxquant.quant.search.objective import Objective

LARGEST_BASE = 150
_KEPT = 6
# Scales as powers of two of the largest value: eighths of an octave from above it to an eighth.
_OCTAVES = [-step / 8 for step in range(-2, 25)]
_NEAR = [step / 32 for step in range(-3, 4)]


def offset_of(low: float) -> float:
    """What makes values from ``low`` up non-negative.

    After GELU the papers' constant: calibration hardly ever meets the very minimum.
    """
    if low >= 0:
        return 0.0
    return GELU_OFFSET if 0.9 * GELU_OFFSET < -low <= GELU_OFFSET else -low


def plain_log(
    scheme: Scheme, high: float, offset: float, *, base: int = ADALOG_DENOMINATOR
) -> QParams:
    """Level 0 at the largest value; AdaLog with base 2, as log2."""
    scale = torch.tensor(high + offset, dtype=torch.float64).to(torch.float32)
    if float(scale) < SMALLEST_STEP:
        scale = torch.ones(())
    base = base if scheme.kind == "adalog" else 0
    return QParams(scheme, scale, torch.zeros((), dtype=torch.int64), base=base, offset=offset)


def search_scale(plain: QParams, objective: Objective) -> tuple[float, QParams]:
    """Error and parameters of the best scale at a given base; ``plain`` is among them."""
    error, found = _best_octave(plain, [0.0, *_OCTAVES], objective)
    return min(((error, found), _best_octave(found, _NEAR, objective)), key=lambda one: one[0])


def _best_octave(
    qparams: QParams, octaves: list[float], objective: Objective
) -> tuple[float, QParams]:
    made = [_moved(qparams, octave) for octave in octaves]
    error, index = best([(one,) for one in made], (objective,))[0]
    return error, made[index]


def search_log(
    scheme: Scheme, low: list[float], high: list[float], objectives: tuple[Objective, ...]
) -> list[QParams]:
    """A scale for each head; for AdaLog one base for all, searched with the scales.

    AdaLog's search is coarse to fine over (scale, base), three rounds that go on from the six best,
    as FPCS does; its grids are ours [I]: bases 5 apart and scales a quarter octave, then 2 and an
    eighth, then 1 and a thirty-second. It starts from log2's best scales, so it is never worse.
    """
    offset = offset_of(min(low))
    plain = tuple(plain_log(scheme, top, offset) for top in high)
    found = [search_scale(one, o) for one, o in zip(plain, objectives, strict=True)]
    least, parameters = sum(error for error, _ in found), [qparams for _, qparams in found]
    if scheme.kind != "adalog":
        return parameters
    base = _search_base(plain, objectives)
    rebased = [replace(one, base=base) for one in plain]
    again = [search_scale(one, o) for one, o in zip(rebased, objectives, strict=True)]
    if sum(error for error, _ in again) < least:
        parameters = [qparams for _, qparams in again]
    return parameters


def _search_base(plain: Candidate, objectives: tuple[Objective, ...]) -> int:
    """The best base, all heads' scales moved alike."""
    points = [(base, -step / 4) for base in range(5, LARGEST_BASE + 1, 5) for step in range(-1, 9)]
    for bases, octaves in (((-2, 0, 2), 1 / 8), ((-1, 0, 1), 1 / 32), ((), 0.0)):
        made = [tuple(_moved(one, octave, base) for one in plain) for base, octave in points]
        kept = [points[index] for _, index in best(made, objectives, keep=_KEPT)]
        around = {
            (min(max(base + step, 1), LARGEST_BASE), octave + way * octaves)
            for base, octave in kept
            for step in bases
            for way in (-1, 0, 1)
        }
        points = sorted(around)
    return kept[0][0]


def _moved(qparams: QParams, octaves: float, base: int | None = None) -> QParams:
    scale = (qparams.scale.to(torch.float64) * 2.0**octaves).to(torch.float32)
    return replace(qparams, scale=scale, base=qparams.base if base is None else base)
