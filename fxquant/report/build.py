"""Rows from layers, plan and measurements."""

from __future__ import annotations

from collections.abc import Mapping

from fxquant.graph.layers import Layer
from fxquant.pipeline.plan import Decision, Plan
from fxquant.report.model import Row, Sensitivity

SIMULATED = "float32, int8 simulated"
_WEIGHTED = ("input", "weight")


def _float_kernel(decision: Decision | None) -> tuple[str, str]:
    if decision is None:
        return "float32", "elementwise, not quantized"
    return decision.compute, decision.reason


def build_rows(
    layers: tuple[Layer, ...], plan: Plan, measurements: Mapping[str, float]
) -> tuple[Row, ...]:
    """One row per layer of a quantized graph that is not lowered yet."""
    return tuple(_row(layer, plan, measurements.get(layer.name)) for layer in layers)


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
