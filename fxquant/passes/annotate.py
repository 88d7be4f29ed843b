"""Find the layers and their roles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxquant.graph.layers import find_layers
from fxquant.pipeline.base import Pass
from fxquant.pipeline.state import Fact, State


@dataclass(frozen=True)
class Annotate(Pass):
    """Layers with role, shapes, MACs and bytes, by pattern matching on the graph."""

    name: ClassVar[str] = "annotate"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.GRAPH})
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.LAYERS})

    def run(self, state: State) -> State:
        """Set ``layers``."""
        return state.having(Fact.LAYERS, find_layers(state.graph))
