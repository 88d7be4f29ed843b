"""The contract of a backend, and how one is found."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Literal, Protocol, runtime_checkable

from torch import nn
from torch.fx import Node

from fxquant.backends.quantized import QuantizedModule
from fxquant.errors import BackendError
from fxquant.pipeline.target import Target

Executor = Literal["native", "inductor", "eager"]


@dataclass(frozen=True)
class Support:
    """Whether something is supported; ``reason`` says why not."""

    ok: bool
    reason: str = ""


@runtime_checkable
class Backend(Protocol):
    """Found through the entry-point group ``fxquant.backends``."""

    name: str

    def available(self) -> Support:
        """Whether this machine can run the backend."""

    def target(self) -> Target:
        """What planning may know of this machine."""

    def supports(self, node: Node) -> Support:
        """Whether a weighted node of a quantized graph gets an int8 kernel."""

    def lower(self, quantized: QuantizedModule, *, strict: bool, executor: Executor) -> nn.Module:
        """Kernels for a quantized graph, with ``plan``, ``report`` and ``save`` on the result."""


def backend_names() -> list[str]:
    """Names of all installed backends."""
    return sorted({entry.name for entry in entry_points(group="fxquant.backends")})


def default_backend() -> str:
    """``x86`` where it can run, else ``reference``."""
    try:
        get_backend("x86")
    except BackendError:
        return "reference"
    return "x86"


def get_backend(name: str) -> Backend:
    """The named backend; raises :class:`BackendError` when unknown or unavailable here."""
    found = [entry for entry in entry_points(group="fxquant.backends") if entry.name == name]
    if not found:
        near = difflib.get_close_matches(str(name), backend_names(), n=1)
        raise BackendError(
            f"unknown backend {name!r}",
            where="argument backend",
            fix=f"did you mean {near[0]!r}?" if near else f"backends: {', '.join(backend_names())}",
        )
    made: Any = found[0].load()()
    if not isinstance(made, Backend):
        raise BackendError(f"{found[0].value} does not implement the Backend protocol")
    support = made.available()
    if not support.ok:
        raise BackendError(
            f"backend {name!r} cannot run on this machine",
            why=support.reason,
            fix="use backend='reference', which runs everywhere but simulates int8 in float",
        )
    return made
