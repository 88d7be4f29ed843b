"""ERQ: weights fitted to their quantized inputs, and rounded so that errors cancel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar, get_args

from torch import Tensor
from torch.fx import GraphModule

from fxquant.errors import PipelineError, PlanError
from fxquant.graph.tensors import constant_of, copy_graph, prune
from fxquant.passes.data import calibration_of, gather
from fxquant.passes.fit import WEIGHTED
from fxquant.passes.importance import Importance, by_energy, by_gradient
from fxquant.passes.moments import not_a_linear, rows_of
from fxquant.passes.refit import Fit, LayerSample, Rounding
from fxquant.passes.running import fast_linear
from fxquant.passes.stepping import Stop, Upstream, in_lockstep
from fxquant.passes.stored import (
    StoredWeight,
    bias_of,
    exchange_bias,
    has_plain_bias,
    weight_value,
)
from fxquant.pipeline.base import Pass
from fxquant.pipeline.plan import Plan
from fxquant.pipeline.state import Fact, Note, State


@dataclass(frozen=True)
class Ridge(Pass):
    """``W <- Q(W + δ)``, ``δ = argmin ‖W x + b - (W + δ) x̂ - c‖² + λ‖δ‖²``, and ``b <- c``.

    ERQ (papers, section 5.3), layer by layer on ``images`` calibration images. ``activation``: the
    strengths λ to try, relative to the mean variance of the layer's inputs [I]; each layer takes
    the one that helps images it was not fitted on most, or no δ where none does. One strength alone
    is taken as it is, an empty tuple leaves the weights to the second part. ``weight``: how Q
    rounds: to nearest (``off``), half of the remaining columns at a time (``halves``, as ERQ does)
    or one by one (``columns``, optimal brain quantization), with the columns still to come making
    up for the error under a ridge of ``damping`` mean variances. Scales come from the scheme's own
    rule, for W + δ.

    ``upstream="float"``: x̂ is the exact input through the layer's own quantizer, so layers are
    independent, as in ERQ's code; ``"quantized"``: the input as it is in the quantized graph, with
    the errors of layers already fitted (papers, section 8 item 8). ``importance``: how much each
    token's error counts: all alike, by the inverse energy of its output, or by the squared gradient
    of the logits. ``only``: glob over layers.

    An update is kept if it lowers the layer's output error on the images, else it is declined, as
    are tied weights and convolutions that overlap. Choices in the plan are followed.
    """

    activation: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    weight: Rounding = "columns"
    damping: float = 0.1
    upstream: Upstream = "float"
    importance: Importance = "even"
    images: int = 32
    only: str = "*"

    name: ClassVar[str] = "ridge"
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
        wrong = ""
        if self.images < 1:
            wrong = f"cannot fit on {self.images} images"
        elif not all(strength > 0 for strength in self.activation):
            wrong = "a strength of the penalty must be positive"
        elif not self.damping > 0:
            wrong = "damping must be positive"
        elif not self.activation and self.weight == "off":
            wrong = "neither part of the update is wanted"
        if wrong:
            raise PipelineError(wrong, where=f"pass {self.name}", fix="see the options of Ridge")

    def run(self, state: State) -> State:
        """Set ``graph`` and ``plan``; the incoming graph and its tensors are left as they were."""
        made = GraphModule(state.graph, copy_graph(state.graph.graph))
        calibration = calibration_of(state, self.name, "weights are fitted on calibration data")
        leaves = gather(calibration, self.images, where=f"pass {self.name}")
        weighted = [la for la in state.layers if la.kind in WEIGHTED]
        weights: dict[str, Tensor] = {}
        if self.importance == "gradient":
            weights = by_gradient(state.float_graph, leaves, weighted)
        work = _Work(self, state.float_graph, made, state.plan, leaves[0].shape[0], weights)
        in_lockstep(
            state.float_graph, made, leaves, state.layers, work.visit, upstream=self.upstream
        )
        prune(made)
        return state.having(Fact.GRAPH, made).having(Fact.PLAN, work.plan).noting(work.notes)


class _Work:
    """One run of the pass over one graph: the plan and the notes as they grow."""

    def __init__(
        self,
        options: Ridge,
        float_graph: GraphModule,
        graph: GraphModule,
        plan: Plan,
        images: int,
        weights: Mapping[str, Tensor],
    ) -> None:
        self.options = options
        self.float_graph = float_graph
        self.graph = graph
        self.plan = plan
        self.images = images
        self.weights = weights
        self.notes: list[Note] = []

    def visit(self, stop: Stop) -> None:
        """Fit one layer, or say why not."""
        name, stored = stop.layer.name, StoredWeight.of(stop.node)
        known = self.plan.choice(self.options.name, name)
        if known is None and not fnmatchcase(name, self.options.only):
            return
        if stored is None or (known is not None and known.get("declined")):
            return
        if reason := _refusal(stop, stored):
            if known is not None:
                raise _misfit(name, reason)
            self._decline(name, {}, reason)
            return
        weight = _constant(self.float_graph, stop.float_node.args[1])
        rows = rows_of(stop.float_node, stop.x)
        sample = LayerSample(
            weight,
            bias_of(self.float_graph, stop.float_node),
            rows,
            rows_of(stop.float_node, stop.x_hat),
            self._weights(stop, rows, weight),
            self.images,
        )
        if known is not None:
            self._put(stop, stored, self._fit(sample, name, *_read(name, known)))
        else:
            self._search(stop, stored, sample)

    def _weights(self, stop: Stop, rows: Tensor, weight: Tensor) -> Tensor:
        if self.options.importance == "gradient":
            return self.weights[stop.layer.node]
        if self.options.importance == "energy":
            return by_energy(fast_linear(rows, weight.flatten(1)))
        return rows.new_ones(rows.shape[0])

    def _search(self, stop: Stop, stored: StoredWeight, sample: LayerSample) -> None:
        name = stop.layer.name
        strength, rounding = sample.strength(self.options.activation), self.options.weight
        fit = self._fit(sample, name, strength, rounding)
        weight = weight_value(self.graph, stop.node)
        assert weight is not None
        before = sample.output_db(weight, bias_of(self.graph, stop.node))
        after = sample.output_db(fit.weight, fit.bias)
        measured = {"before_db": round(before, 3), "after_db": round(after, 3)}
        if not after > before:
            self._decline(name, measured, "it does not lower the layer's output error")
            return
        self._put(stop, stored, fit)
        part = "no update" if strength is None else f"an update of strength {strength:g}"
        reason = f"output {before:.1f} -> {after:.1f} dB by {part}, rounding {rounding}"
        chosen = {"activation": strength, "weight": rounding, **measured, "reason": reason}
        self.plan = self.plan.with_choice(self.options.name, name, chosen)

    def _fit(
        self, sample: LayerSample, layer: str, strength: float | None, rounding: Rounding
    ) -> Fit:
        scheme = self.plan[f"{layer}:weight"].scheme
        assert scheme is not None
        return sample.fit(scheme, strength, rounding, self.options.damping, f"{layer}:weight")

    def _put(self, stop: Stop, stored: StoredWeight, fit: Fit) -> None:
        stored.exchange(self.graph, fit.codes, fit.qparams)
        exchange_bias(self.graph, stop.layer.name, stop.node, fit.bias)

    def _decline(self, layer: str, measured: dict[str, float], reason: str) -> None:
        chosen = {"declined": True, **measured, "reason": reason}
        self.plan = self.plan.with_choice(self.options.name, layer, chosen)
        self.notes.append(Note(self.options.name, layer, f"not fitted: {reason}"))


def _constant(graph_module: GraphModule, node: object) -> Tensor:
    value = constant_of(graph_module, node)
    assert value is not None
    return value.detach()


def _refusal(stop: Stop, stored: StoredWeight) -> str:
    """Why a layer with a stored weight cannot be fitted; empty where it can."""
    if reason := not_a_linear(stop.float_node):
        return reason
    if stored.readers() > 1:
        return "its weight is also another layer's"
    if not (has_plain_bias(stop.node) and has_plain_bias(stop.float_node)):
        return "its bias is computed while the model runs"
    return ""


def _read(layer: str, known: Mapping[str, Any]) -> tuple[float | None, Rounding]:
    """Strength and rounding of a recorded choice."""
    strength, wanted = known.get("activation"), known.get("weight")
    sound = strength is None or (type(strength) in {int, float} and strength > 0)
    for rounding in get_args(Rounding):
        if sound and rounding == wanted:
            return None if strength is None else float(strength), rounding
    raise _misfit(layer, f"activation {strength!r}, weight {wanted!r}")


def _misfit(layer: str, why: str) -> PlanError:
    return PlanError(
        "a choice of the plan cannot be carried out",
        where=f"plan, choice ridge@{layer}",
        why=why,
        fix="take the choice out of the plan, or plan anew",
    )
