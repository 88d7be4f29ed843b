"""SQ-b, RepQ and Outlier Suppression+ as choosers of one fold: shift and scale into the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch.fx import GraphModule

from fxquant.errors import PipelineError, PlanError
from fxquant.graph.layers import find_layers
from fxquant.graph.tensors import copy_graph, prune
from fxquant.passes.data import calibration_of
from fxquant.passes.folding import fold_sites, value_sites
from fxquant.passes.folding.candidates import (
    SEARCHED_ALPHAS,
    Choose,
    norm_candidates,
    value_candidates,
)
from fxquant.passes.folding.choices import Choice
from fxquant.passes.folding.migration import Center
from fxquant.passes.folding.places import NormPlace, Place, ValuePlace, readings_of
from fxquant.passes.folding.score import SCORED, Reading, output_error
from fxquant.passes.folding.views import ROWS, View, collect, joined
from fxquant.pipeline.base import Pass
from fxquant.pipeline.state import Fact, Note, State
from fxquant.quant.scheme import Scheme


@dataclass(frozen=True)
class Smooth(Pass):
    """``Y W^T + b = ((Y - m) e) (W / e)^T + (b + W m)``: activations get easier, weights harder.

    Moves a shift m and a scale e per channel from every norm into all linears that read it; the
    function stays, and no operation is added. ``choose``: ``sqb`` (MPTQ-ViT; papers, section 2;
    ``center="none"`` is SmoothQuant), ``repq`` (RepQ-ViT; section 5.2), ``osplus`` (Outlier
    Suppression+: midrange shift, scale only beyond a threshold found by least output error), or
    ``searched``: of all these, and of nothing, what gives the least error of the linears' outputs.

    ``alpha``: how much of the range moves into the weights, in [0, 1] (the paper's is not known;
    0.5 is [I]); ``alphas``, where given, are tried at each norm instead. ``center``: the shift of
    sqb. ``value="scale"``: also a scale from attention's output into V's rows, by the formula of
    sqb. ``activation``, ``weight``: quantizers the error is measured with; RepQ takes its bits from
    ``activation``, and leaves the quantizer itself to calibration. ``images``: how many calibration
    images are looked at.

    A choice found in the plan is followed; new ones are recorded with the relative squared error of
    the linears' outputs before and after, declines with their reason.
    """

    choose: Choose = "sqb"
    alpha: float = 0.5
    alphas: tuple[float, ...] = ()
    center: Center = "mean"
    value: Literal["off", "scale"] = "off"
    activation: Scheme = Scheme(bits=8)  # noqa: RUF009
    weight: Scheme = Scheme(bits=8, symmetric=True, granularity="channel")  # noqa: RUF009
    images: int = 32

    name: ClassVar[str] = "smooth"
    needs: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.GRAPH, Fact.LAYERS, Fact.PLAN, Fact.CALIBRATION}
    )
    gives: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.GRAPH, Fact.FLOAT_GRAPH, Fact.PLAN, Fact.LAYERS}
    )

    def __post_init__(self) -> None:
        wrong = ""
        if not all(0.0 <= alpha <= 1.0 for alpha in (self.alpha, *self.alphas)):
            wrong = "alpha lies between 0 and 1"
        elif self.images < 1:
            wrong = f"cannot look at {self.images} images"
        elif self.activation.kind != "uniform" or self.weight.kind != "uniform":
            wrong = "the error is measured with uniform quantizers"
        elif self.activation.granularity not in {"tensor", "token"}:
            wrong = "the input of a linear has a range per tensor or per token"
        if wrong:
            raise PipelineError(wrong, where="pass smooth")

    @torch.no_grad()
    def run(self, state: State) -> State:
        """Set ``graph``, ``float_graph``, ``layers`` and ``plan``; the incoming graph is left."""
        source, plan, notes = state.graph, state.plan, []
        places: list[Place] = [NormPlace(site) for site in fold_sites(source, state.layers)]
        if self.value == "scale":
            places += [ValuePlace(site) for site in value_sites(source, state.layers)]
        known: dict[str, Choice | None] = {}
        for place in places:
            recorded = plan.choice(self.name, place.site.layer)
            if reason := self._declines(place, recorded):
                plan = plan.with_choice(
                    self.name, place.site.layer, {"declined": True, "reason": reason}
                )
                notes.append(Note(self.name, place.site.layer, f"not smoothed: {reason}"))
            else:
                known[place.site.layer] = (
                    None if recorded is None else Choice.from_json(recorded, place.site.layer)
                )
        accepted = [place for place in places if place.site.layer in known]
        views = self._views(state, accepted, known)
        made = GraphModule(source, copy_graph(source.graph))
        for place in accepted:
            readings = readings_of(place, source, views)
            choice = known[place.site.layer]
            if choice is None:
                choice, chosen = self._decide(place, readings)
                plan = plan.with_choice(self.name, place.site.layer, chosen)
            if choice.choose != "none":
                place.carry_out(made, choice, readings)
        prune(made)
        state = state.rewritten(made).having(Fact.PLAN, plan)
        return state.having(Fact.LAYERS, find_layers(made)).noting(notes)

    def _declines(self, place: Place, recorded: Mapping[str, Any] | None) -> str:
        """Why nothing moves at a place; raises :class:`PlanError` where the plan says it should."""
        if recorded is not None and recorded.get("declined"):
            return str(recorded.get("reason", "the plan declines"))
        reason = place.site.declined
        if place.site.no_shift and recorded is not None:
            shifts = Choice.from_json(recorded, place.site.layer).shifts
            reason = reason or (place.site.no_shift if shifts else "")
        elif place.site.no_shift and isinstance(place, NormPlace) and self._only_shifts:
            reason = reason or place.site.no_shift
        if reason and recorded is not None:
            raise PlanError(
                "a choice of the plan does not fit the model",
                where=f"plan, choice {self.name}@{place.site.layer}",
                why=reason,
                fix="take the choice out of the plan, or plan anew",
            )
        return reason

    @property
    def _only_shifts(self) -> bool:
        return self.choose in {"repq", "osplus"} or (self.choose == "sqb" and self.center != "none")

    def _views(
        self, state: State, places: list[Place], known: Mapping[str, Choice | None]
    ) -> dict[str, View]:
        readers = {reader.view: reader.node for place in places for reader in place.site.readers}
        if not readers:
            return {}
        calibration = calibration_of(state, self.name, "smoothing needs calibration data")
        percentiles = self.choose in {"repq", "searched"} or any(
            choice is not None and choice.choose == "repq" for choice in known.values()
        )
        rows = ROWS if percentiles else SCORED
        return collect(state.graph, calibration, readers, self.images, rows)

    def _decide(self, place: Place, readings: list[Reading]) -> tuple[Choice, dict[str, Any]]:
        """The candidate with the least output error, and what the plan says of it."""

        def error(choice: Choice) -> float:
            migrations = place.migrations(choice, readings)
            return output_error(readings, migrations, self.activation, self.weight)

        before = error(Choice("none"))
        candidates = self._candidates(place, readings)
        errors = [before if choice.choose == "none" else error(choice) for choice in candidates]
        after = min(errors)
        choice = candidates[errors.index(after)]
        tried = f", least of {len(candidates)}" if len(candidates) > 1 else ""
        reason = (
            f"{choice.text()}{tried}: relative output error of {len(readings)} linears "
            f"{before:.3g} before, {after:.3g} after"
        )
        found = {"error_before": before, "error_after": after, "reason": reason}
        return choice, choice.to_json() | found

    def _candidates(self, place: Place, readings: list[Reading]) -> list[Choice]:
        alphas = self.alphas or (SEARCHED_ALPHAS if self.choose == "searched" else (self.alpha,))
        if isinstance(place, ValuePlace):
            return value_candidates(self.choose, alphas)
        view = joined([reading.view for reading in readings])
        found = norm_candidates(self.choose, alphas, self.center, self.activation.bits, view)
        return [choice for choice in found if not (place.site.no_shift and choice.shifts)]
