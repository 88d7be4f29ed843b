"""A mix that is never worse, end to end on calibration images, than the best single family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fxquant.passes.nonlinearity.scoring import Key, Score

Assignment = Mapping[str, str]  # layer to method


@dataclass(frozen=True)
class Guarded:
    """``chosen``: the assignment kept; ``figures``: SQNR in dB of every whole assignment tried, by
    name; ``swapped``: layers whose method was exchanged afterwards."""

    chosen: Assignment
    figures: Mapping[str, float]
    swapped: tuple[str, ...]


def guarded(
    mix: Assignment,
    families: Mapping[str, Assignment],
    figures: Mapping[Key, Score],
    sqnr_db: Callable[[Assignment], float],
    *,
    swaps: int,
) -> Guarded:
    """The best of the mix and the families, then single swaps between the two that help.

    Begins with whichever does best by ``sqnr_db`` (the mix, on a tie), and tries, layer by layer,
    the other's method: where a family was best, first the layers at which the metric promises most
    for the mix; where the mix was, first those at which it promises least. A swap that does not
    help is undone.
    """
    found = {"mix": sqnr_db(mix)}
    found |= {name: sqnr_db(assignment) for name, assignment in families.items()}
    best = max(found, key=lambda name: found[name])  # the first of equals
    family = max(families, key=lambda name: found[name]) if families else best
    current, other = dict(mix), dict(families.get(family, mix))
    if best != "mix":
        current, other = other, current

    def promised(layer: str) -> float:
        return figures[layer, current[layer]].delta_db - figures[layer, other[layer]].delta_db

    differing = [layer for layer in current if current[layer] != other[layer]]
    order = sorted(differing, key=promised, reverse=True)[:swaps]
    reached, swapped = found[best], []
    for layer in order:
        tried = {**current, layer: other[layer]}
        result = sqnr_db(tried)
        if result > reached:
            current, reached = tried, result
            swapped.append(layer)
    return Guarded(current, {**found, "guarded": reached}, tuple(swapped))
