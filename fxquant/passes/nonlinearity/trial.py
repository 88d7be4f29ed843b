"""What an assignment of methods gives end to end: the graph as the pipeline will have it, run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxquant.graph.layers import Layer
from fxquant.passes.drift import without_drift
from fxquant.passes.nonlinearity.guard import Assignment
from fxquant.passes.nonlinearity.places import Place
from fxquant.passes.nonlinearity.rewriting import rewritten
from fxquant.passes.nonlinearity.scoring import FLOAT, Key
from fxquant.passes.running import Runner
from fxquant.quant import metrics
from fxquant.quant.calibration import Leaves
from fxquant.quant.integer.families import Learned, Slot

TOGETHER = 2  # images that run at once


@dataclass(frozen=True)
class Trial:
    """``check``: images on which the output is compared with that of the float model.

    ``correct``: images on which biases are corrected first, none where nothing corrects them
    later. ``finish``: what becomes of the graph then, such as integers only.
    """

    float_graph: GraphModule
    graph: GraphModule
    layers: tuple[Layer, ...]
    places: list[Place]
    slots: Mapping[str, Slot]
    learned: Mapping[Key, Learned]
    check: Leaves
    correct: Leaves
    finish: Callable[[GraphModule], GraphModule]

    @cached_property
    def _reference(self) -> Tensor:
        return _outputs(self.float_graph, self.check)

    def sqnr_db(self, assignment: Assignment) -> float:
        """Of the output of ``graph`` with these methods in it, on ``check``."""
        wanted = [
            (place, self.slots[name], assignment[name], self.learned[name, assignment[name]])
            for place in self.places
            if assignment[name := place.layer.name] != FLOAT
        ]
        graph = rewritten(self.graph, wanted)
        if self.correct:
            found = without_drift(
                self.float_graph, graph, self.correct, self.layers, importance="energy"
            )
            graph = found.graph
        return metrics.sqnr_db(self._reference, _outputs(self.finish(graph), self.check))


def _outputs(graph: GraphModule, leaves: Leaves) -> Tensor:
    made = []
    for part in zip(*(leaf.split(TOGETHER) for leaf in leaves), strict=True):
        outputs = torch.utils._pytree.tree_leaves(Runner(graph)(part))
        made.append(torch.cat([leaf.reshape(-1) for leaf in outputs if isinstance(leaf, Tensor)]))
    return torch.cat(made)
