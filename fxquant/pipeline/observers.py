"""Watching a pipeline: graph dumps, differences between passes, timing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fxquant.graph.text import diff_graphs, print_graph
from fxquant.pipeline.base import Pass
from fxquant.pipeline.state import State


@dataclass
class Timing:
    """Seconds per pass, in order."""

    seconds: list[tuple[str, float]] = field(default_factory=list)

    def before(self, step: Pass, state: State) -> None:
        """Nothing to do."""

    def after(self, step: Pass, state: State, seconds: float) -> None:
        """Record the duration."""
        self.seconds.append((step.name, seconds))


@dataclass
class GraphDiffs:
    """The graph's text difference made by each pass that changed it; a second pass of one name
    is called ``name@2``."""

    diffs: dict[str, str] = field(default_factory=dict)
    _before: str = ""

    def before(self, step: Pass, state: State) -> None:
        """Remember the graph."""
        self._before = print_graph(state.graph)

    def after(self, step: Pass, state: State, seconds: float) -> None:
        """Keep the difference where there is one."""
        after = print_graph(state.graph)
        if after != self._before:
            again = sum(key.partition("@")[0] == step.name for key in self.diffs)
            key = f"{step.name}@{again + 1}" if again else step.name
            self.diffs[key] = diff_graphs(self._before, after, name=key)


@dataclass
class GraphDumps:
    """Writes ``NN-pass.txt`` into ``folder`` after each pass."""

    folder: Path
    count: int = 0

    def before(self, step: Pass, state: State) -> None:
        """Nothing to do."""

    def after(self, step: Pass, state: State, seconds: float) -> None:
        """Write the graph."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.count:02d}-{step.name}.txt"
        path.write_text(print_graph(state.graph), encoding="utf-8")
        self.count += 1
