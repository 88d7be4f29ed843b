"""The first plan: default schemes by role, what the target supports, and the user's overrides."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import ClassVar, Literal

from fxquant.errors import RecipeError
from fxquant.graph.layer_graph import must_share_groups
from fxquant.graph.layers import Layer
from fxquant.graph.site import Site
from fxquant.passes.exact_input import pixel_schemes
from fxquant.passes.fit import QUANTIZABLE, WEIGHTED, applies, misfit, slots_of
from fxquant.passes.support import adapted, keep_supported, refusal
from fxquant.pipeline.base import Pass
from fxquant.pipeline.plan import Decision
from fxquant.pipeline.state import Fact, State
from fxquant.pipeline.target import Target
from fxquant.quant.scheme import Scheme

FLOAT_BY_DEFAULT = {
    "layer_norm": "LayerNorm reads the float residual stream",
    "softmax": "softmax inputs stay float",
}
PRODUCTS = frozenset({"attention_qk", "attention_av"})


@dataclass(frozen=True)
class Override:
    """A decision for the sites that match both globs.

    ``sites``: glob over ``layer`` or ``layer:slot``. ``role``: glob over roles. ``scheme``: a
    scheme's text, ``float`` or ``bfloat16``. Without a slot in ``sites`` the scheme's kind tells:
    symmetric schemes go to weights, all others to inputs; to both operands of matmuls, which have
    neither, only where ``role`` is given. Schemes pass by layers that are not quantized, bfloat16
    by all but fused attention. Later overrides win.
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
        if scheme is not None and ":" not in self.sites and not self._meant(scheme, site.slot):
            return None
        return decision if applies(layer, decision) else None

    def _meant(self, scheme: Scheme, slot: str) -> bool:
        if slot in {"lhs", "rhs"}:
            return self.role != "*"
        return scheme.symmetric == (slot == "weight")

    def _decision(self) -> Decision:
        reason = f"override {self.sites} ({self.role})"
        if self.scheme == "float":
            return Decision(compute="float32", reason=reason)
        if self.scheme == "bfloat16":
            return Decision(compute="bfloat16", reason=reason)
        return Decision(scheme=Scheme.parse(self.scheme), reason=reason)


@dataclass(frozen=True)
class Assign(Pass):
    """Schemes for weighted layers and attention products, compute types for fused attention.

    ``weight`` and ``activation``: default schemes. ``matmul``: scheme of both operands of the two
    products of attention that is written out (pass ``open_attention``); None keeps them float.
    ``attention``: what fused attention computes in; bfloat16 only where the target has it.
    ``by_role``: the recipe's own exceptions, silent where the model has no such site.
    ``overrides``: the user's, after them; each must match something. ``simulate``: ``never`` keeps
    in float what the target has no kernel for, and says so; ``ask`` quantizes it all the same, in
    float arithmetic. Residual stream, LayerNorm and softmax stay float. Layers that the pass
    ``exact_input`` let read pixels get ``a8/tensor/pixels@Z``, unless an override says otherwise.
    """

    weight: Scheme = Scheme(bits=8, symmetric=True, granularity="channel")  # noqa: RUF009
    activation: Scheme = Scheme(bits=8)  # noqa: RUF009
    matmul: Scheme | None = None
    attention: Literal["float32", "bfloat16"] = "bfloat16"
    by_role: tuple[Override, ...] = ()
    overrides: tuple[Override, ...] = ()
    simulate: Literal["never", "ask"] = "never"

    name: ClassVar[str] = "assign"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.GRAPH, Fact.LAYERS, Fact.TARGET, Fact.PLAN})
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN})

    def run(self, state: State) -> State:
        """Set ``plan``."""
        layers = {layer.name: layer for layer in state.layers}
        pixels = pixel_schemes(state.plan)
        decisions: dict[Site, Decision] = {}
        for layer in state.layers:
            activation = pixels.get(layer.name, self.activation)
            for site, default in self._layer(layer, activation, state.target).items():
                decisions[site] = self._decided(site, layer, default, state.target)
        self._check_overrides(decisions, layers)
        for site, decision in decisions.items():
            wrong, fix = misfit(layers[site.layer], site.slot, decision)
            if wrong:
                raise RecipeError(wrong, where=str(site), why=decision.reason, fix=fix)
        if self.simulate == "never":
            keep_supported(decisions, layers, state.target)
        settle_shared(decisions, must_share_groups(state.graph, state.layers), state.layers)
        plan = replace(state.plan, decisions=decisions, target=state.target)
        return state.having(Fact.PLAN, plan)

    def _decided(self, site: Site, layer: Layer, default: Decision, target: Target) -> Decision:
        decision = default
        refused = layer.kind in WEIGHTED and default.scheme is None
        for override in self.by_role:
            found = override.decision_for(site, layer)
            settled = refused or (default.scheme is not None and default.scheme.rule == "pixels")
            if found is not None and not (settled and found.scheme is not None):
                found = replace(found, reason=f"default of the recipe for {layer.role}")
                decision = adapted(layer, site.slot, found, target)
        for override in self.overrides:
            decision = override.decision_for(site, layer) or decision
        return decision

    def _check_overrides(self, decisions: dict[Site, Decision], layers: dict[str, Layer]) -> None:
        for override in self.overrides:
            if not any(override.decision_for(site, layers[site.layer]) for site in decisions):
                raise RecipeError(
                    "an override matches no site of this model",
                    where=f"override sites={override.sites!r} role={override.role!r}",
                    fix="list the sites with report.show() or the plan; globs match layer:slot",
                )

    def _layer(self, layer: Layer, activation: Scheme, target: Target) -> dict[Site, Decision]:
        if layer.kind in QUANTIZABLE:
            sites = (Site(layer.name, slot) for slot in slots_of(layer))
            return {site: self._default(layer, site.slot, activation, target) for site in sites}
        if layer.kind == "attention":
            return {Site(layer.name, "input"): self._attention(target)}
        if layer.role in FLOAT_BY_DEFAULT:
            return {Site(layer.name, "input"): Decision(reason=FLOAT_BY_DEFAULT[layer.role])}
        return {}

    def _default(self, layer: Layer, slot: str, activation: Scheme, target: Target) -> Decision:
        if layer.kind == "matmul":
            if self.matmul is None or layer.role not in PRODUCTS:
                return Decision(reason="attention and activation matmuls stay float in this recipe")
            decision = Decision(scheme=self.matmul, reason="default for attention products")
            return adapted(layer, slot, decision, target)
        why = refusal(layer, target)
        if layer.kind == "conv" and activation.rule == "dynamic":
            why = why or "a convolution has no tokens to take ranges of: needs data"
        if why:
            return Decision(reason=why)
        if slot == "weight":
            return Decision(scheme=self.weight, reason="default for weights")
        exact = activation.rule == "pixels"
        reason = "default: 8-bit pixels, without error" if exact else "default for activations"
        return adapted(layer, slot, Decision(scheme=activation, reason=reason), target)

    def _attention(self, target: Target) -> Decision:
        if self.attention == "bfloat16" and target.bfloat16:
            return Decision(compute="bfloat16", reason="fused attention in bf16, native here")
        if self.attention == "bfloat16":
            return Decision(reason=f"{target.machine} has no native bf16")
        return Decision(reason="the recipe keeps attention in float32")


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
