"""Integer-only inference: nothing but integers between the input's codes and the logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fxquant.passes.integers.convert import to_integer
from fxquant.passes.integers.proof import prove_integer
from fxquant.pipeline.base import Pass
from fxquant.pipeline.state import Fact, Note, State


@dataclass(frozen=True)
class Integer(Pass):
    """``q(s f(x)) -> (f m) >> e``: int8 products in int32, requantized by dyadic numbers.

    Every float scale between two quantizers becomes ``m 2^-e`` with a 31-bit m (I-ViT; papers,
    section 4c); sums meet at their quantizer's step, zero points go into biases. What has no
    integer form is an error that names the layer. At the end the *decomposed* graph is walked: no
    float operation may be left between codes, and only ``fxquant::isqrt`` stays whole.
    """

    name: ClassVar[str] = "integer"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.GRAPH, Fact.QUANTIZED})
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.GRAPH})

    @torch.no_grad()
    def run(self, state: State) -> State:
        """Set ``graph``; raises :class:`PipelineError` or :class:`VerificationError`."""
        graph = to_integer(state.graph)
        found = prove_integer(graph)
        note = Note(
            self.name,
            "",
            f"integer-only, proven on the decomposed graph: {found.integer} integer operations, "
            f"{found.roots} integer roots, float only before the first codes ({found.before}) and "
            f"after the last ({found.after})",
        )
        return state.having(Fact.GRAPH, graph).noting([note])
