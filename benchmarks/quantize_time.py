"""Seconds and peak memory of ``fxquant.quantize``: ``python benchmarks/quantize_time.py``.

Every run has a process of its own. The images are drawn while they are read, so the memory is that
of the model and of quantizing it. Results: ``benchmarks/results/quantize_time.jsonl``.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import record

BATCH = 16


class RandomImages:
    """``count`` images in batches; the same ones each time they are read."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return -(-self.count // BATCH)

    def __iter__(self) -> Iterator[Tensor]:
        for start in range(0, self.count, BATCH):
            generator = torch.Generator().manual_seed(start)
            size = min(BATCH, self.count - start)
            yield torch.randn(size, 3, 224, 224, generator=generator)


def memory_mb(field: str) -> float:
    """``VmRSS`` (now) or ``VmHWM`` (the most so far) of this process."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024 / 1e6


def quantize_once(name: str, images: int, recipe: str, threads: int) -> dict[str, Any]:
    """One run, in this process."""
    import fxquant
    from fxquant.capture.torchvision_ops import import_with_torchvision

    import_with_torchvision("torchvision")
    from benchmarks.random_weights import random_model

    torch.set_num_threads(threads)
    model = random_model(name)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
    before = memory_mb("VmRSS")
    start = time.perf_counter()
    made = fxquant.quantize(model, calibration=RandomImages(images), recipe=recipe)
    seconds = time.perf_counter() - start
    return {
        "model": name,
        "images": images,
        "recipe": recipe,
        "threads": threads,
        "seconds": round(seconds, 2),
        "peak_mb": round(memory_mb("VmHWM")),
        "before_mb": round(before),
        "steps_s": {step: round(taken, 2) for step, taken in made.report.timings},
    }


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description="seconds and peak memory of fxquant.quantize")
    parser.add_argument("--models", default="vit_base")
    parser.add_argument("--images", default="128,1024")
    parser.add_argument("--recipe", default="w8a8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        count = int(options.images)
        row = quantize_once(options.models, count, options.recipe, options.threads)
        print(json.dumps(row))
        return
    columns = ("model", "images", "seconds", "peak MB", "before MB", "steps")
    table = Table(*columns, box=box.SIMPLE_HEAD)
    for name in options.models.split(","):
        for images in options.images.split(","):
            row = in_child(name, images, options.recipe, options.threads)
            record.append("quantize_time", row)
            steps = ", ".join(f"{step} {s}" for step, s in row["steps_s"].items())
            figures = (f"{row['seconds']:.1f}", str(row["peak_mb"]), str(row["before_mb"]))
            table.add_row(name, images, *figures, steps)
    Console(width=110).print(table)


def in_child(name: str, images: str, recipe: str, threads: int) -> dict[str, Any]:
    """One run in a fresh process, which prints its row last."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", "--models", name]
    command += ["--images", images, "--recipe", recipe, "--threads", str(threads)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


if __name__ == "__main__":
    main()
