"""float32 against int8, interleaved: ``python benchmarks/latency.py --models deit_small``.

The baseline is torch.compile with constant weights ("freezing") at a fixed shape, on MKL's fast
path. Weights are random, so the speed is real and the SQNR only tells that nothing is broken.
Results: ``benchmarks/results/latency.jsonl``.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

import fxquant
from benchmarks import record
from benchmarks.fair_baseline import restart_fairly
from fxquant.capture.torchvision_ops import import_with_torchvision
from fxquant.fidelity import compare
from fxquant.timing import float_baseline, interleaved

CALIBRATION_IMAGES = 16
COLUMNS = ("model", "batch", "float ms", "int8 ms", "float / int8", "SQNR dB", "clean samples")


def measure(
    name: str, model: nn.Module, made: Any, batch: int, *, seconds: float
) -> dict[str, Any]:
    """Both contenders on the same images, each compiled for this batch size alone."""
    torch._dynamo.reset()
    config = getattr(model, "pretrained_cfg", {})
    shape = config.get("input_size", (3, 224, 224))
    x = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        reference = model(x)
    start = time.perf_counter()
    baseline = float_baseline(model, x)
    between = time.perf_counter()
    found = compare(reference, made(x))
    first_call = time.perf_counter() - between
    times = interleaved(
        {"float": lambda: baseline(x), "int8": lambda: made(x)}, rounds=40, seconds=seconds
    )
    ours, theirs = times["int8"], times["float"]
    return {
        "model": name,
        "batch": batch,
        "float_ms": round(theirs.ms, 4),
        "int8_ms": round(ours.ms, 4),
        "ratio": round(theirs.median_s / ours.median_s, 3),
        "float_best_ms": round(theirs.best_s * 1e3, 4),
        "int8_best_ms": round(ours.best_s * 1e3, 4),
        "sqnr_db": round(found.sqnr_db, 2),
        "clean": {n: f"{t.clean}/{t.samples}" for n, t in times.items()},
        "disturbed": ours.disturbed or theirs.disturbed,
        "compile_s": {"float": round(between - start, 1), "int8": round(first_call, 1)},
    }


def quantized(model: nn.Module, recipe: str) -> Any:
    """int8 kernels, calibrated on random images like those that are timed."""
    generator = torch.Generator().manual_seed(1)
    shape = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))
    images = torch.randn(CALIBRATION_IMAGES, *shape, generator=generator)
    return fxquant.compile(model, calibration=images, recipe=recipe)


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description="float32 against int8, interleaved")
    parser.add_argument("--models", default="deit_tiny,deit_small,vit_base")
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--recipe", default="w8a8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=30.0, help="of timing per row")
    options = parser.parse_args()
    fair = restart_fairly()
    torch.set_num_threads(options.threads)
    import_with_torchvision("torchvision")
    from benchmarks.random_weights import random_model  # imports timm, after it is mended

    console = Console(width=110)
    table = Table(*COLUMNS, box=box.SIMPLE_HEAD)
    for name in options.models.split(","):
        model = random_model(name)
        made = quantized(model, options.recipe)
        for batch in map(int, options.batches.split(",")):
            row = measure(name, model, made, batch, seconds=options.seconds)
            row |= {"recipe": options.recipe, "fair_baseline": fair}
            record.append("latency", row)
            clean = ", ".join(row["clean"].values()) + (" DISTURBED" if row["disturbed"] else "")
            times = (f"{row[key]:.3f}" for key in ("float_ms", "int8_ms"))
            ratio = f"({row['ratio']:.2f})" if row["disturbed"] else f"[bold]{row['ratio']:.2f}[/]"
            figures = (ratio, f"{row['sqnr_db']:.1f}")
            table.add_row(name, str(batch), *times, *figures, clean)
            console.print(f"[dim]{name} batch {batch}:[/] {ratio}")
    console.print(table)


if __name__ == "__main__":
    main()
