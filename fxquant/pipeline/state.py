"""What flows: a frozen record of facts, of which a pass sees only those it names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any, cast

from torch.fx import GraphModule

from fxquant.errors import PipelineError
from fxquant.graph.layers import Layer
from fxquant.pipeline.plan import Plan
from fxquant.pipeline.target import Target
from fxquant.quant.calibration import Calibration
from fxquant.quant.qparams import QParams


class Fact(StrEnum):
    """Names of what a pass may need and give."""

    GRAPH = "graph"
    FLOAT_GRAPH = "float_graph"
    CALIBRATION = "calibration"
    TARGET = "target"
    LAYERS = "layers"
    PLAN = "plan"
    STATISTICS = "statistics"
    QUANTIZED = "quantized"
    MEASUREMENTS = "measurements"


AT_START = frozenset({Fact.GRAPH, Fact.FLOAT_GRAPH, Fact.CALIBRATION, Fact.TARGET, Fact.PLAN})


@dataclass(frozen=True)
class Note:
    """Something a pass wants read: the pass, the layer (or empty), one sentence."""

    source: str
    layer: str
    text: str


@dataclass(frozen=True)
class State:
    """Facts known at a point of the pipeline, and the notes made on the way.

    ``view`` narrows it to a pass's needs; reading any other fact raises
    :class:`~fxquant.errors.PipelineError`, so passes have no other channel between them.
    """

    facts: Mapping[Fact, Any]
    log: tuple[Note, ...] = ()
    viewer: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "facts", MappingProxyType(dict(self.facts)))

    def _read(self, fact: Fact) -> Any:
        if fact not in self.facts:
            raise PipelineError(
                f"fact {fact.value!r} is not available",
                where=f"pass {self.viewer}" if self.viewer else "state",
                fix="name it in the pass's needs, and put a pass that gives it before",
            )
        return self.facts[fact]

    @property
    def graph(self) -> GraphModule:
        """The graph as rewritten so far."""
        return cast(GraphModule, self._read(Fact.GRAPH))

    @property
    def float_graph(self) -> GraphModule:
        """The float graph with all exact rewrites so far, for comparison; not to be changed."""
        return cast(GraphModule, self._read(Fact.FLOAT_GRAPH))

    @property
    def calibration(self) -> Calibration | None:
        """Calibration data, or None where the caller gave none."""
        return cast("Calibration | None", self._read(Fact.CALIBRATION))

    @property
    def target(self) -> Target:
        """Facts of the machine."""
        return cast(Target, self._read(Fact.TARGET))

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Layers with their roles."""
        return cast("tuple[Layer, ...]", self._read(Fact.LAYERS))

    @property
    def plan(self) -> Plan:
        """Decisions so far."""
        return cast(Plan, self._read(Fact.PLAN))

    @property
    def statistics(self) -> Mapping[str, QParams]:
        """Quantization parameters by site text."""
        return cast("Mapping[str, QParams]", self._read(Fact.STATISTICS))

    @property
    def measurements(self) -> Mapping[str, float]:
        """SQNR in dB by layer name."""
        return cast("Mapping[str, float]", self._read(Fact.MEASUREMENTS))

    def having(self, fact: Fact, value: Any) -> State:
        """A copy with one fact set."""
        return replace(self, facts={**self.facts, fact: value})

    def rewritten(self, graph: GraphModule) -> State:
        """A copy with another float graph that computes the same function."""
        return self.having(Fact.GRAPH, graph).having(Fact.FLOAT_GRAPH, graph)

    def noting(self, notes: Iterable[Note]) -> State:
        """A copy with notes appended."""
        return replace(self, log=self.log + tuple(notes))

    def view(self, viewer: str, needs: frozenset[Fact]) -> State:
        """Only the facts in ``needs``."""
        known = {fact: value for fact, value in self.facts.items() if fact in needs}
        return replace(self, facts=known, viewer=viewer)
