"""What the target can carry out, as reasons for what it cannot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fxquant.graph.layers import Layer
from fxquant.graph.site import Site
from fxquant.passes.fit import has_heads, slots_of
from fxquant.pipeline.plan import Decision
from fxquant.pipeline.target import Target
from fxquant.quant.scheme import Scheme


def refusal(layer: Layer, target: Target) -> str:
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


def adapted(layer: Layer, slot: str, decision: Decision, target: Target) -> Decision:
    """A recipe's decision as this layer and target can have it.

    Recipes are written for all models and machines: 8-bit activations become 7-bit ones where
    u8 x s8 products saturate, and one scale per head becomes one per tensor where axis 1 of the
    operands is not the heads.
    """
    scheme, reason = decision.scheme, decision.reason
    if scheme is None or slot == "weight":
        return decision
    if layer.kind != "matmul" and scheme.bits == 8 and target.activation_bits < 8:
        scheme = replace(scheme, bits=target.activation_bits)
        reason = f"{target.activation_bits} bits: {target.machine} has no VNNI"
    if layer.kind == "matmul" and scheme.granularity == "head" and not has_heads(layer):
        scheme = replace(scheme, granularity="tensor")
        reason += "; its operands have no axis of heads"
    return replace(decision, scheme=scheme, reason=reason)


def keep_supported(
    decisions: dict[Site, Decision], layers: Mapping[str, Layer], target: Target
) -> None:
    """Float, with the reason, at every layer of which the target could only simulate a site."""
    for layer in layers.values():
        sites = [Site(layer.name, slot) for slot in slots_of(layer)]
        schemes = {s: d.scheme for s in sites if (d := decisions.get(s)) is not None and d.scheme}
        lacking = [why for s, scheme in schemes.items() if (why := _lack(layer, s, scheme, target))]
        for site in schemes if lacking else ():
            decisions[site] = Decision(reason=lacking[0])


def _lack(layer: Layer, site: Site, scheme: Scheme, target: Target) -> str:
    if layer.kind == "matmul" and not target.matmul:
        return f"{target.backend} has no int8 kernel for products of activations"
    if layer.kind == "matmul" and target.kinds and (scheme.kind, scheme.bits) != ("uniform", 8):
        return f"{target.backend} multiplies activations in 8-bit uniform codes only"
    if site.slot == "input" and not target.takes(scheme.kind):
        return f"{target.backend} has no kernel for {scheme.kind} codes ({scheme.text()})"
    return ""
