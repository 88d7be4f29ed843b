"""How near fxquant comes to the machine's own bound: ``python benchmarks/roofline.py``.

The bound of a batch: all products of the model at the highest rate that any int8 linear reaches on
this machine, or, where that takes longer, one read of the weights and images from memory. Run it on
a quiet machine. Results: ``benchmarks/results/roofline.jsonl``.
"""

import argparse
import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich import box
from rich.console import Console
from rich.table import Table

import fxquant
from benchmarks import kernels, record
from benchmarks.fair_baseline import restart_fairly
from benchmarks.latency import CALIBRATION_IMAGES, confine, random_images
from fxquant.backends.x86.compiled import levels, library
from fxquant.capture.torchvision_ops import import_with_torchvision
from fxquant.timing import interleaved

SHAPES = ((1576, 768, 768), (1576, 768, 3072), (3072, 1024, 1024))  # tokens, in, out
STORE = kernels.STORES[0]
READ_BYTES = 256 << 20  # far more than the caches hold


def peak(threads: int, seconds: float) -> tuple[float, str]:
    """Best GOP/s of oneDNN's and of our int8 linear over large shapes, and whose it was."""
    lib = library(levels()[0])
    lib.fxq_packed_bytes.restype = ctypes.c_int64
    torch.set_num_threads(threads)
    found = []
    for shape in SHAPES:
        operations = 2 * shape[0] * shape[1] * shape[2]
        keep: list[torch.Tensor] = []
        arguments = kernels.linear(lib, shape, keep)
        arguments.epilogue = kernels.epilogue(shape[0], shape[2], keep, STORE)
        calls: dict[str, Callable[[], object]] = {"oneDNN": kernels.onednn(shape, STORE)}
        if threads <= 2:
            calls["fxquant"] = kernels.shared(lib.fxq_linear, arguments, threads)
        for name, call in calls.items():
            found.append((kernels.rates(call, operations, seconds)[0], f"{name} at {shape}"))
    return max(found)


def bandwidth(threads: int, seconds: float) -> float:
    """Best GB/s of reading memory: a sum or a copy, whose target is read or written as well."""
    torch.set_num_threads(threads)
    source = torch.ones(READ_BYTES // 4)
    target = torch.zeros_like(source)
    read = kernels.rates(source.sum, READ_BYTES, seconds)[0]
    copied = kernels.rates(lambda: target.copy_(source), 2 * READ_BYTES, seconds)[0]
    return max(read, copied)


def bound(report: Any, image_bytes: int, batch: int, gops: float, gbs: float) -> dict[str, Any]:
    """Milliseconds for the products of a batch, and for one read of weights and images."""
    products = {role: 0 for role in sorted({row.role for row in report.rows if row.macs})}
    for row in report.rows:
        if row.macs:
            products[row.role] += row.macs
    compute = 2e-6 * report.totals.macs * batch / gops
    memory = 1e-6 * (report.totals.bytes + batch * image_bytes) / gbs
    return {
        "macs": products,
        "int8_macs_share": round(report.totals.int8_macs / report.totals.macs, 4),
        "compute_ms": round(compute, 4),
        "memory_ms": round(memory, 4),
        "bound_ms": round(max(compute, memory), 4),
    }


def machine(threads: int, seconds: float) -> dict[str, dict[str, Any]]:
    """Peaks by number of threads: one, and as many as are used."""
    peaks = {}
    for count in sorted({1, threads}):
        gops, by = peak(count, seconds)
        gbs = bandwidth(count, seconds)
        peaks[str(count)] = {"int8_gops": round(gops), "by": by, "memory_gb_s": round(gbs, 1)}
    return peaks


def main() -> None:
    """Measure the machine, then each model; print, record."""
    parser = argparse.ArgumentParser(description="fxquant against the machine's bound")
    parser.add_argument("--models", default="deit_tiny,deit_small,vit_base")
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--recipe", default="w8a8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=15.0, help="of timing per row")
    parser.add_argument("--peak-seconds", type=float, default=1.0, help="per figure of a peak")
    options = parser.parse_args()
    restart_fairly()
    confine(options.threads)
    import_with_torchvision("torchvision")
    from benchmarks.random_weights import random_model  # imports timm, after it is mended

    console = Console(width=110, highlight=False)
    peaks = machine(options.threads, options.peak_seconds)
    for count, found in peaks.items():
        rates = f"{found['int8_gops']} GOP/s int8 ({found['by']}), {found['memory_gb_s']} GB/s"
        console.print(f"threads {count}: {rates}", markup=False)
    here = peaks[str(options.threads)]
    torch.set_num_threads(options.threads)
    columns = ("model", "batch", "GMACs", "products ms", "memory ms", "bound ms", "fxquant ms")
    table = Table(*columns, "share", "clean", box=box.SIMPLE_HEAD)
    for name in options.models.split(","):
        model = random_model(name)
        shape = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))
        images = random_images(CALIBRATION_IMAGES, shape, seed=1)
        made = fxquant.compile(model, calibration=images, recipe=options.recipe)
        for batch in map(int, options.batches.split(",")):
            x = random_images(batch, shape, seed=2)
            limits = (here["int8_gops"], here["memory_gb_s"])
            row = {"model": name, "batch": batch, "recipe": options.recipe, "peaks": peaks}
            row |= bound(made.report, 4 * x[0].numel(), batch, *limits)
            calls = {"fxquant": lambda made=made, x=x: made(x)}
            timed = interleaved(calls, rounds=60, seconds=options.seconds)["fxquant"]
            share = row["bound_ms"] / timed.ms
            row |= {"fxquant_ms": round(timed.ms, 4), "share": round(share, 3)}
            row |= {"clean": f"{timed.clean}/{timed.samples}", "disturbed": timed.disturbed}
            record.append("roofline", row)
            figures = (row[key] for key in ("compute_ms", "memory_ms", "bound_ms", "fxquant_ms"))
            gmacs = f"{made.report.totals.macs * batch / 1e9:.2f}"
            clean = row["clean"] + (" DISTURBED" if timed.disturbed else "")
            texts = (f"{figure:.3f}" for figure in figures)
            table.add_row(name, str(batch), gmacs, *texts, f"[bold]{share:.1%}[/]", clean)
    console.print(table)


if __name__ == "__main__":
    main()
