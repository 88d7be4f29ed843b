"""What was chosen at a quantizer, as plain data: recorded in the plan and read back from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fxquant.errors import PlanError
from fxquant.passes.noising.paths import Fold
from fxquant.passes.noising.search import Amount
from fxquant.passes.noising.sites import NoiseSite
from fxquant.pipeline.plan import Plan

STEP = "noise"
_DEFAULTS = {"n": None, "offset": 0.0, "clip": 1.0}


@dataclass(frozen=True)
class Choice:
    """A recorded choice: how much, where it goes (``none`` where there is no noise), or that the
    site declined."""

    amount: Amount = Amount()  # noqa: RUF009
    fold: str = "none"
    declined: bool = False


def recorded(plan: Plan, site: NoiseSite) -> Choice | None:
    """The plan's choice at a quantizer, or None; raises :class:`PlanError` where its readers'
    choices differ, or one is not sound."""
    found = [plan.choice(STEP, place) for place in site.places]
    choices = [_read(data, place) for data, place in zip(found, site.places, strict=True) if data]
    if not choices:
        return None
    if len(choices) < len(found) or any(choice != choices[0] for choice in choices):
        raise PlanError(
            "layers that share a quantizer differ in their noise",
            where=f"plan, choices {STEP}@{', '.join(site.places)}",
            fix="give all of them the same n, offset, clip and fold",
        )
    return choices[0]


def _read(data: Mapping[str, Any], place: str) -> Choice:
    if data.get("declined"):
        return Choice(declined=True)
    values = {key: data.get(key, default) for key, default in _DEFAULTS.items()}
    for key, value in values.items():
        sound = type(value) in {int, float} and math.isfinite(value)
        if not sound or (key == "clip" and value <= 0) or (key == "n" and value < 0):
            raise PlanError(f"{key} cannot be {value!r}", where=f"plan, choice {STEP}@{place}")
    amount = Amount(**{key: float(value) for key, value in values.items()})
    return Choice(amount, str(data.get("fold", "none")))


def fold_of(planned: Fold, site: NoiseSite, choice: Choice) -> Fold:
    """The fold that a choice names; an addition is always legal, a cheaper fold not."""
    if choice.amount == Amount() or choice.fold == planned.kind:
        return planned
    if choice.fold == "add":
        return Fold("add", site.quantize, reason="the plan adds it")
    raise PlanError(
        f"noise cannot be folded as {choice.fold!r}",
        where=f"plan, choice {STEP}@{site.places[0]}",
        why=planned.reason,
        fix=f"write fold {planned.kind!r}, or take the choice out of the plan",
    )


def refuse(site: NoiseSite, choice: Choice | None) -> None:
    """Raise :class:`PlanError` where the plan has noise at a site that cannot take it."""
    if choice is not None and choice.amount != Amount():
        raise PlanError(
            "a choice of the plan does not fit the model",
            where=f"plan, choice {STEP}@{site.places[0]}",
            why=site.declined,
            fix="take the choice out of the plan, or plan anew",
        )
