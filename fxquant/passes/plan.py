"""Settle the plan by what the data showed: spare the sites that 8 bits in one range ruin."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor
from torch.fx import GraphModule, Node

from fxquant.graph.layer_graph import must_share_groups
from fxquant.graph.layers import Layer
from fxquant.graph.tensors import constant_of
from fxquant.passes.assign import settle_shared
from fxquant.passes.calibrate import static_sites
from fxquant.passes.fit import WEIGHTED
from fxquant.passes.running import Runner, fast_linear
from fxquant.pipeline.base import Pass
from fxquant.pipeline.plan import Decision, Plan
from fxquant.pipeline.state import Fact, Note, State
from fxquant.quant import ops
from fxquant.quant.metrics import token_sqnr_db
from fxquant.quant.qparams import QParams
from fxquant.quant.scheme import Scheme
from fxquant.quant.uniform import fake_quantize

SAMPLE = 2  # images: an outlier site shows on every one of them


@dataclass(frozen=True)
class SpareOutliers(Pass):
    """Per-token ranges, or float, where one static range leaves a layer less than ``floor_db``.

    The measure is the SQNR of the layer's output with only its input quantized, averaged over
    tokens in dB: an outlier token holds nearly all the energy, so a plain SQNR would not see that
    every other token is lost. Such a site gets a range per token, found while the model runs, if
    that lifts it above ``floor_db``; else it stays float. Both are said in the plan. It looks at
    inputs of weighted layers with one uniform range; those of other kinds and the operands of
    matmuls are left as they are.
    """

    floor_db: float = 25.0

    name: ClassVar[str] = "plan"
    needs: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.FLOAT_GRAPH, Fact.LAYERS, Fact.PLAN, Fact.STATISTICS, Fact.CALIBRATION}
    )
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN})

    def run(self, state: State) -> State:
        """Set ``plan`` anew, with a note for each spared site."""
        sites = {
            site: (layer, scheme)
            for site, (layer, scheme) in static_sites(state.plan, state.layers).items()
            if layer.kind in WEIGHTED
            and scheme.kind == "uniform"
            and scheme.granularity == "tensor"
        }
        if not sites or state.calibration is None:
            return state.having(Fact.PLAN, state.plan)
        measured: dict[str, tuple[float, float]] = {}
        callbacks = {
            layer.node: _measuring(state.float_graph, layer, state.statistics[site], site, measured)
            for site, (layer, _) in sites.items()
        }
        Runner(state.float_graph, inputs=callbacks)(state.calibration.sample(SAMPLE))
        plan, notes = state.plan, []
        for site, (layer, scheme) in sites.items():
            static_db, token_db = measured[site]
            if layer.kind == "conv":
                token_db = -math.inf  # a pixel row is no token
            decision = self._decision(scheme, static_db, token_db)
            if decision is not None:
                plan = _spare(plan, layer.name, decision)
                notes.append(Note(self.name, layer.name, decision.reason))
        decisions = dict(plan.decisions)
        groups = must_share_groups(state.float_graph, state.layers)
        settle_shared(decisions, groups, state.layers)
        return state.having(Fact.PLAN, replace(plan, decisions=decisions)).noting(notes)

    def _decision(self, scheme: Scheme, static_db: float, token_db: float) -> Decision | None:
        if static_db >= self.floor_db:
            return None
        story = f"one range per tensor leaves {static_db:.1f} dB (floor {self.floor_db:g})"
        if token_db >= self.floor_db:
            reason = f"{story}; a range per token gives {token_db:.1f}"
            return Decision(scheme=_per_token(scheme), reason=reason)
        token = f", a range per token {token_db:.1f}" if math.isfinite(token_db) else ""
        return Decision(reason=f"{story}{token}: kept float")


def _per_token(scheme: Scheme) -> Scheme:
    """Ranges per token are affine, and found while the model runs."""
    return Scheme(bits=scheme.bits, granularity="token", rule="dynamic")


def _spare(plan: Plan, layer: str, decision: Decision) -> Plan:
    plan = plan.with_decision(f"{layer}:input", decision)
    if decision.scheme is None:
        plan = plan.with_decision(f"{layer}:weight", decision)
    return plan


def _measuring(
    graph_module: GraphModule,
    layer: Layer,
    qparams: QParams,
    site: str,
    measured: dict[str, tuple[float, float]],
) -> Callable[[Tensor], None]:
    """A callback that compares the layer's output on quantized and on float inputs."""
    node = next(n for n in graph_module.graph.nodes if n.name == layer.node)

    def outputs(x: Tensor) -> Tensor:
        weight = constant_of(graph_module, node.args[1])
        assert weight is not None
        if layer.kind == "linear":
            return fast_linear(x, weight)
        args = [a for a in node.args[3:] if not isinstance(a, Node)]
        y: Tensor = node.target(x, weight, None, *args)
        return y.movedim(1, -1)

    def measure(x: Tensor) -> None:
        exact = outputs(x)
        scheme = _per_token(qparams.scheme)
        codes = ops.quantize_per_token(x, scheme.quant_min, scheme.quant_max, scheme.dtype)
        measured[site] = (
            token_sqnr_db(exact, outputs(fake_quantize(x, qparams))),
            token_sqnr_db(exact, outputs(ops.dequantize_per_token(*codes))),
        )

    return measure
