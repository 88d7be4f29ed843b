"""Where the time of a native program goes, step by step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxquant.errors import BackendError

WARMUP = 2


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """One step: the median over runs of ``seconds`` as the first thread sees them.

    ``also``: further layers that the step computes. ``macs``: of its layers, for the whole batch,
    counted once where several steps serve one layer; 0 where the step is no int8 product.
    """

    kernel: str
    layer: str
    text: str
    int8: bool
    seconds: float
    macs: int = 0
    also: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Group:
    """Steps with one thing in common, by ``name``. ``share``: of the time of all steps, 0 to 1."""

    name: str
    steps: int
    seconds: float
    share: float
    macs: int
    kernels: tuple[str, ...]

    @property
    def gops(self) -> float:
        """10^9 operations per second, two for a multiply-accumulate."""
        return 2e-9 * self.macs / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, kw_only=True)
class Profile:
    """``steps`` in order. ``total_s``: median of whole runs, waiting for other threads included."""

    steps: tuple[StepTime, ...]
    total_s: float

    def by_kernel(self) -> tuple[Group, ...]:
        """Kinds of kernels, slowest first."""
        return _grouped(self.steps, lambda step: step.kernel)

    def by_layer(self) -> tuple[Group, ...]:
        """Layers, slowest first."""
        return _grouped(self.steps, lambda step: step.layer)


@torch.no_grad()
def profile(lowered: Any, x: Tensor, *, repeats: int = 20) -> Profile:
    """Run a lowered model ``repeats`` times on the batch ``x`` and time every step.

    Raises :class:`BackendError` where the model does not run as a native program.
    """
    from fxquant.backends.x86.program.run import execute, run_program

    native = getattr(lowered, "native", None)
    if native is None:
        raise _not_native(lowered)
    graph_module = native.graph_module
    call = next(n for n in graph_module.graph.nodes if n.target is run_program)
    program, constants = (getattr(graph_module, str(node.target)) for node in call.args[:2])
    shapes, level, micro = call.args[3:]
    steps = native.steps
    clocks, totals = [], []
    for _ in range(WARMUP + max(repeats, 1)):
        clock = torch.zeros(len(steps), dtype=torch.int64)
        start = time.perf_counter()
        execute(program, constants, [x], shapes, level, micro, profile=clock)
        totals.append(time.perf_counter() - start)
        clocks.append(clock)
    seconds = torch.stack(clocks[WARMUP:]).double().quantile(0.5, dim=0) / 1e9
    macs = _macs(lowered, steps)
    rows = (
        StepTime(
            kernel=step.kernel,
            layer=step.layer,
            text=step.text,
            int8=step.int8,
            seconds=float(spent),
            macs=count * len(x),
            also=getattr(step, "also", ()),
        )
        for step, spent, count in zip(steps, seconds, macs, strict=True)
    )
    return Profile(steps=tuple(rows), total_s=statistics.median(totals[WARMUP:]))


def _macs(lowered: Any, steps: Iterable[Any]) -> list[int]:
    """Of each step for one image, each layer at the first product that serves it."""
    left = {row.layer: row.macs for row in lowered.report.rows}
    found = []
    for step in steps:
        served = (step.layer, *getattr(step, "also", ())) if step.int8 else ()
        found.append(sum(left.pop(layer, 0) for layer in served))
    return found


def _grouped(steps: tuple[StepTime, ...], name: Callable[[StepTime], str]) -> tuple[Group, ...]:
    whole = sum(step.seconds for step in steps) or 1.0
    found: dict[str, list[StepTime]] = {}
    for step in steps:
        found.setdefault(name(step), []).append(step)
    groups = (
        Group(
            name=key,
            steps=len(members),
            seconds=sum(step.seconds for step in members),
            share=sum(step.seconds for step in members) / whole,
            macs=sum(step.macs for step in members),
            kernels=tuple(dict.fromkeys(step.kernel for step in members)),
        )
        for key, members in found.items()
    )
    return tuple(sorted(groups, key=lambda group: -group.seconds))


def _not_native(lowered: Any) -> BackendError:
    report = getattr(lowered, "report", None)
    notes = [text for _, text in report.notes if "not as one program" in text] if report else []
    executor = getattr(lowered, "executor", "")
    runs = f"it runs with the executor {executor!r}" if executor else "no x86 kernels run it"
    return BackendError(
        "the model does not run as a native program, so there are no steps to time",
        where=type(lowered).__name__ + (f" of {report.model}" if report else ""),
        why=notes[0] if notes else runs,
        fix="compile it for the x86 backend with executor='native'; where an operation has no "
        "kernel there, use torch.profiler",
    )
