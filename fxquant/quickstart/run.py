"""The first five minutes: quantize the packaged model, check it, time it, save it."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxquant.api import compile as fxquant_compile
from fxquant.api import load
from fxquant.backends.base import Executor, get_backend
from fxquant.errors import BackendError
from fxquant.fidelity import Fidelity, compare, logits_of
from fxquant.quickstart.digits import DigitsSplit, load_split
from fxquant.quickstart.model import DigitsViT, load_digits_vit
from fxquant.report import Report
from fxquant.staging import check_writable, staged
from fxquant.timing import Timed, baseline_is_fair, float_baseline, interleaved

BATCHES = (64, 1)
TIMING_S = 4.0  # for each batch size


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was made and measured. ``times``: batch size to seconds of ``float`` and ``int8``.

    ``float_bytes``: size of the float weights as a file would hold them. ``reload_equal``: the
    file read back gives the same bits. ``notes``: what the reader must know about the numbers.
    """

    report: Report
    fidelity: Fidelity
    times: dict[int, dict[str, Timed]]
    float_bytes: int
    artifact_bytes: int
    reload_equal: bool
    files: tuple[Path, Path]
    seconds: float
    notes: tuple[str, ...]


def _say_nothing(step: str) -> None:
    """The default listener."""


def run(
    *,
    report: Path = Path("report.html"),
    artifact: Path = Path("digits.fxq"),
    batches: tuple[int, ...] = BATCHES,
    timing_s: float = TIMING_S,
    say: Callable[[str], object] = _say_nothing,
) -> Outcome:
    """Quantize to W8A8 with 128 train images, evaluate on 600 held-out digits, time, write.

    ``batches``: sizes to time; none of them is timed without a C++ compiler, and with ``()``
    nothing is compiled either. ``say``: told of every step before it is taken.
    """
    start = time.perf_counter()
    check_writable(report, artifact)
    split, model = load_split(), load_digits_vit()
    backend, notes = _backend()
    executor: Executor = "native" if batches else "eager"
    if batches and not _has_compiler():
        executor, batches = "eager", ()
        notes.append("no C++ compiler was found, which torch.compile needs: nothing is timed")
    say(f"quantizing DigitsViT to W8A8 with {len(split.calibration_images)} train images")
    made = fxquant_compile(
        model, calibration=split.calibration_images, backend=backend, executor=executor
    )
    batch = max(batches, default=100)
    say(f"evaluating {len(split.held_out_images)} held-out digits in float and in int8")
    fidelity = _fidelity(model, made, split, batch)
    times = {}
    for size in batches:
        say(f"compiling and timing batch {size}")
        times[size] = _timed(model, made, split.held_out_images[:size], timing_s)
    notes += _timing_notes(times)
    with staged(report, artifact) as files:
        made.report.to_html(files[0])
        made.save(files[1])
        x = split.held_out_images[:batch]
        with torch.no_grad():
            equal = torch.equal(load(files[1], executor=executor)(x), made(x))
    return Outcome(
        report=made.report,
        fidelity=fidelity,
        times=times,
        float_bytes=sum(p.numel() * p.element_size() for p in model.parameters()),
        artifact_bytes=artifact.stat().st_size,
        reload_equal=equal,
        files=(report, artifact),
        seconds=time.perf_counter() - start,
        notes=tuple(notes),
    )


def _backend() -> tuple[str, list[str]]:
    """x86, or the reference with a note that says so."""
    try:
        get_backend("x86")
    except BackendError as error:
        why = error.why or error.what
        return "reference", [
            f"SIMULATED: this machine has no int8 kernels of fxquant ({why}); the numbers are "
            "those of int8, the times are not"
        ]
    return "x86", []


def _has_compiler() -> bool:
    usual = "clang++" if sys.platform == "darwin" else "g++"
    return shutil.which(os.environ.get("CXX", "").split(" ")[0] or usual) is not None


def _fidelity(model: DigitsViT, made: Any, split: DigitsSplit, batch: int) -> Fidelity:
    images, labels = split.held_out_images, split.held_out_labels
    reference = logits_of(model, images, batch=batch)
    return compare(reference, logits_of(made, images, batch=batch), labels)


def _timed(model: DigitsViT, made: Any, x: Tensor, seconds: float) -> dict[str, Timed]:
    baseline = float_baseline(model, x)
    calls: dict[str, Callable[[], object]] = {
        "float": lambda: baseline(x),
        "int8": lambda: made(x),
    }
    return interleaved(calls, seconds=seconds)


def _timing_notes(times: dict[int, dict[str, Timed]]) -> list[str]:
    notes = []
    slower = [size for size, t in times.items() if t["int8"].median_s > t["float"].median_s]
    disturbed = any(timed.disturbed for t in times.values() for timed in t.values())
    if slower and not disturbed:
        sizes = " and ".join(map(str, sorted(slower)))
        notes.append(
            f"at batch {sizes} int8 is slower here: this model is so small that calling a kernel "
            "costs more than the product it computes"
        )
    if disturbed:
        notes.append("other processes held the cores while this was timed: distrust the times")
    if times and not baseline_is_fair():
        notes.append(
            "MKL takes a slow path on this CPU, so float times may be longer than they need to be"
        )
    return notes
