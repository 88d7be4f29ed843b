"""Every decision as plain data: for each site a scheme or a float type, with the reason."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from fxquant.errors import PlanError, SchemeError
from fxquant.graph.site import Site
from fxquant.pipeline.target import Target
from fxquant.quant.scheme import Scheme

VERSION = 2
ComputeType = Literal["float32", "bfloat16"]
COMPUTE_TYPES: tuple[str, ...] = get_args(ComputeType)


_KINDS = {
    "fxquant_plan": int,
    "recipe": str,
    "target": dict,
    "pipeline": str,
    "choices": dict,
    "decisions": dict,
}


@dataclass(frozen=True, kw_only=True)
class Decision:
    """``scheme`` of a quantized site, or None and the float type it computes in; and why."""

    scheme: Scheme | None = None
    compute: ComputeType = "float32"
    reason: str

    def __post_init__(self) -> None:
        if self.scheme is not None and not isinstance(self.scheme, Scheme):
            raise PlanError(
                f"a decision's scheme is a Scheme, not {self.scheme!r}",
                fix="write Scheme.parse('a8/tensor/minmax')",
            )
        if self.compute not in COMPUTE_TYPES:
            raise PlanError(f"unknown compute type {self.compute!r}", fix="use float32 or bfloat16")
        if self.scheme is not None and self.compute != "float32":
            raise PlanError("a decision has a scheme or a compute type, not both")

    def to_json(self) -> dict[str, str]:
        """``{"scheme": text}`` or ``{"compute": type}``, with ``reason``."""
        if self.scheme is not None:
            return {"scheme": self.scheme.text(), "reason": self.reason}
        return {"compute": self.compute, "reason": self.reason}

    @staticmethod
    def from_json(site: str, data: Any) -> Decision:
        """Read one entry; raises :class:`PlanError` naming the site."""
        place = f"plan, site {site}"
        if not isinstance(data, dict):
            raise PlanError("a decision must be a mapping", where=place)
        unknown = set(data) - {"scheme", "compute", "reason"}
        if unknown or ("scheme" in data) == ("compute" in data):
            raise PlanError(
                f"a decision has one of scheme and compute, and a reason; found {sorted(data)}",
                where=place,
            )
        reason = data.get("reason", "edited plan")
        if not isinstance(reason, str):
            raise PlanError("a reason must be a text", where=place)
        try:
            if "compute" in data:
                return Decision(compute=data["compute"], reason=reason)
            return Decision(scheme=Scheme.parse(data["scheme"]), reason=reason)
        except (SchemeError, PlanError) as error:
            raise PlanError(error.what, where=place, why=error.why, fix=error.fix) from error


@dataclass(frozen=True)
class Plan:
    """Site to decision, made for ``target``. Immutable; ``with_decision`` gives a changed copy.

    ``choices``: what a pass chose where it had a choice, such as the smoothing exponent at a norm:
    ``pass@place`` to plain data with a ``reason``. A pass that finds its choice here follows it
    instead of searching. ``pipeline``: text of the pipeline that made the plan.
    """

    decisions: Mapping[Site, Decision]
    target: Target
    recipe: str = ""
    choices: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pipeline: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "decisions", MappingProxyType(dict(self.decisions)))
        frozen = {key: MappingProxyType(dict(value)) for key, value in self.choices.items()}
        object.__setattr__(self, "choices", MappingProxyType(frozen))

    def __deepcopy__(self, memo: dict[int, Any]) -> Plan:
        return self  # immutable all the way down

    def __getitem__(self, site: Site | str) -> Decision:
        key = Site.parse(site) if isinstance(site, str) else site
        if key not in self.decisions:
            near = difflib.get_close_matches(str(key), [str(s) for s in self.decisions], n=1)
            raise PlanError(
                f"the plan holds no site {key}",
                fix=f"did you mean {near[0]}?" if near else "see plan.decisions for all sites",
            )
        return self.decisions[key]

    def get(self, layer: str, slot: str) -> Decision | None:
        """Decision for a site, or None."""
        return self.decisions.get(Site(layer, slot))

    def __iter__(self) -> Iterator[Site]:
        return iter(self.decisions)

    def __len__(self) -> int:
        return len(self.decisions)

    def with_decision(self, site: Site | str, decision: Decision) -> Plan:
        """A copy in which an existing site is decided anew."""
        key = Site.parse(site) if isinstance(site, str) else site
        self[key]
        return replace(self, decisions={**self.decisions, key: decision})

    def choice(self, step: str, place: str) -> Mapping[str, Any] | None:
        """What pass ``step`` chose at ``place`` (a layer or site), or None."""
        return self.choices.get(f"{step}@{place}")

    def with_choice(self, step: str, place: str, chosen: Mapping[str, Any]) -> Plan:
        """A copy with one choice added or replaced; ``chosen`` is JSON data with a ``reason``."""
        return replace(self, choices={**self.choices, f"{step}@{place}": chosen})

    def layer_is_quantized(self, layer: str) -> bool:
        """Whether both the input and the weight of a weighted layer carry a scheme."""
        ends = (self.get(layer, "input"), self.get(layer, "weight"))
        return all(end is not None and end.scheme is not None for end in ends)

    def to_json(self) -> dict[str, Any]:
        """Plain data, sites in graph order."""
        return {
            "fxquant_plan": VERSION,
            "recipe": self.recipe,
            "target": self.target.to_json(),
            "pipeline": self.pipeline,
            "choices": {key: dict(value) for key, value in self.choices.items()},
            "decisions": {str(site): d.to_json() for site, d in self.decisions.items()},
        }

    @staticmethod
    def from_json(data: Any) -> Plan:
        """Read :meth:`to_json` back, checking every entry."""
        if not isinstance(data, dict) or "fxquant_plan" not in data:
            raise PlanError("this is not a fxquant plan", fix="write one with plan.save(path)")
        if type(data["fxquant_plan"]) is not int or data["fxquant_plan"] != VERSION:
            raise PlanError(
                f"plan version {data['fxquant_plan']!r} is not {VERSION}",
                fix="read it with the fxquant that wrote it, or plan anew",
            )
        if set(data) != set(_KINDS):
            raise PlanError("the plan's keys are wrong", where=", ".join(map(str, sorted(data))))
        for key, kind in _KINDS.items():
            if type(data[key]) is not kind:
                raise PlanError(f"{key} is no {kind.__name__}", where=f"plan, key {key!r}")
        for key, chosen in data["choices"].items():
            if "@" not in key or not isinstance(chosen, dict):
                raise PlanError("a choice is pass@place with a mapping", where=f"plan, {key!r}")
        decisions = {
            Site.parse(site): Decision.from_json(site, entry)
            for site, entry in data["decisions"].items()
        }
        target, rest = Target.from_json(data["target"]), (data["choices"], data["pipeline"])
        return Plan(decisions, target, data["recipe"], *rest)

    def save(self, path: str | Path) -> None:
        """Write JSON."""
        text = json.dumps(self.to_json(), indent=1) + "\n"
        try:
            Path(path).write_text(text, encoding="utf-8")
        except OSError as error:
            raise PlanError(
                "cannot write the plan",
                where=str(path),
                why=str(error),
                fix="name a file in a folder that exists and that you may write to",
            ) from error

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Read JSON; raises :class:`PlanError` for anything that is not a sound plan."""
        try:
            text = Path(path).read_text(encoding="utf-8")
            data = json.loads(text, object_pairs_hook=_without_doubles)
        except (OSError, ValueError, RecursionError) as error:
            raise PlanError("cannot read the plan", where=str(path), why=str(error)) from error
        return Plan.from_json(data)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A site written twice by hand would silently take its last decision."""
    made = dict(pairs)
    if len(made) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(k for k in keys if keys.count(k) > 1)!r} occurs twice")
    return made
