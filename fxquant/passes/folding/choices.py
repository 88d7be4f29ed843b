"""A choice of method at one place as plain data: recorded in the plan, read back from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from fxquant.errors import PlanError
from fxquant.passes.folding.migration import Center

Method = Literal["none", "sqb", "repq", "osplus"]
_OPTIONS: dict[str, tuple[str, ...]] = {
    "none": (),
    "sqb": ("alpha", "center"),
    "repq": ("bits",),
    "osplus": ("threshold",),
}


@dataclass(frozen=True)
class Choice:
    """``choose`` and what it needs: sqb ``alpha`` and ``center``, repq ``bits``, osplus
    ``threshold`` (the largest half range of a channel that is left unscaled)."""

    choose: Method
    alpha: float = 0.5
    center: Center = "none"
    bits: int = 8
    threshold: float = 1.0

    @property
    def shifts(self) -> bool:
        """Whether the shift may be other than zero."""
        centred = self.choose == "sqb" and self.center != "none"
        return centred or self.choose in {"repq", "osplus"}

    def to_json(self) -> dict[str, Any]:
        """``{"choose": ...}`` with the method's own options."""
        return {"choose": self.choose} | {key: getattr(self, key) for key in _OPTIONS[self.choose]}

    def text(self) -> str:
        """For a reason: ``sqb, alpha 0.5, center mean``."""
        values = {key: getattr(self, key) for key in _OPTIONS[self.choose]}
        plain = {k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in values.items()}
        return ", ".join([self.choose, *(f"{key} {value}" for key, value in plain.items())])

    @staticmethod
    def from_json(data: Mapping[str, Any], place: str) -> Choice:
        """Read a recorded choice; raises :class:`PlanError` naming the place and the option."""
        where = f"plan, choice smooth@{place}"
        method = data.get("choose")
        if method not in _OPTIONS:
            fix = f"a method is one of {', '.join(_OPTIONS)}"
            raise PlanError(f"unknown method {method!r}", where=where, fix=fix)
        values: dict[str, Any] = {key: data.get(key) for key in _OPTIONS[method]}
        for key, value in values.items():
            if not _sound(key, value):
                raise PlanError(f"{key} cannot be {value!r}", where=where)
        return Choice(method, **values)


def _sound(key: str, value: Any) -> bool:
    if key == "center":
        return value in get_args(Center)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    if key == "bits":
        return isinstance(value, int) and 2 <= value <= 16
    return 0.0 <= value <= 1.0 if key == "alpha" else 0.0 < value < float("inf")
