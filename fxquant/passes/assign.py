"""The first plan: default schemes by role, what the target supports, and the user's overrides."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import ClassVar, Literal

from fxquant.errors import RecipeError
from fxquant.graph.layer_graph import must_share_groups
from fxquant.graph.layers import Layer
from fxquant.graph.site import Site
from fxquant.passes.fit import WEIGHTED, applies, misfit
from fxquant.pipeline.base import Pass
from fxquant.pipeline.plan import Decision
from fxquant.pipeline.state import Fact, State
from fxquant.pipeline.target import Target
from fxquant.quant.scheme import Scheme

FLOAT_BY_DEFAULT = {
    "layer_norm": "LayerNorm reads the float residual stream",
    "softmax": "softmax inputs stay float",
}


@dataclass(frozen=True)
class Override:
    """A decision for the sites that match both globs.

    ``sites``: glob over ``layer`` or ``layer:slot``. ``role``: glob over roles. ``scheme``: a
    scheme's text, ``float`` or ``bfloat16``. A scheme needs a slot in ``sites`` unless its kind
    tells: symmetric schemes go to weights, affine ones to inputs. Schemes pass by layers without
    weights, bfloat16 by all but fused attention. Later overrides win.
    """

    scheme: str
    sites: str = "*"
    role: str = "*"

    def __post_init__(self) -> None:
        if self.scheme not in {"float", "bfloat16"}:
            Scheme.parse(self.scheme)
        if not self.sites or not self.role:
            raise RecipeError("an override has an empty glob", where=f"override {self}")

    def decision_for(self, site: Site, layer: Layer) -> Decision | None:
        """The decision, or None where the override does not speak of this site."""
        if not (site.matches(self.sites) and fnmatchcase(layer.role, self.role)):
            return None
        decision = self._decision()
        scheme = decision.scheme
        by_kind = scheme is not None and ":" not in self.sites
        if by_kind and scheme is not None and scheme.symmetric != (site.slot == "weight"):
            return None
        return decision if applies(layer, decision) else None

    def _decision(self) -> Decision:
        reason = f"override {self.sites} ({self.role})"
        if self.scheme == "float":
            return Decision(compute="float32", reason=reason)
        if self.scheme == "bfloat16":
            return Decision(compute="bfloat16", reason=reason)
        return Decision(scheme=Scheme.parse(self.scheme), reason=reason)


@dataclass(frozen=True)
class Assign(Pass):
    """Schemes for every weighted layer, compute types for attention, with reasons.

    ``weight`` and ``activation``: default schemes. ``attention``: what fused attention computes
    in; bfloat16 only where the target has it. Residual stream, LayerNorm and softmax stay float.
    """

    weight: Scheme = Scheme(bits=8, symmetric=True, granularity="channel")  # noqa: RUF009
    activation: Scheme = Scheme(bits=8)  # noqa: RUF009
    attention: Literal["float32", "bfloat16"] = "bfloat16"
    overrides: tuple[Override, ...] = ()

    name: ClassVar[str] = "assign"
    needs: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.GRAPH, Fact.LAYERS, Fact.TARGET, Fact.PLAN}
    )
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN})

    def run(self, state: State) -> State:
        """Set ``plan``."""
        decisions: dict[Site, Decision] = {}
        for layer in state.layers:
            decisions |= self._layer(layer, state.target)
        layers = {layer.name: layer for layer in state.layers}
        for site in decisions:
            for override in self.overrides:
                decision = override.decision_for(site, layers[site.layer])
                if decision is not None:
                    decisions[site] = decision
        self._check_overrides(decisions, layers)
        for site, decision in decisions.items():
            wrong, fix = misfit(layers[site.layer], site.slot, decision)
            if wrong:
                raise RecipeError(wrong, where=str(site), why=decision.reason, fix=fix)
        settle_shared(decisions, must_share_groups(state.graph, state.layers), state.layers)
        plan = replace(state.plan, decisions=decisions, target=state.target)
        return state.having(Fact.PLAN, plan)

    def _check_overrides(self, decisions: dict[Site, Decision], layers: dict[str, Layer]) -> None:
        for override in self.overrides:
            if not any(override.decision_for(site, layers[site.layer]) for site in decisions):
                raise RecipeError(
                    "an override matches no site of this model",
                    where=f"override sites={override.sites!r} role={override.role!r}",
                    fix="list the sites with report.show() or the plan; globs match layer:slot",
                )

    def _layer(self, layer: Layer, target: Target) -> dict[Site, Decision]:
        if layer.kind in WEIGHTED:
            ends = (Site(layer.name, "input"), Site(layer.name, "weight"))
            refusal = _refusal(layer, target)
            if layer.kind == "conv" and self.activation.rule == "dynamic":
                refusal = refusal or "a convolution has no tokens to take ranges of: needs data"
            if refusal:
                return dict.fromkeys(ends, Decision(reason=refusal))
            activation, reason = self._activation(target)
            return {
                ends[0]: Decision(scheme=activation, reason=reason),
                ends[1]: Decision(scheme=self.weight, reason="default for weights"),
            }
        if layer.kind == "attention":
            return {Site(layer.name, "input"): self._attention(target)}
        if layer.kind == "matmul":
            reason = "attention and activation matmuls stay float in this recipe"
            return {Site(layer.name, s): Decision(reason=reason) for s in ("lhs", "rhs")}
        if layer.role in FLOAT_BY_DEFAULT:
            return {Site(layer.name, "input"): Decision(reason=FLOAT_BY_DEFAULT[layer.role])}
        return {}

    def _activation(self, target: Target) -> tuple[Scheme, str]:
        if self.activation.bits == 8 and target.activation_bits < 8:
            narrowed = replace(self.activation, bits=target.activation_bits)
            return narrowed, f"{target.activation_bits} bits: {target.machine} has no VNNI"
        return self.activation, "default for activations"

    def _attention(self, target: Target) -> Decision:
        if self.attention == "bfloat16" and target.bfloat16:
            return Decision(compute="bfloat16", reason="fused attention in bf16, native here")
        if self.attention == "bfloat16":
            return Decision(reason=f"{target.machine} has no native bf16")
        return Decision(reason="the recipe keeps attention in float32")


def _refusal(layer: Layer, target: Target) -> str:
    """Why a weighted layer cannot be int8 on the target; empty where it can."""
    if not layer.weight:
        return "its weight is computed while the model runs"
    if target.roles and layer.role not in target.roles:
        return f"{target.backend} has no int8 kernel for role {layer.role}"
    features = (layer.input_shape[-1], layer.output_shape[-1])
    if layer.kind == "linear" and min(features) < target.smallest_features:
        return (
            f"{features[0]} x {features[1]} features: below {target.smallest_features} "
            "an int8 kernel costs more than it saves"
        )
    return ""


def settle_shared(
    decisions: dict[Site, Decision],
    groups: tuple[tuple[str, ...], ...],
    layers: tuple[Layer, ...],
) -> None:
    """One weight, one decision: where a layer stays float, so do those that share its weight."""
    weights = {layer.name: layer.weight for layer in layers}
    for group in groups:
        for weight in {weights[name] for name in group if weights[name]}:
            sharers = [name for name in group if weights[name] == weight]
            spared = [n for n in sharers if decisions[Site(n, "weight")].scheme is None]
            for name in sharers if spared and len(spared) < len(sharers) else []:
                if name not in spared:
                    reason = f"shares its weight with {spared[0]}, which stays float"
                    for slot in ("input", "weight"):
                        decisions[Site(name, slot)] = Decision(reason=reason)
