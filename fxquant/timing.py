"""Interleaved timing on a machine that may be busy, and the float baseline int8 is held against."""

from __future__ import annotations

import ctypes
import glob
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

CROWDED = 0.03  # a sample is dropped when its threads waited for a core longer than this share
FEWEST = 5  # clean samples for a sound median
SHORTEST_S = 0.005  # a sample repeats its call until it lasts about this long
MKL_SYMBOL = "mkl_serv_intel_cpu_true"


@dataclass(frozen=True)
class Timed:
    """Seconds per call: the median and the least of the ``clean`` ones among all samples.

    ``disturbed``: too few samples were clean, so the least disturbed ones stand in for them.
    """

    median_s: float
    best_s: float
    samples: int
    clean: int

    @property
    def ms(self) -> float:
        """Median in milliseconds."""
        return self.median_s * 1e3

    @property
    def disturbed(self) -> bool:
        """Whether to distrust it."""
        return self.clean < FEWEST


@dataclass
class _Contender:
    call: Callable[[], object]
    repeats: int
    samples: list[tuple[float, float]] = field(default_factory=list)  # share waited, seconds

    @property
    def clean(self) -> list[float]:
        return [seconds for waited, seconds in self.samples if waited <= CROWDED]

    def sample(self) -> None:
        self.call()  # what ran before has pushed its data out of the caches
        waited, start = _waited_s(), time.perf_counter()
        for _ in range(self.repeats):
            self.call()
        taken = time.perf_counter() - start
        self.samples.append(((_waited_s() - waited) / taken, taken / self.repeats))

    def timed(self) -> Timed:
        clean = self.clean
        chosen = clean if len(clean) >= FEWEST else [s for _, s in sorted(self.samples)[:FEWEST]]
        return Timed(statistics.median(chosen), min(chosen), len(self.samples), len(clean))


def interleaved(
    calls: Mapping[str, Callable[[], object]], *, rounds: int = 25, seconds: float = 20.0
) -> dict[str, Timed]:
    """Time the calls in turn, each round in the reverse order of the last, so drift hits all alike.

    ``rounds``: samples of each call; more are taken while too few of them are clean. ``seconds``:
    no round begins after this time, but each call gets ``FEWEST`` samples. A sample during which
    the kernel let our threads wait for a core is dropped; where the kernel does not tell (not
    Linux), all count.
    """
    contenders = {name: _contender(call) for name, call in calls.items()}
    order = list(contenders.values())
    start = time.perf_counter()
    done = 0
    while done < rounds or any(len(c.clean) < FEWEST for c in order):
        if done >= FEWEST and time.perf_counter() - start > seconds:
            break
        for contender in order if done % 2 == 0 else reversed(order):
            contender.sample()
        done += 1
    return {name: contender.timed() for name, contender in contenders.items()}


def _contender(call: Callable[[], object]) -> _Contender:
    """Warm up, and find how often a sample repeats the call."""
    for _ in range(2):
        call()
    start = time.perf_counter()
    call()
    return _Contender(call, max(1, round(SHORTEST_S / max(time.perf_counter() - start, 1e-7))))


def _waited_s() -> float:
    """Seconds that threads of this process were ready to run while others held the cores."""
    total = 0
    for path in glob.glob("/proc/self/task/*/schedstat"):
        with suppress(OSError, ValueError, IndexError), open(path, encoding="ascii") as file:
            total += int(file.read().split()[1])
    return total / 1e9


def float_baseline(model: nn.Module, x: Tensor) -> Callable[[Tensor], Any]:
    """``model`` under torch.compile with constant weights ("freezing"), compiled for ``x``'s shape.

    ``torch.compile(options={"freezing": True})`` would not do: the weights have become inputs of
    the graph before that option is read.
    """
    import torch._inductor.config as settings

    compiled = torch.compile(model, dynamic=False)

    def run(x: Tensor) -> Any:
        with torch.no_grad():
            return compiled(x)

    with settings.patch(freezing=True):
        run(x)
    return run


def baseline_is_fair() -> bool:
    """False where MKL takes the slow path it keeps for other vendors' CPUs.

    A preloaded library that defines ``mkl_serv_intel_cpu_true`` as 1 overrides the check; see
    ``benchmarks/latency.py``.
    """
    if not torch.backends.mkl.is_available():
        return True
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        if "GenuineIntel" in file.read():
            return True
    try:
        return bool(getattr(ctypes.CDLL(None), MKL_SYMBOL)())
    except (AttributeError, OSError, TypeError):  # TypeError: CDLL(None) on Windows
        return False
