"""Two regions against the one step there is, on one sample."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxquant.graph.layers import Layer
from fxquant.passes.data import at_hand
from fxquant.passes.running import Runner, in_turn
from fxquant.passes.searching import Search, weigh
from fxquant.passes.watched import watched_tensors
from fxquant.quant.calibration import Calibration, parts_of
from fxquant.quant.memory import return_free_memory
from fxquant.quant.qparams import QParams, Split
from fxquant.quant.region import LARGEST_SHIFT
from fxquant.quant.scheme import Scheme
from fxquant.quant.search.best import Candidate, joined, total
from fxquant.quant.search.objective import Objective, make_objectives
from fxquant.quant.search.region import best_of_shift, split_of

_CHUNK = 4  # images run at once


@dataclass(frozen=True)
class Sample:
    """What a search sees of one tensor: an objective and a range per head, or one of each."""

    objectives: tuple[Objective, ...]
    lows: tuple[float, ...]
    highs: tuple[float, ...]

    @property
    def signal(self) -> float:
        """Energy of what the objective measures errors of."""
        return sum(_energy(objective) for objective in self.objectives)


@dataclass(frozen=True)
class Outcome:
    """Two regions, or None where ``current`` makes no larger error; errors relative to the signal.

    ``errors``: by m, the least error of every m that was tried; ``before``: that of the quantizer
    there was.
    """

    qparams: QParams | None
    before: float
    errors: Mapping[int, float]

    @property
    def after(self) -> float:
        """The least of all errors."""
        return min(self.before, *self.errors.values())


def gathered(
    graph_module: GraphModule,
    sites: Mapping[str, tuple[Layer, Scheme]],
    calibration: Calibration,
    images: int,
    rows: int,
) -> dict[str, Sample]:
    """Samples by site; each scheme names granularity and objective. The graph runs once, and again
    with gradients where they weigh."""
    watched = watched_tensors(graph_module, sites)
    searches = [Search(graph_module, one, rows) for one in watched]
    outputs: dict[str, list[Callable[[Tensor], None]]] = defaultdict(list)
    for search in searches:
        outputs[search.watched.source.name].append(search.update)
        if search.gram is not None and search.watched.partner is not None:
            outputs[search.watched.partner.name].append(search.gram.update)
    leaves = at_hand(calibration, images, where="pass region")
    runner = Runner(graph_module, outputs={name: in_turn(calls) for name, calls in outputs.items()})
    for part in parts_of(leaves, _CHUNK):
        runner(part)
        return_free_memory()
    weighed = [search for search in searches if search.importance]
    if weighed:
        weigh(graph_module, weighed, leaves)
    made: dict[str, Sample] = {}
    for search in searches:
        sample = _sample(search)
        made |= dict.fromkeys(search.watched.sites, sample)
    return made


def compare(scheme: Scheme, sample: Sample, current: QParams, span: float) -> Outcome:
    """The best m with the best Δ1 (per head), against ``current``; the largest m wins ties.

    ``span``: what aligned codes may span, which bounds m.
    """
    split = split_of(min(sample.lows))
    signal = max(sample.signal, math.ulp(0.0))
    least = before = total(_apart(current), sample.objectives)
    found: QParams | None = None
    errors: dict[int, float] = {}
    for shift in range(largest_shift(scheme.bits, split, span), -1, -1):
        error, made = _best_at(scheme, sample, split, shift)
        errors[shift] = error / signal
        if error < least:
            least, found = error, made
    return Outcome(found, before / signal, errors)


def largest_shift(bits: int, split: Split, span: float) -> int:
    """The largest m of which ``2^(b-1)`` negative steps, where there is a sign, and ``2^(b-1) - 1``
    large positive ones span no more than ``span`` small steps; 0 where none does."""
    half = 1 << (bits - 1)
    negative = half if split == "sign" else 0
    fitting = [m for m in range(LARGEST_SHIFT + 1) if negative + ((half - 1) << m) <= span]
    return max(fitting, default=0)


def _best_at(scheme: Scheme, sample: Sample, split: Split, shift: int) -> tuple[float, QParams]:
    """Error over all heads and parameters of the best clipping at one m."""
    single, error, made = replace(scheme, granularity="tensor"), 0.0, []
    parts = zip(sample.lows, sample.highs, sample.objectives, strict=True)
    for low, high, objective in parts:
        one = best_of_shift(single, max(-low, high), split, shift, objective)
        assert one is not None  # without a bound there is always a best one
        error += one[0]
        made.append(one[1])
    return error, joined(scheme, tuple(made))


def _sample(search: Search) -> Sample:
    watched, where = search.watched, search.watched.sites[0]
    rows = search.rows.rows(where=where)
    objectives = make_objectives(watched.scheme, rows, *search.weighing(where))
    lows, highs = (end.flatten().tolist() for end in (search.seen.low, search.seen.high))
    return Sample(objectives, tuple(lows), tuple(highs))


def _energy(objective: Objective) -> float:
    signal = objective.rows if objective.factor is None else objective.rows @ objective.factor
    weighed = signal if objective.importance is None else signal * objective.importance
    return float(torch.dot(weighed.flatten(), signal.flatten()))


def _apart(qparams: QParams) -> Candidate:
    """One quantizer per head, or the one there is."""
    if qparams.scheme.granularity != "head":
        return (qparams,)
    single = replace(qparams.scheme, granularity="tensor")
    return tuple(
        replace(qparams, scheme=single, scale=scale, zero_point=zero_point)
        for scale, zero_point in zip(qparams.scale, qparams.zero_point, strict=True)
    )
