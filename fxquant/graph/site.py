"""The one address of a quantizer: ``layer:slot``."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from fxquant.errors import PlanError

SLOTS = ("input", "weight", "output", "lhs", "rhs")


@dataclass(frozen=True, order=True)
class Site:
    """A tensor of a layer; prints as ``blocks.3.mlp.fc2:input``."""

    layer: str
    slot: str

    def __post_init__(self) -> None:
        if self.slot not in SLOTS:
            raise PlanError(
                f"unknown slot {self.slot!r}",
                where=f"site {self.layer}:{self.slot}",
                fix=f"a slot is one of {', '.join(SLOTS)}",
            )

    def __str__(self) -> str:
        return f"{self.layer}:{self.slot}"

    @staticmethod
    def parse(text: str) -> Site:
        """Read ``layer:slot``."""
        layer, colon, slot = text.rpartition(":")
        if not colon:
            raise PlanError(f"not a site: {text!r}", fix="write layer:slot, for example head:input")
        return Site(layer, slot)

    def matches(self, glob: str) -> bool:
        """Shell-style match: of ``layer:slot`` when the glob has a colon, else of the layer."""
        return fnmatchcase(str(self) if ":" in glob else self.layer, glob)
