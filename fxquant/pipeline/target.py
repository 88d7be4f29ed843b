"""What planning may know of the machine: frozen data made by a backend."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from fxquant.errors import PlanError


@dataclass(frozen=True, kw_only=True)
class Target:
    """Facts of a backend on a machine, recorded in every plan.

    ``activation_bits``: largest safe activation width; 7 where u8 x s8 products saturate (no
    VNNI). ``bfloat16``: bf16 arithmetic is native. ``roles``: weighted roles with an int8 kernel.
    ``smallest_features``: linears with fewer input or output features run faster in float.
    ``kinds``: kinds of quantizers that kernels take at their inputs, as in a scheme's ``kind``.
    ``matmul``: products of two activations have kernels. Empty ``roles`` and ``kinds``: no limits.
    """

    backend: str
    machine: str
    activation_bits: int = 8
    bfloat16: bool = False
    roles: tuple[str, ...] = ()
    smallest_features: int = 1
    kinds: tuple[str, ...] = ()
    matmul: bool = True

    def takes(self, kind: str) -> bool:
        """Whether kernels take codes of a kind of quantizer."""
        return not self.kinds or kind in self.kinds

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"roles": list(self.roles), "kinds": list(self.kinds)}

    @staticmethod
    def from_json(data: Any) -> Target:
        """Read :meth:`to_json` back; unknown or missing keys raise :class:`PlanError`."""
        known = {f.name: f.type for f in fields(Target)}
        if not isinstance(data, dict) or set(data) != set(known):
            raise PlanError("the target is not sound", where="plan, key 'target'")
        checks = {"str": str, "int": int, "bool": bool, "tuple[str, ...]": list}
        for key, value in data.items():
            sound = type(value) is checks[str(known[key])]
            if not sound or (isinstance(value, list) and not all(type(v) is str for v in value)):
                raise PlanError(f"target.{key} has the wrong type", where="plan, key 'target'")
        return Target(**(data | {key: tuple(data[key]) for key in ("roles", "kinds")}))
