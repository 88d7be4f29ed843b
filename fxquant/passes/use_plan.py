"""Carry out a plan that was made before."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from fxquant.errors import PlanError
from fxquant.graph.site import Site
from fxquant.passes.fit import WEIGHTED, misfit, slots_of
from fxquant.pipeline.base import Pass
from fxquant.pipeline.plan import Plan
from fxquant.pipeline.state import Fact, State


@dataclass(frozen=True)
class UsePlan(Pass):
    """Take ``plan`` as it is, after checking that it speaks of exactly this model's layers.

    Choices that earlier passes made, where ``plan`` holds none for them, are kept beside its own.
    """

    plan: Plan

    name: ClassVar[str] = "use_plan"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.LAYERS, Fact.TARGET, Fact.PLAN})
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN})

    def run(self, state: State) -> State:
        """Set ``plan``; raises :class:`PlanError` naming a site that does not fit."""
        weighted = [la for la in state.layers if la.kind in WEIGHTED]
        wanted = {Site(layer.name, slot) for layer in weighted for slot in slots_of(layer)}
        missing = sorted(str(site) for site in wanted if site not in self.plan.decisions)
        layers = {layer.name for layer in state.layers}
        foreign = sorted(str(site) for site in self.plan if site.layer not in layers)
        if missing or foreign:
            raise PlanError(
                "the plan was made for another model",
                where=(missing or foreign)[0],
                why=f"{len(missing)} sites are missing and {len(foreign)} are unknown",
                fix="make a plan for this model with fxquant.quantize(model, ...).plan",
            )
        self._check_widths(state)
        made = {key: c for key, c in state.plan.choices.items() if key not in self.plan.choices}
        plan = replace(self.plan, choices={**made, **self.plan.choices}) if made else self.plan
        return state.having(Fact.PLAN, plan)

    def _check_widths(self, state: State) -> None:
        layers = {layer.name: layer for layer in state.layers}
        for site, decision in self.plan.decisions.items():
            scheme = decision.scheme
            wrong, fix = misfit(layers[site.layer], site.slot, decision)
            if wrong:
                raise PlanError(wrong, where=str(site), fix=fix)
            if (
                scheme is not None
                and site.slot == "input"
                and state.target.activation_bits < scheme.bits <= 8
            ):
                raise PlanError(
                    f"{scheme.bits}-bit activations saturate on {state.target.machine}",
                    where=str(site),
                    why="the plan was made for a machine with VNNI",
                    fix="plan anew on this machine, or use backend='reference'",
                )
