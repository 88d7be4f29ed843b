"""Bias correction: the mean error of every layer taken off its bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxquant.errors import PipelineError
from fxquant.passes.data import calibration_of, gather
from fxquant.passes.drift import Weighting, without_drift
from fxquant.pipeline.base import Pass
from fxquant.pipeline.state import Fact, Note, State


@dataclass(frozen=True)
class CorrectBias(Pass):
    """``b <- b + E[W x + b - (Ŵ x̂ + b)]`` for every linear and convolution, in graph order.

    The mean is over all tokens of ``images`` calibration images (papers, section 8 item 2 names
    the step), by ``importance`` all alike or by the inverse energy of a token's output [I]: else
    the error of an outlier token would go into every other token's bias. x̂ is the input in the
    quantized graph, with the errors of all layers before it, whose biases are right already. The
    head's input is one token per image, so its correction rests on as few values as there are
    images.
    """

    importance: Weighting = "energy"
    images: int = 32

    name: ClassVar[str] = "correct_bias"
    needs: ClassVar[frozenset[Fact]] = frozenset(
        {
            Fact.GRAPH,
            Fact.FLOAT_GRAPH,
            Fact.LAYERS,
            Fact.PLAN,
            Fact.CALIBRATION,
            Fact.QUANTIZED,
        }
    )
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.GRAPH, Fact.PLAN})

    def __post_init__(self) -> None:
        if self.images < 1:
            raise PipelineError(
                f"cannot take means over {self.images} images", where=f"pass {self.name}"
            )

    def run(self, state: State) -> State:
        """Set ``graph`` and ``plan``; the incoming graph and its tensors are left as they were."""
        calibration = calibration_of(state, self.name, "biases are corrected on calibration data")
        leaves = gather(calibration, self.images, where=f"pass {self.name}")
        kept = {layer for layer in state.layers if self._declined(state, layer.name)}
        corrected = without_drift(
            state.float_graph,
            state.graph,
            leaves,
            tuple(layer for layer in state.layers if layer not in kept),
            importance=self.importance,
        )
        plan = state.plan
        for layer, reason in corrected.declined.items():
            plan = plan.with_choice(self.name, layer, {"declined": True, "reason": reason})
        notes = [
            Note(self.name, layer, f"bias not corrected: {reason}")
            for layer, reason in corrected.declined.items()
        ]
        return state.having(Fact.GRAPH, corrected.graph).having(Fact.PLAN, plan).noting(notes)

    def _declined(self, state: State, layer: str) -> bool:
        return bool((state.plan.choice(self.name, layer) or {}).get("declined"))
