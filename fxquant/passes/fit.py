"""Which decisions can stand at which site."""

from __future__ import annotations

from fxquant.graph.layers import Layer
from fxquant.pipeline.plan import Decision
from fxquant.quant.scheme import Scheme

WEIGHTED = frozenset({"linear", "conv"})
QUANTIZABLE = WEIGHTED | {"matmul"}
_WEIGHT_RULES = frozenset({"minmax", "mse"})
_HEAD_AXES = 4  # [batch, heads, rows, columns]


def slots_of(layer: Layer) -> tuple[str, ...]:
    """The slots of a layer that decisions can be made for."""
    if layer.kind in WEIGHTED:
        return ("input", "weight")
    return ("lhs", "rhs") if layer.kind == "matmul" else ("input",)


def has_heads(layer: Layer) -> bool:
    """Whether axis 1 of a matmul's operands tells attention heads apart."""
    shapes = (layer.input_shape, layer.output_shape)
    return layer.kind == "matmul" and all(len(shape) == _HEAD_AXES for shape in shapes)


def applies(layer: Layer, decision: Decision) -> bool:
    """Whether anything carries the decision out: schemes a linear, convolution or matmul, bf16
    fused attention."""
    if decision.scheme is not None:
        return layer.kind in QUANTIZABLE
    return decision.compute != "bfloat16" or layer.kind == "attention"


def misfit(layer: Layer, slot: str, decision: Decision) -> tuple[str, str]:
    """What is wrong with a decision at ``layer:slot`` and what to do; empty where nothing is."""
    scheme = decision.scheme
    if not applies(layer, decision):
        if scheme is None:
            return "only fused attention computes in bfloat16", "use float32 here"
        return f"a {layer.role} is not quantized", "quantize linears, convolutions and matmuls only"
    if scheme is None:
        return "", ""
    slots = slots_of(layer)
    if slot not in slots:
        return f"a {layer.kind} is not quantized at its {slot}", f"name {' or '.join(slots)}"
    return _weight_misfit(scheme) if slot == "weight" else _activation_misfit(layer, slot, scheme)


def _weight_misfit(scheme: Scheme) -> tuple[str, str]:
    if not scheme.symmetric:
        what = f"scheme {scheme.text()} does not fit its site"
        return what, "weights take symmetric (s...) schemes"
    if scheme.rule not in _WEIGHT_RULES:
        what = f"range rule {scheme.rule!r} is for activations, not for weights"
        return what, "use minmax or mse"
    return "", ""


def _activation_misfit(layer: Layer, slot: str, scheme: Scheme) -> tuple[str, str]:
    if scheme.symmetric and scheme.rule == "dynamic":
        return "ranges found per token are affine", f"write a{scheme.bits}/token/dynamic"
    allowed = _granularities(layer, slot)
    if scheme.granularity not in allowed:
        what = f"the {slot} of a {layer.kind} cannot have a range per {scheme.granularity}"
        return what, f"give it a range per {' or '.join(sorted(allowed))}"
    if layer.kind == "matmul" and scheme.rule == "fisher":
        return "range rule 'fisher' is for layers with weights", "use output or mse here"
    return "", ""


def _granularities(layer: Layer, slot: str) -> set[str]:
    """A range per token lies along the axis that is not summed over: a matmul's rows have one,
    its columns do not, and a convolution has no tokens."""
    heads = {"head"} if has_heads(layer) else set()
    tokens = {"token"} if layer.kind == "linear" or slot == "lhs" else set()
    return {"tensor"} | heads | tokens
