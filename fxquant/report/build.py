"""Rows from layers, plan and measurements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch.fx import GraphModule

from fxquant.graph.layers import Layer
from fxquant.pipeline.plan import Decision, Plan
from fxquant.quant.integer import dyadic, products
from fxquant.quant.integer.operators import OPERATORS
from fxquant.report.model import Row, Sensitivity

_REQUANTIZE = {dyadic.saturate, dyadic.requantize, dyadic.requantize_channels}
INTEGER_PRODUCTS = {
    products.int_linear: "torch._int_mm int8, i32 out, integer epilogue",
    products.int_matmul: "bmm of int8 codes in int32, integer epilogue",
}
SIMULATED = "float32, int8 simulated"
_WEIGHTED = ("input", "weight")


@dataclass(frozen=True)
class IntegerKernel:
    """What runs a layer in integers; ``int8``: it multiplies int8 codes."""

    text: str
    int8: bool


def _float_kernel(decision: Decision | None) -> tuple[str, str]:
    if decision is None:
        return "float32", "elementwise, not quantized"
    return decision.compute, decision.reason


def build_rows(
    layers: tuple[Layer, ...],
    plan: Plan,
    measurements: Mapping[str, float],
    integers: Mapping[str, IntegerKernel],
) -> tuple[Row, ...]:
    """One row per layer of a quantized graph that is not lowered yet.

    ``integers``: :func:`integer_kernels` of that graph.
    """
    rows = [_row(layer, plan, measurements.get(layer.name)) for layer in layers]
    rows = [_in_integers(row, plan, integers) for row in rows]
    if multiplies_integers(integers):
        rows = [_stream(row, layer, plan) for row, layer in zip(rows, layers, strict=True)]
    return tuple(rows)


def multiplies_integers(integers: Mapping[str, IntegerKernel]) -> bool:
    """Whether a graph's products are integer operators, not floats that simulate them."""
    return any(kernel.int8 for kernel in integers.values())


def integer_kernels(graph: GraphModule, layers: tuple[Layer, ...]) -> dict[str, IntegerKernel]:
    """Layer to the integer operators that run it; empty where the graph computes in float.

    In a graph of integers, layers that only scale, shift or clip have no operators of their own.
    """
    found: dict[str, list[object]] = {}
    present = set()
    for node in graph.graph.nodes:
        present.add(str(node.meta.get("layer", "")))
        if node.target in OPERATORS:
            found.setdefault(str(node.meta["layer"]), []).append(node.target)
    made = {}
    for layer, targets in found.items():
        product = next((t for t in targets if t in INTEGER_PRODUCTS), None)
        own = [t for t in targets if t not in _REQUANTIZE] or targets
        names = dict.fromkeys(t.name().partition("::")[2] for t in own)  # type: ignore[attr-defined]
        text = INTEGER_PRODUCTS[product] if product else f"integers: {', '.join(names)}"
        made[layer] = IntegerKernel(text, product is not None)
    if multiplies_integers(made):
        folded = (layer.name for layer in layers if layer.name not in present)
        made |= dict.fromkeys(folded, IntegerKernel("integers: in the next requantization", False))
    return made


def _in_integers(row: Row, plan: Plan, integers: Mapping[str, IntegerKernel]) -> Row:
    if row.layer not in integers:
        return row
    kernel = integers[row.layer]
    codes = (plan.choice("nonlinear", row.layer) or {}).get("input")
    scheme = f"s{int(codes[2] - codes[1]).bit_length()}/tensor" if codes else row.input_scheme
    return replace(row, kernel=kernel.text, int8=kernel.int8, reason="", input_scheme=scheme)


def _stream(row: Row, layer: Layer, plan: Plan) -> Row:
    """A sum of the residual stream, which the pass ``residual`` gave codes."""
    chosen = plan.choice("residual", layer.node)
    if chosen is None or layer.kind in {"linear", "conv", "matmul"}:
        return row
    if plan.choice("nonlinear", layer.name) is not None:
        return row
    scheme = f"s{chosen['bits']}/tensor"
    return replace(row, kernel="integers: add, requantize", reason="", input_scheme=scheme)


def _choices(layer: str, plan: Plan) -> tuple[str, ...]:
    """What passes chose at the layer or at one of its sites, NoisyQuant with its figures."""
    found = []
    for key, chosen in plan.choices.items():
        step, _, place = key.partition("@")
        if place != layer and place.rpartition(":")[0] != layer:
            continue
        text = f"{step}: {chosen.get('reason', '')}"
        if chosen.get("provable_share") is not None:
            text += f"; {100 * chosen['provable_share']:.0f} % of values provably better"
        found.append(text)
    return tuple(found)


def _row(layer: Layer, plan: Plan, sqnr: float | None) -> Row:
    """Of a matmul, the left operand stands under input and the right one under weight."""
    product = layer.kind == "matmul"
    x, weight = (plan.get(layer.name, s) for s in (("lhs", "rhs") if product else _WEIGHTED))
    quantized = any(end is not None and end.scheme is not None for end in (x, weight))
    bits = weight.scheme.bits if quantized and weight and weight.scheme else 32
    kernel, reason = _float_kernel(x)
    if quantized and x is not None:
        kernel = SIMULATED
        reason = "" if x.reason.startswith("default") else x.reason
    return Row(
        layer=layer.name,
        role=layer.role,
        source=layer.source,
        input_shape=layer.input_shape,
        output_shape=layer.output_shape,
        macs=layer.macs,
        float_bytes=layer.weight_elements * 4,
        bytes=layer.weight_elements * (4 if bits == 32 else 2 if bits == 16 else 1),
        input_scheme=x.scheme.text() if x and x.scheme else "",
        weight_scheme=weight.scheme.text() if weight and weight.scheme else "",
        sqnr_db=sqnr,
        kernel=kernel,
        reason=reason,
        choices=_choices(layer.name, plan),
    )


def build_sensitivities(plan: Plan) -> tuple[Sensitivity, ...]:
    """What the pass ``nonlinear`` measured, from its choices; in graph order, methods as tried."""
    made = []
    for key, chosen in plan.choices.items():
        step, _, layer = key.partition("@")
        if step != "nonlinear" or "in_db" not in chosen:
            continue
        for method, before in chosen["in_db"].items():
            cost = chosen.get("cost_us", {}).get(method)
            made.append(
                Sensitivity(
                    layer=layer,
                    method=str(method),
                    in_db=float(before),
                    out_db=float(chosen["out_db"][method]),
                    cost_us=None if cost is None else float(cost),
                    chosen=method == chosen.get("method"),
                )
            )
    return tuple(made)
