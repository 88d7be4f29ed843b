"""Methods x bits x models on real weights and images: ``python benchmarks/accuracy.py``.

``--tables all`` gives every row of ``docs/accuracy.md``. Needs the assets (``FXQUANT_ASSETS``, else
``../shared/assets``). Calibrates on 128 images of the sample set; the 650 validation images are
only evaluated. Results: ``benchmarks/results/accuracy.jsonl``.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
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
from benchmarks.methods import Method, ablations, claims, integer, recipes
from fxquant.backends.x86.conformance import region_differences
from fxquant.fidelity import compare, logits_of
from tests.asset_models import data

MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[float, ...], tuple[float, ...]]] = {
    "deit_tiny": (data.load_deit_tiny, data.DEIT_TINY_MEAN, data.DEIT_TINY_STD),
    "vit_tiny": (data.load_vit_tiny, data.VIT_TINY_MEAN, data.VIT_TINY_STD),
}
BATCH = 26  # divides 650
REGION_IMAGES = 4
TUNING_IMAGES, TUNING_EPOCHS = 1000, 2
COLUMNS = ("model", "method", "runs as", "top-1 %", "drop", "agreement %", "SQNR dB", "seconds")


@dataclass(frozen=True)
class Setting:
    """A model with its images: ``samples`` to calibrate, ``x`` and ``labels`` only to evaluate,
    ``reference``: the float logits of ``x``."""

    name: str
    model: nn.Module
    samples: Tensor
    x: Tensor
    labels: Tensor
    reference: Tensor

    @cached_property
    def samples_reference(self) -> Tensor:
        """The float logits of ``samples``."""
        return logits_of(self.model, self.samples, batch=BATCH)


def setting(name: str, *, calibration: int, images: int) -> Setting:
    """Load a model and its images, and run it in float."""
    load, mean, std = MODELS[name]
    model = load()
    samples, _ = data.imagenet_images(data.CALIBRATION_FOLDER, calibration, mean, std)
    x, labels = data.imagenet_images(data.EVALUATION_FOLDER, images, mean, std)
    return Setting(name, model, samples, x, labels, logits_of(model, x, batch=BATCH))


class Quantizer:
    """Quantizes a model; two methods in a row that differ in their fine-tuning share the result."""

    def __init__(self, at: Setting) -> None:
        self.at = at
        self.last: tuple[tuple[str, str], Any, float] | None = None

    def quantize(self, method: Method) -> tuple[Any, float]:
        """The quantized model and the seconds that it took."""
        key = str(method.pipeline), method.runs_as
        if self.last is None or self.last[0] != key:
            start = time.perf_counter()
            made = fxquant.quantize(
                self.at.model,
                calibration=self.at.samples,
                pipeline=method.pipeline,
                backend=method.runs_as,
            )
            self.last = key, made, time.perf_counter() - start
        return self.last[1:]


def evaluate(at: Setting, method: Method, quantizer: Quantizer) -> dict[str, Any]:
    """Quantize, tune where the method says so, run, compare with float."""
    quantized, seconds = quantizer.quantize(method)
    start = time.perf_counter()
    if method.minutes:
        quantized = tuned(at, quantized, method.minutes)
    tuning_seconds = time.perf_counter() - start
    chosen = non_linear(quantized.plan)
    calibration_sqnr_db = quantized.report.output_sqnr_db  # of a few images
    if chosen:
        seen = logits_of(quantized, at.samples, batch=BATCH)
        calibration_sqnr_db = compare(at.samples_reference, seen).sqnr_db
    lowered = fxquant.lower(quantized) if method.runs_as == "x86" else None
    logits = logits_of(lowered or quantized, at.x, batch=BATCH)
    row = {
        "model": at.name,
        "method": method.name,
        "runs_as": method.runs_as,
        "pipeline": str(method.pipeline),
        "calibration": len(at.samples),
        "tuning_minutes": method.minutes,
        "calibration_sqnr_db": _rounded(calibration_sqnr_db),
    }
    row |= distance(at.reference, logits, at.labels)
    row |= {"quantize_seconds": round(seconds, 1)}
    row |= {"tuning_seconds": round(tuning_seconds, 1)} if method.minutes else {}
    row |= chosen
    if lowered is not None:
        totals = lowered.report.totals
        row |= {"int8_layers": totals.int8_layers, "layers": totals.layers}
        row["regions"] = regions(lowered, at.samples[:REGION_IMAGES])
    return row


def non_linear(plan: Any) -> dict[str, Any]:
    """How often each family was chosen, by the layers' last names, and what the guard saw."""
    found: dict[str, Any] = {}
    for key, choice in plan.choices.items():
        step, _, layer = key.partition("@")
        if step == "nonlinear" and "method" in choice:
            counts = found.setdefault("non_linear", {}).setdefault(layer.rpartition(".")[2], {})
            counts[choice["method"]] = counts.get(choice["method"], 0) + 1
        elif step == "nonlinear":
            found["guard"] = {"sqnr_db": choice["sqnr_db"], "swapped": choice.get("swapped", [])}
    return found


def tuned(at: Setting, quantized: Any, minutes: float) -> Any:
    """Fine-tuned on the whole sample set, which holds no evaluation image."""
    _, mean, std = MODELS[at.name]
    images, _ = data.imagenet_images(data.CALIBRATION_FOLDER, TUNING_IMAGES, mean, std)
    return fxquant.finetune(
        quantized, images, teacher=at.model, minutes=minutes, epochs=TUNING_EPOCHS
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


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
    """One table of methods, one of regions."""
    table = Table(*COLUMNS, box=box.SIMPLE_HEAD)
    for row in rows:
        figures = [f"{row[key]:.2f}" for key in ("top1", "drop", "agreement", "sqnr_db")]
        seconds = f"{row['quantize_seconds']:.1f}"
        table.add_row(row["model"], row["method"], row["runs_as"], *figures, seconds)
    console.print(table)
    if not any("regions" in row for row in rows):
        return
    columns = ("model", "output", "regions", "differing elements", "worst, in output steps", "in")
    table = Table(*columns, box=box.SIMPLE_HEAD, title="x86 regions on the reference's own inputs")
    for row in rows:
        for kind, region in row.get("regions", {}).items():
            share, worst = f"{region['share']:.5%}", f"{region['worst_steps']:.3f}"
            count = str(region["regions"])
            table.add_row(row["model"], kind, count, share, worst, region["worst_layer"])
    console.print(table)


TABLES = {"recipes": recipes, "ablations": ablations, "claims": claims, "integer": integer}


def main() -> None:
    """Evaluate, print, record."""
    parser = argparse.ArgumentParser(description="methods x bits x models on real images")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--tables", default="recipes", help=f"of {', '.join(TABLES)}, or all")
    parser.add_argument("--methods", default=["*"], nargs="+", help="globs over method names")
    parser.add_argument("--calibration", type=int, default=128)
    parser.add_argument("--images", type=int, default=data.EVALUATION_COUNT)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if data.assets_dir() is None:
        parser.error(data.missing_reason())
    tables = list(TABLES) if options.tables == "all" else options.tables.split(",")
    methods = [m for table in tables for m in TABLES[table]()]
    methods = [m for m in methods if any(fnmatchcase(m.name, g) for g in options.methods)]
    rows = []
    for name in options.models.split(","):
        at = setting(name, calibration=options.calibration, images=options.images)
        quantizer = Quantizer(at)
        for method in methods:
            row = evaluate(at, method, quantizer)
            record.append("accuracy", row)
            rows.append(row)
            show(Console(width=110), [row])
    show(Console(width=110), rows)


if __name__ == "__main__":
    main()
