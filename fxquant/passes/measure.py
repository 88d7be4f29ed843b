"""SQNR of every layer's output, quantized graph against float graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxquant.errors import PipelineError
from fxquant.passes.running import Runner
from fxquant.pipeline.base import Pass
from fxquant.pipeline.state import Fact, State
from fxquant.quant.calibration import parts_of

OUTPUT = "(output)"


@dataclass(frozen=True)
class Measure(Pass):
    """Signal and noise of each weighted and attention layer over ``images`` calibration images.

    Images run two at a time and only sums are kept, so memory stays that of two images.
    """

    images: int = 8

    name: ClassVar[str] = "measure"
    needs: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.GRAPH, Fact.FLOAT_GRAPH, Fact.LAYERS, Fact.CALIBRATION, Fact.QUANTIZED}
    )
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.MEASUREMENTS})

    def __post_init__(self) -> None:
        if self.images < 1:
            raise PipelineError(
                f"cannot measure on {self.images} images",
                where="pass measure",
                fix="give at least 1, or leave the pass out: pipeline.without('measure')",
            )

    def run(self, state: State) -> State:
        """Set ``measurements``: dB by layer name, the model's output under ``(output)``."""
        if state.calibration is None:
            return state.having(Fact.MEASUREMENTS, {})
        watched = {la.node: la.name for la in state.layers if la.kind != "other"}
        present = {node.name for node in state.graph.graph.nodes}
        watched = {node: name for node, name in watched.items() if node in present}
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(2, dtype=torch.float64))
        sample = state.calibration.sample(self.images)
        for leaves in parts_of(sample, 2):
            _accumulate(state.float_graph, state.graph, leaves, watched, sums)
        measured = {
            name: float((10 * torch.log10(signal / noise.clamp(min=1e-30))).clamp(-150, 150))
            for name, (signal, noise) in sums.items()
        }
        return state.having(Fact.MEASUREMENTS, measured)


def _accumulate(
    float_graph: GraphModule,
    graph: GraphModule,
    leaves: tuple[Tensor, ...],
    watched: dict[str, str],
    sums: dict[str, Tensor],
) -> None:
    exact: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[Tensor], None]:
        return lambda value: exact.__setitem__(name, value)

    def compare(name: str) -> Callable[[Tensor], None]:
        def add(value: Tensor) -> None:
            reference = exact.pop(name).to(torch.float32)
            noise = (reference - value.to(torch.float32)).square().sum(dtype=torch.float64)
            sums[name] += torch.stack((reference.square().sum(dtype=torch.float64), noise))

        return add

    outputs = Runner(float_graph, outputs={n: keep(name) for n, name in watched.items()})(leaves)
    keep(OUTPUT)(_joined(outputs))
    result = Runner(graph, outputs={n: compare(name) for n, name in watched.items()})(leaves)
    compare(OUTPUT)(_joined(result))


def _joined(outputs: object) -> Tensor:
    flat = torch.utils._pytree.tree_leaves(outputs)
    return torch.cat([leaf.reshape(-1) for leaf in flat if isinstance(leaf, Tensor)])
