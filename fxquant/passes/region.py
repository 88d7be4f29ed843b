"""OPT-m: two steps a power of two apart where they beat the one step that calibration found."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch

from fxquant.errors import PipelineError
from fxquant.graph.layers import Layer
from fxquant.passes.calibrate import static_sites
from fxquant.passes.data import calibration_of
from fxquant.passes.fit import WEIGHTED
from fxquant.passes.region_choices import read, record
from fxquant.passes.region_search import Outcome, compare, gathered
from fxquant.pipeline.base import Pass
from fxquant.pipeline.plan import Decision
from fxquant.pipeline.state import Fact, Note, State
from fxquant.pipeline.target import Target
from fxquant.quant.scheme import Scheme


@dataclass(frozen=True)
class RegionScales(Pass):
    """``x' = Δ1 c`` below zero and ``Δ1 (c << m)`` above, where that beats the one step there is.

    OPT-m (MPTQ-ViT; papers, section 2a), after GELU: Δ1 and m are searched at every layer by
    ``objective``, the error of the tensor (``mse``), of what the layer makes of it (``output``), or
    that weighed by squared gradients (``fisher``), on about ``rows`` rows of ``images`` calibration
    images. What calibration found is measured on the same rows, and stays unless two regions do
    better. Operands of the product with V behind a softmax, where they are quantized, are split by
    magnitude instead; ``fisher`` weighs these like ``output``. ``roles``: the layers looked at.

    Kernels multiply aligned codes ``c << m``, so those must span no more than the target takes;
    ``simulate="ask"`` goes beyond, for graphs that run in float arithmetic. A choice is recorded
    with m, Δ1 and the errors relative to the signal; one found in the plan is followed.
    """

    objective: Literal["mse", "output", "fisher"] = "output"
    simulate: Literal["never", "ask"] = "never"
    images: int = 16
    rows: int = 2048
    roles: tuple[str, ...] = ("fc2", "token_fc2", "attention_av")

    name: ClassVar[str] = "region"
    needs: ClassVar[frozenset[Fact]] = frozenset(
        {
            Fact.FLOAT_GRAPH,
            Fact.LAYERS,
            Fact.PLAN,
            Fact.STATISTICS,
            Fact.CALIBRATION,
            Fact.TARGET,
        }
    )
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN, Fact.STATISTICS})

    def __post_init__(self) -> None:
        if self.images < 1 or self.rows < 1:
            raise PipelineError(
                f"cannot search on {self.images} images and {self.rows} rows",
                where=f"pass {self.name}",
                fix="give at least 1 of each",
            )

    @torch.no_grad()
    def run(self, state: State) -> State:
        """Set ``plan`` and ``statistics``."""
        plan, notes = state.plan, []
        sites = self._sites(state)
        fresh = {site: given for site, given in sites.items() if not plan.choice(self.name, site)}
        refusals = {
            site: reason
            for site, (_, scheme) in fresh.items()
            if (reason := self._refusal(scheme, state.target))
        }
        outcomes = self._outcomes(
            state, {site: given for site, given in fresh.items() if site not in refusals}
        )
        for site in fresh:
            chosen: Mapping[str, Any] = record(refusals.get(site) or outcomes[site])
            plan = plan.with_choice(self.name, site, chosen)
            if chosen.get("declined"):
                text = f"one step at {site}: {chosen['reason']}"
                notes.append(Note(self.name, sites[site][0].name, text))
        statistics = dict(state.statistics)
        for site in sites:
            chosen = plan.choices[f"{self.name}@{site}"]
            if not chosen.get("declined"):
                qparams = statistics[site] = read(chosen, site)
                reason = str(chosen.get("reason", "edited plan"))
                plan = plan.with_decision(site, Decision(scheme=qparams.scheme, reason=reason))
        return state.having(Fact.PLAN, plan).having(Fact.STATISTICS, statistics).noting(notes)

    def _sites(self, state: State) -> dict[str, tuple[Layer, Scheme]]:
        """Inputs of weighted layers and left operands of products with one uniform step."""
        return {
            site: (layer, scheme)
            for site, (layer, scheme) in static_sites(state.plan, state.layers).items()
            if layer.role in self.roles
            and site.rpartition(":")[2] in {"input", "lhs"}
            and layer.kind in {"linear", "matmul"}
            and scheme.kind == "uniform"
        }

    def _refusal(self, scheme: Scheme, target: Target) -> str:
        """Why there can be no two regions at a site; empty where there can."""
        if scheme.bits > 8:
            return "two regions have at most 8 bits"
        if self.simulate == "ask":
            return ""
        if not target.takes("region"):
            return f"{target.backend} has no kernel for region codes"
        return ""

    def _span(self, layer: Layer, target: Target) -> float:
        """What aligned codes may span: kernels take unsigned ones of the target's width."""
        limited = self.simulate == "never" and target.roles and layer.kind in WEIGHTED
        return (1 << target.activation_bits) - 1 if limited else math.inf

    def _outcomes(
        self, state: State, sites: Mapping[str, tuple[Layer, Scheme]]
    ) -> dict[str, Outcome | str]:
        if not sites:
            return {}
        what = "two regions are searched on calibration data"
        calibration = calibration_of(state, self.name, what)
        wanted = {site: (layer, self._scheme(layer, one)) for site, (layer, one) in sites.items()}
        samples = gathered(state.float_graph, wanted, calibration, self.images, self.rows)
        outcomes: dict[str, Outcome | str] = {}
        for site, (layer, scheme) in wanted.items():
            span = self._span(layer, state.target)
            found = compare(scheme, samples[site], state.statistics[site], span)
            outcomes[site] = found
            if max(found.errors) == 0 and span < math.inf:
                outcomes[site] = (
                    f"aligned codes of {scheme.bits} bits span more than {span:g} small steps for "
                    f"any m >= 1, and {state.target.backend} has no kernel for them"
                )
        return outcomes

    def _scheme(self, layer: Layer, scheme: Scheme) -> Scheme:
        """Two regions with the bits and the granularity that the site has now."""
        rule = "output" if layer.kind == "matmul" and self.objective == "fisher" else self.objective
        return replace(scheme, kind="region", symmetric=False, rule=rule, parameter=None)
