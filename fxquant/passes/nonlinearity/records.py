"""What the plan says of a non-linearity, written and read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fxquant.errors import PlanError
from fxquant.graph.tensors import constant_of
from fxquant.passes.nonlinearity.places import Place
from fxquant.passes.nonlinearity.scoring import FLOAT, Key, Score
from fxquant.quant.integer.codes import Codes
from fxquant.quant.integer.families import METHODS, Learned, Slot, refusal


def record(
    slot: Slot, method: str, learned: Learned, figures: Mapping[Key, Score], layer: str, why: str
) -> dict[str, Any]:
    """A choice as JSON data, with the figures of all methods."""
    here = {m: score for (name, m), score in figures.items() if name == layer}
    table = {
        "in_db": {m: round(s.in_db, 3) for m, s in here.items()},
        "out_db": {m: round(s.out_db, 3) for m, s in here.items()},
        "delta_db": {m: round(s.delta_db, 3) for m, s in here.items()},
        "cost_us": {m: round(s.cost_us, 1) for m, s in here.items() if m != FLOAT},
    }
    return {
        "method": method,
        "input": [slot.given.scale, slot.given.low, slot.given.high],
        "output": [slot.made.scale, slot.made.zero_point, slot.made.low, slot.made.high],
        "learned": {
            "shift": learned.shift,
            "scale": learned.scale,
            "zero_point": learned.zero_point,
            "alpha": list(learned.alpha),
        },
        **table,
        "reason": f"{method}: {why}",
    }


def slot_of(place: Place, given: Codes, made: Codes, newton_steps: int) -> Slot:
    """The slot of a place, with what its layer holds."""
    node = place.node
    affine = (
        [constant_of(node.graph.owning_module, a) for a in node.args[2:4]]  # type: ignore[arg-type]
        if place.kind == "layer_norm"
        else [None, None]
    )
    value = node.meta["val"]
    gamma, beta = (None if t is None else t.detach() for t in affine)
    tokens = int(value.shape[-1])
    return Slot(place.kind, given, made, tokens, gamma, beta, newton_steps)


def read(chosen: Mapping[str, Any], place: Place, newton_steps: int) -> tuple[Slot, str, Learned]:
    """Slot, method and what was learned; :class:`PlanError` for what no pass writes."""
    try:
        method, (scale, low, high) = chosen["method"], chosen["input"]
        given = Codes(float(scale), 0, int(low), int(high), _dtype(low, high))
        scale, zero, low, high = chosen["output"]
        made = Codes(float(scale), int(zero), int(low), int(high), _dtype(low, high))
        learned = chosen["learned"]
        taught = Learned(
            int(learned["shift"]),
            float(learned["scale"]),
            int(learned["zero_point"]),
            tuple(int(a) for a in learned["alpha"]),
        )
        slot = slot_of(place, given, made, newton_steps)
        sound = method in {*METHODS, FLOAT} and min(given.scale, made.scale) > 0.0
        sound = sound and 0 <= taught.shift < 16 and set(taught.alpha) <= {0, 1, 2, 3}
        channels = place.kind == "layer_norm" and method == "fq-vit"
        sound = sound and (not channels or (len(taught.alpha) == slot.tokens and taught.scale > 0))
    except (KeyError, TypeError, ValueError, OverflowError):
        sound = False
    if not sound or (method != FLOAT and refusal(slot, method)):
        raise PlanError(
            "the plan's choice cannot be carried out",
            where=f"nonlinear@{place.layer.name}",
            fix=f"name a method of {', '.join(METHODS)} and keep the parameters it was found with",
        )
    return slot, method, taught


def _dtype(low: int, high: int) -> torch.dtype:
    if low >= 0:
        return torch.uint8 if high <= 255 else torch.uint16
    return torch.int8 if low >= -128 else torch.int16
