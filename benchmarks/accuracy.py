"""W8A8 on real weights and images: ``python benchmarks/accuracy.py``.

Needs the assets (``FXQUANT_ASSETS``, else ``../shared/assets``). Calibrates on 128 images of the
sample set; the 650 validation images are only evaluated. Results:
``benchmarks/results/accuracy.jsonl``.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import fxquant
from benchmarks import record
from fxquant.backends.x86.conformance import region_differences
from fxquant.fidelity import compare, logits_of
from tests.asset_models import data

MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[float, ...], tuple[float, ...]]] = {
    "deit_tiny": (data.load_deit_tiny, data.DEIT_TINY_MEAN, data.DEIT_TINY_STD),
    "vit_tiny": (data.load_vit_tiny, data.VIT_TINY_MEAN, data.VIT_TINY_STD),
}
BATCH = 26  # divides 650
REGION_IMAGES = 4
COLUMNS = ("model", "runs as", "top-1 %", "drop", "agreement %", "SQNR dB", "seconds")


def evaluate(name: str, *, recipe: str, calibration: int, images: int) -> list[dict[str, Any]]:
    """Rows for float, the reference graph and x86."""
    load, mean, std = MODELS[name]
    model = load()
    samples, _ = data.imagenet_images(data.CALIBRATION_FOLDER, calibration, mean, std)
    quantized = fxquant.quantize(model, calibration=samples, recipe=recipe)
    lowered = fxquant.lower(quantized)
    x, labels = data.imagenet_images(data.EVALUATION_FOLDER, images, mean, std)
    rows = []
    reference = None
    for kind, runs in (("float", model), ("reference", quantized), ("x86", lowered)):
        start = time.perf_counter()
        logits = logits_of(runs, x, batch=BATCH)
        reference = logits if reference is None else reference
        rows.append(
            {"model": name, "runs_as": kind, "recipe": recipe, "calibration": len(samples)}
            | distance(reference, logits, labels)
            | {"seconds": round(time.perf_counter() - start, 1)}
        )
    totals = lowered.report.totals
    rows[-1] |= {"int8_layers": totals.int8_layers, "layers": totals.layers}
    rows[-1]["regions"] = regions(lowered, samples[:REGION_IMAGES])
    return rows


def distance(reference: Tensor, logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Top-1 and its paired comparison with float."""
    found = compare(reference, logits, labels)
    assert found.int8_top1 is not None
    assert found.drop is not None
    return {
        "images": found.images,
        "top1": round(found.int8_top1, 2),
        "drop": round(found.drop, 2),
        "agreement": round(found.agreement, 2),
        "sqnr_db": round(found.sqnr_db, 2),
    }


def regions(lowered: Any, samples: Tensor) -> dict[str, Any]:
    """Each lowered region against the reference on the reference's own inputs, by output type.

    ``share``: differing elements among all; ``worst_steps``: the largest difference, in output
    steps, and the layer that has it.
    """
    found = region_differences(lowered, (samples,))
    summary: dict[str, Any] = {}
    for kind in sorted({region.kernel for region in found}):
        chosen = [region for region in found if region.kernel == kind]
        worst = max(chosen, key=lambda region: region.worst_steps)
        differing, elements = sum(r.differing for r in chosen), sum(r.elements for r in chosen)
        summary[kind] = {
            "regions": len(chosen),
            "share": round(differing / elements, 7),
            "worst_steps": round(worst.worst_steps, 4),
            "worst_layer": worst.layer,
        }
    return summary


def show(console: Console, rows: list[dict[str, Any]]) -> None:
    """One table of models, one of regions."""
    table = Table(*COLUMNS, box=box.SIMPLE_HEAD)
    for row in rows:
        exact = row["runs_as"] == "float"
        paired = ["-"] * 3 if exact else [f"{row[k]:.2f}" for k in ("drop", "agreement", "sqnr_db")]
        top1, seconds = f"{row['top1']:.2f}", f"{row['seconds']:.1f}"
        table.add_row(row["model"], row["runs_as"], top1, *paired, seconds)
    console.print(table)
    columns = ("model", "output", "regions", "differing elements", "worst, in output steps", "in")
    table = Table(*columns, box=box.SIMPLE_HEAD, title="x86 regions on the reference's own inputs")
    for row in rows:
        for kind, region in row.get("regions", {}).items():
            share, worst = f"{region['share']:.5%}", f"{region['worst_steps']:.3f}"
            count = str(region["regions"])
            table.add_row(row["model"], kind, count, share, worst, region["worst_layer"])
    console.print(table)


def main() -> None:
    """Evaluate, print, record."""
    parser = argparse.ArgumentParser(description="W8A8 on real weights and images")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--recipe", default="w8a8")
    parser.add_argument("--calibration", type=int, default=128)
    parser.add_argument("--images", type=int, default=data.EVALUATION_COUNT)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if data.assets_dir() is None:
        parser.error(data.missing_reason())
    rows = []
    for name in options.models.split(","):
        found = evaluate(
            name, recipe=options.recipe, calibration=options.calibration, images=options.images
        )
        for row in found:
            record.append("accuracy", row)
        rows += found
    show(Console(width=110), rows)


if __name__ == "__main__":
    main()
