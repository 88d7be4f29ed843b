"""SQNR in and out of every method at every place, on the same calibration inputs."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxquant.passes.nonlinearity.places import Place
from fxquant.passes.running import Runner
from fxquant.quant.calibration import Leaves
from fxquant.quant.calls import Call
from fxquant.quant.integer.families import (
    Learned,
    Slot,
    kernels,
    own_output,
    refusal,
)
from fxquant.quant.metrics import mean_ratio_db, sample_ratios

FLOAT = "float"


@dataclass(frozen=True)
class Score:
    """``in_db`` and ``out_db`` against the float model; ``cost_us``: microseconds per image."""

    in_db: float
    out_db: float
    cost_us: float

    @property
    def delta_db(self) -> float:
        """dB lost through the non-linearity: what upstream lost counts on both sides."""
        return self.in_db - self.out_db


Key = tuple[str, str]  # layer, method


def scores(
    float_graph: GraphModule,
    graph: GraphModule,
    leaves: Leaves,
    places: list[Place],
    slots: Mapping[str, Slot],
    learned: Mapping[Key, Learned],
    methods: tuple[str, ...],
) -> dict[Key, Score]:
    """A score for every place and method, and for the float function itself.

    Both graphs run once, two images at a time; every method sees the quantized graph's input, in
    which all linears are quantized and all non-linearities float, in the codes that its slot has
    for all methods alike, and is held against the float graph's input and output. What FQ-ViT's
    own 8-bit codes lose of a LayerNorm's 16-bit input is thus a loss of that method.
    """
    nodes = {place.node.name: place.layer.name for place in places}
    judge = _Judge(slots, learned, methods)
    for part in zip(*(leaf.split(2) for leaf in leaves), strict=True):
        Runner(
            float_graph,
            inputs={name: _keep(judge.before, layer) for name, layer in nodes.items()},
            outputs={name: _keep(judge.after, layer) for name, layer in nodes.items()},
        )(part)
        Runner(
            graph,
            inputs={name: _keep(judge.seen, layer) for name, layer in nodes.items()},
            outputs={name: partial(judge, layer) for name, layer in nodes.items()},
        )(part)
    return judge.scores()


class _Judge:
    """Ratios and durations by layer and method; ``before``, ``after``: the float graph's input and
    output at each layer, ``seen``: the quantized graph's input."""

    def __init__(
        self, slots: Mapping[str, Slot], learned: Mapping[Key, Learned], methods: tuple[str, ...]
    ) -> None:
        self.before: dict[str, Tensor] = {}
        self.after: dict[str, Tensor] = {}
        self.seen: dict[str, Tensor] = {}
        self._slots = slots
        self._ratios: dict[Key, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        self._seconds: dict[Key, list[float]] = defaultdict(list)
        self._calls = {
            (layer, method): kernels(slot, method, learned[layer, method])
            for layer, slot in slots.items()
            for method in methods
            if not refusal(slot, method)
        }

    def __call__(self, layer: str, y: Tensor) -> None:
        """Try every method at a layer whose float output in the quantized graph is ``y``."""
        before, after, x = self.before.pop(layer), self.after.pop(layer), self.seen.pop(layer)
        pair = sample_ratios(before, x), sample_ratios(after, y)
        self._ratios[layer, FLOAT].append(pair)
        slot = self._slots[layer]
        codes = slot.given.quantize(x)
        left = sample_ratios(before, slot.given.dequantize(codes))
        for key, calls in self._calls.items():
            if key[0] == layer:
                made, taken = _timed(calls, codes)
                self._seconds[key].append(taken / len(codes))
                value = own_output(slot, key[1]).dequantize(made)
                self._ratios[key].append((left, sample_ratios(after, value)))

    def scores(self) -> dict[Key, Score]:
        """The figures over all that was tried."""
        return {
            key: Score(
                in_db=mean_ratio_db(torch.cat([before for before, _ in pairs])),
                out_db=mean_ratio_db(torch.cat([after for _, after in pairs])),
                cost_us=1e6 * min(self._seconds[key], default=0.0),
            )
            for key, pairs in self._ratios.items()
        }


def _keep(held: dict[str, Tensor], name: str) -> Callable[[Tensor], None]:
    return lambda value: held.__setitem__(name, value)


def _timed(calls: tuple[Call, ...], codes: Tensor) -> tuple[Tensor, float]:
    """What the calls make of codes, and the lesser of two durations in seconds."""
    taken = []
    for _ in range(2):
        made, start = codes, time.perf_counter()
        for step in calls:
            made = step(made)
        taken.append(time.perf_counter() - start)
    return made, min(taken)
