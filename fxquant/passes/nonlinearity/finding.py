"""Codes in and out of every non-linearity, from calibration data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxquant.passes.nonlinearity.places import Place
from fxquant.passes.nonlinearity.records import slot_of
from fxquant.passes.running import Runner
from fxquant.quant.calibration import Calibration
from fxquant.quant.integer.codes import Codes
from fxquant.quant.integer.families import Slot
from fxquant.quant.memory import return_free_memory
from fxquant.quant.observers import Observer, make_observer
from fxquant.quant.scheme import Scheme

_ROWS = 2048


def slots_and_samples(
    graph_module: GraphModule,
    calibration: Calibration,
    places: list[Place],
    *,
    rule: Any,
    bits: tuple[int, int, int],
    images: int,
    newton_steps: int,
) -> tuple[dict[str, Slot], dict[str, Tensor]]:
    """Slots by layer, and rows of each LayerNorm's input ``[rows, C]`` to learn from.

    ``bits``: of Softmax and GELU inputs, of LayerNorm inputs that are not codes yet, and of
    outputs (0: as the readers have them, 8 where they differ). Runs the quantized graph, its
    non-linearities still float, over ``images`` images.
    """
    parameter = 99.99 if rule == "percentile" else None
    inputs: dict[str, Observer] = {}
    outputs: dict[str, Observer] = {}
    wide: dict[str, Scheme] = {}
    for place in places:
        width = bits[1] if place.kind == "layer_norm" else bits[0]
        scheme = Scheme(bits=width, symmetric=True, rule=rule, parameter=parameter)
        wide[place.layer.name] = scheme
        if place.given is None:
            inputs[place.node.name] = make_observer(scheme)
        if _own(place, bits[2]):
            outputs[place.node.name] = make_observer(Scheme(bits=bits[2] or 8))
    rows: dict[str, list[Tensor]] = defaultdict(list)
    runner = Runner(
        graph_module,
        inputs={p.node.name: _seeing(p, inputs.get(p.node.name), rows) for p in places},
        outputs={name: observer.update for name, observer in outputs.items()},
    )
    seen = 0
    for leaves in calibration.batches():
        runner(tuple(leaf[: images - seen] for leaf in leaves))
        return_free_memory()
        seen += leaves[0].shape[0]
        if seen >= images:
            break
    slots, samples = {}, {}
    for place in places:
        layer, name = place.layer.name, place.node.name
        given = place.given
        if given is None:
            found = inputs[name].qparams(wide[layer], where=f"{layer}:input")
            given = Codes.symmetric(float(found.scale), wide[layer].bits)
        made = place.made
        if name in outputs:
            scheme = Scheme(bits=bits[2] or 8)
            out = outputs[name].qparams(scheme, where=f"{layer}:output")
            zero = int(out.zero_point)
            made = Codes(float(out.scale), zero, 0, scheme.quant_max, torch.uint8)
        assert made is not None
        slots[layer] = slot_of(place, given, made, newton_steps)
        samples[layer] = torch.cat(rows[name]) if name in rows else torch.zeros(0, 1)
    return slots, samples


def _seeing(
    place: Place, observer: Observer | None, rows: dict[str, list[Tensor]]
) -> Callable[[Tensor], None]:
    """Show a place's input to its observer, and keep some rows of a LayerNorm's."""

    def at(x: Tensor) -> None:
        if observer is not None:
            observer.update(x)
        held = rows[place.node.name] if place.kind == "layer_norm" else None
        if held is not None and sum(len(r) for r in held) < _ROWS:
            held.append(x.reshape(-1, x.shape[-1])[:: max(1, x.shape[0])][:_ROWS])

    return at


def _own(place: Place, output_bits: int) -> bool:
    """Whether a place needs output codes of its own."""
    if place.made is None:
        return True
    held = (place.made.high - place.made.low).bit_length()
    return output_bits not in (0, held)
