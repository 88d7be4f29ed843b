"""HNQ: each non-linearity gets the integer approximation that loses least there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch

from fxquant.errors import PipelineError
from fxquant.passes.data import calibration_of, gather
from fxquant.passes.integers.convert import to_integer
from fxquant.passes.nonlinearity.finding import slots_and_samples
from fxquant.passes.nonlinearity.guard import Assignment, Guarded, guarded
from fxquant.passes.nonlinearity.places import Place, find_places
from fxquant.passes.nonlinearity.records import read, record
from fxquant.passes.nonlinearity.rewriting import rewritten
from fxquant.passes.nonlinearity.scoring import FLOAT, Key, Score, scores
from fxquant.passes.nonlinearity.trial import Trial
from fxquant.pipeline.base import Pass
from fxquant.pipeline.state import Fact, Note, State
from fxquant.quant.integer.families import FAMILIES, METHODS, Learned, Slot, in_mix, learn, refusal

WHOLE = "(model)"
_WHAT = "integer non-linearities are chosen on calibration data"


@dataclass(frozen=True)
class Nonlinear(Pass):
    """``f(x) -> dq(k(q(x)))``: Softmax, GELU and LayerNorm k in integers, the best k at each.

    HNQ (papers, section 4a): for every layer and method ``ΔSQNR = SQNR_in - SQNR_out``, both
    against the float model on the same ``images`` calibration images, all linears quantized; the
    least ΔSQNR wins, the first of equals in the order i-bert, i-vit, fq-vit. The sign and the pair
    are a reading of the metric's name [I]. A mix takes these three families only, ``float`` too
    with ``keep_float="ask"``; ``method`` names one family, ``lut`` or ``float`` for all layers.

    ``objective="cost"`` adds ``db_per_us`` dB per microsecond and image, measured here.
    ``select="guarded"`` checks the mix end to end on ``check_images`` images: it is kept as it is,
    or with up to ``swaps`` single changes that help, or gives way to the best family, whose GELU,
    where that is FQ-ViT's (a table), remains that of the mix. ``raw`` does
    not check; ``check="integer"`` does so on the graph that the pass ``integer`` will make, and
    ``correct_images`` above 0 corrects biases on so many images before each check, for pipelines
    in which ``correct_bias`` follows: it favours a family whose errors have a large mean.
    ``input_bits``: codes of Softmax and GELU inputs; ``norm_bits``: of LayerNorm's,
    where the residual stream is not in codes yet; ``output_bits``: 0 for what the reader takes.
    ``newton_steps``: 10 for I-ViT's own root, 0 for the exact one. The choices, with all figures,
    go into the plan; those found there are followed.
    """

    method: Literal["mix", "i-bert", "i-vit", "fq-vit", "lut", "float"] = "mix"
    select: Literal["guarded", "raw"] = "guarded"
    check: Literal["simulated", "integer"] = "simulated"
    objective: Literal["sqnr", "cost"] = "sqnr"
    keep_float: Literal["never", "ask"] = "never"
    input_bits: int = 8
    norm_bits: int = 16
    output_bits: int = 0
    rule: Literal["minmax", "mse", "percentile"] = "minmax"
    images: int = 32
    check_images: int = 8
    correct_images: int = 0
    swaps: int = 12
    db_per_us: float = 0.01
    newton_steps: int = 0

    name: ClassVar[str] = "nonlinear"
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
        bits = (self.input_bits, self.norm_bits, self.output_bits or 8)
        if (
            any(b not in (4, 5, 6, 7, 8, 16) for b in bits)
            or min(self.images, self.check_images, self.correct_images + 1) < 1
        ):
            raise PipelineError(
                f"no integer kernels for bits {bits}, or too few images to choose them on",
                where=f"pass {self.name}",
                fix="give 4 to 8 or 16 bits, images and check_images of at least 1, and "
                "correct_images of at least 0",
            )

    @torch.no_grad()
    def run(self, state: State) -> State:
        """Set ``graph`` and ``plan``."""
        places, declined = find_places(state.graph, state.layers)
        notes = [Note(self.name, layer, f"stays float: {why}") for layer, why in declined.items()]
        plan = state.plan
        fresh = [p for p in places if plan.choice(self.name, p.layer.name) is None]
        if fresh and len(fresh) < len(places):
            raise PipelineError(
                "the plan speaks of some non-linearities and not of others",
                where=fresh[0].layer.name,
                fix="take all choices of the pass 'nonlinear' out of the plan, or none",
            )
        if fresh:
            for key, made in self._choose(state, places).items():
                plan = plan.with_choice(self.name, key, made)
        wanted = []
        for place in places:
            chosen = plan.choices[f"{self.name}@{place.layer.name}"]
            slot, method, learned = read(chosen, place, self.newton_steps)
            if method != FLOAT:
                wanted.append((place, slot, method, learned))
        graph = rewritten(state.graph, wanted)
        return state.having(Fact.GRAPH, graph).having(Fact.PLAN, plan).noting(notes)

    def _choose(self, state: State, places: list[Place]) -> dict[str, dict[str, Any]]:
        """Choices by layer, and one of the whole model."""
        calibration = calibration_of(state, self.name, _WHAT)
        slots, samples = slots_and_samples(
            state.graph,
            calibration,
            places,
            rule=self.rule,
            bits=(self.input_bits, self.norm_bits, self.output_bits),
            images=self.images,
            newton_steps=self.newton_steps,
        )
        learned = {
            (layer, method): learn(slot, method, samples[layer])
            for layer, slot in slots.items()
            for method in METHODS
        }
        leaves = gather(calibration, self.images, where=f"pass {self.name}")
        figures = scores(state.float_graph, state.graph, leaves, places, slots, learned, METHODS)
        assignment, reasons, whole = self._settle(state, places, slots, learned, figures)
        made = {
            layer: record(
                slots[layer], m, learned.get((layer, m), Learned()), figures, layer, reasons[layer]
            )
            for layer, m in assignment.items()
        }
        return {**made, WHOLE: whole}

    def _settle(
        self,
        state: State,
        places: list[Place],
        slots: Mapping[str, Slot],
        learned: Mapping[Key, Learned],
        figures: Mapping[Key, Score],
    ) -> tuple[Assignment, dict[str, str], dict[str, Any]]:
        kinds = {place.layer.name: place.kind for place in places}
        if self.method != "mix":
            assignment = {layer: self._forced(slots[layer]) for layer in slots}
            reason = f"method={self.method!r}"
            whole = {"reason": f"{self.method} at every layer", "sqnr_db": {}}
            return assignment, dict.fromkeys(slots, reason), whole
        extra = (FLOAT,) if self.keep_float == "ask" else ()
        allowed = {
            layer: [
                *(m for m in FAMILIES if in_mix(kinds[layer], m) and (layer, m) in figures),
                *extra,
            ]
            for layer in slots
        }
        mix = {layer: self._least(figures, layer, methods) for layer, methods in allowed.items()}
        reasons = {layer: self._reason(figures, layer, mix[layer], allowed[layer]) for layer in mix}
        if self.select == "raw":
            return mix, reasons, {"reason": "the raw choice, unchecked", "sqnr_db": {}}
        found = self._guard(state, places, slots, learned, figures, mix)
        for layer, method in found.chosen.items():
            if method != mix[layer]:
                reasons[layer] = f"end to end better than {mix[layer]}, which ΔSQNR prefers"
        whole = {
            "sqnr_db": {name: round(db, 3) for name, db in found.figures.items()},
            "swapped": list(found.swapped),
            "reason": "SQNR of the output on calibration images: "
            + ", ".join(f"{name} {db:.2f} dB" for name, db in found.figures.items()),
        }
        return found.chosen, reasons, whole

    def _guard(
        self,
        state: State,
        places: list[Place],
        slots: Mapping[str, Slot],
        learned: Mapping[Key, Learned],
        figures: Mapping[Key, Score],
        mix: Assignment,
    ) -> Guarded:
        calibration = calibration_of(state, self.name, _WHAT)
        where = f"pass {self.name}"
        correct = self.correct_images
        trial = Trial(
            state.float_graph,
            state.graph,
            state.layers,
            places,
            slots,
            learned,
            check=gather(calibration, self.check_images, where=where),
            correct=gather(calibration, correct, where=where) if correct else (),
            finish=to_integer if self.check == "integer" else lambda graph: graph,
        )
        families = {family: self._family(family, places, slots, mix) for family in FAMILIES}
        return guarded(mix, families, figures, trial.sqnr_db, swaps=self.swaps)

    def _family(
        self, family: str, places: list[Place], slots: Mapping[str, Slot], mix: Assignment
    ) -> Assignment:
        """One family everywhere; where a mix may not take it (FQ-ViT's GELU), what the mix has."""
        forced = replace(self, method=family)  # type: ignore[arg-type]
        return {
            name: forced._forced(slots[name]) if in_mix(place.kind, family) else mix[name]
            for place in places
            if (name := place.layer.name)
        }

    def _forced(self, slot: Slot) -> str:
        """The method asked for; one that cannot take these codes gives way to I-ViT's."""
        if self.method == FLOAT or not refusal(slot, self.method):
            return self.method
        return "i-vit"

    def _least(self, figures: Mapping[Key, Score], layer: str, methods: list[str]) -> str:
        """The method that loses least, the first of equals."""
        weight = self.db_per_us if self.objective == "cost" else 0.0
        losses = [figures[layer, m].delta_db + weight * figures[layer, m].cost_us for m in methods]
        return methods[losses.index(min(losses))]

    def _reason(
        self, figures: Mapping[Key, Score], layer: str, chosen: str, allowed: list[str]
    ) -> str:
        told = []
        for method in allowed:
            score = figures[layer, method]
            cost = f" and {score.cost_us:.0f} us" if self.objective == "cost" else ""
            told.append(f"{method} {score.delta_db:.2f} dB{cost}")
        return f"least of {', '.join(told)} lost through the layer" if len(told) > 1 else told[0]
