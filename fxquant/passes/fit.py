"""Which decisions can stand at which site."""

from __future__ import annotations

from fxquant.graph.layers import Layer
from fxquant.pipeline.plan import Decision

WEIGHTED = frozenset({"linear", "conv"})
_WEIGHT_RULES = frozenset({"minmax", "mse"})


def applies(layer: Layer, decision: Decision) -> bool:
    """Whether anything carries the decision out: schemes need a weight, bf16 fused attention."""
    if decision.scheme is not None:
        return layer.kind in WEIGHTED
    return decision.compute != "bfloat16" or layer.kind == "attention"


def misfit(layer: Layer, slot: str, decision: Decision) -> tuple[str, str]:
    """What is wrong with a decision at ``layer:slot`` and what to do; empty where nothing is."""
    scheme = decision.scheme
    if not applies(layer, decision):
        if scheme is None:
            return "only fused attention computes in bfloat16", "use float32 here"
        return f"a {layer.role} is not quantized", "quantize linears and convolutions only"
    if scheme is None:
        return "", ""
    if scheme.symmetric != (slot == "weight"):
        return (
            f"scheme {scheme.text()} does not fit its site",
            "weights take symmetric (s...) schemes, inputs affine (a...) ones",
        )
    if slot == "weight":
        wrong = scheme.rule not in _WEIGHT_RULES
        what = f"range rule {scheme.rule!r} is for activations, not for weights"
        return (what, "use minmax or mse") if wrong else ("", "")
    allowed = {"tensor", "token"} if layer.kind == "linear" else {"tensor"}
    if scheme.granularity not in allowed:
        what = f"the input of a {layer.kind} cannot have a range per {scheme.granularity}"
        return what, f"give it a range per {' or '.join(sorted(allowed))}"
    return "", ""
