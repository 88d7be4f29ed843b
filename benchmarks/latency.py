"""fxquant, float and other int8 frameworks, interleaved in one run.

``python benchmarks/latency.py --models deit_small``; ``--peers none`` for float and int8 alone.
Float is torch.compile with constant weights ("freezing") at a fixed shape, on MKL's fast path; the
peers are in ``benchmarks/peers.py``, those not installed are named. All get the same threads, the
same images, the same 16 for calibration. Weights are random, so the speed is real and the SQNR only
tells that nothing is broken. Results: ``benchmarks/results/latency.jsonl``.
"""

import argparse
import gc
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from benchmarks import record
from benchmarks.fair_baseline import restart_fairly
from benchmarks.peers import CONTENDERS, PEERS, Ready, Task, attempt
from fxquant.capture.torchvision_ops import import_with_torchvision
from fxquant.fidelity import compare, logits_of
from fxquant.timing import interleaved

CALIBRATION_IMAGES = 16
FIDELITY_IMAGES = 16
FAITHFUL_DB = 20.0  # a peer below counts as the fastest only where all peers are
COLUMNS = ("model, batch", "contender", "ms", "fp32 / it", "it / fxquant", "SQNR dB", "clean")


class Field:
    """The contenders for one model: each quantized once, then made ready for a batch size."""

    def __init__(self, name: str, task: Task, chosen: list[str]) -> None:
        self.name, self.task = name, task
        self.ready: dict[str, Ready] = {}
        self.seconds: dict[str, float] = {}
        self.out: dict[str, dict[str, Any]] = {}
        for key in chosen:
            if missing := CONTENDERS[key].absent:
                self.out[key] = {"absent": f"not installed: {', '.join(missing)}"}
            else:
                self._prepare(key)

    def _prepare(self, key: str) -> None:
        start = time.perf_counter()
        made = attempt(lambda: CONTENDERS[key].prepare(self.task))
        self.seconds[key] = time.perf_counter() - start
        if isinstance(made, str):
            self.out[key] = {"failed": made, "quantize_s": round(self.seconds[key], 1)}
        else:
            self.ready[key] = made

    def measure(self, batch: int, *, seconds: float) -> dict[str, Any]:
        """All that can run, on the same images, each compiled for this batch size alone."""
        torch._dynamo.reset()
        size = max(FIDELITY_IMAGES, batch)
        images = random_images(size, tuple(self.task.images.shape[1:]), seed=2)
        reference = logits_of(self.task.model, images, batch=batch)
        x = images[:batch].contiguous()
        rows: dict[str, dict[str, Any]] = dict(self.out)
        calls: dict[str, Callable[[], object]] = {}
        for key, ready in self.ready.items():
            start = time.perf_counter()
            made = attempt(lambda ready=ready: (c := ready(x), logits_of(c, images, batch=batch)))
            spent = {"quantize_s": self.seconds[key], "compile_s": time.perf_counter() - start}
            rows[key] = {name: round(value, 1) for name, value in spent.items()}
            if isinstance(made, str):
                rows[key]["failed"] = made
                continue
            call, logits = made
            found = compare(reference, logits)
            rows[key] |= {"sqnr_db": round(found.sqnr_db, 2), "agreement": found.agreement}
            rows[key] |= {"versions": CONTENDERS[key].versions}
            calls[key] = lambda call=call: call(x)
        times = interleaved(calls, rounds=40, seconds=seconds) if calls else {}
        for key, timed in times.items():
            rows[key] |= {"ms": round(timed.ms, 4), "best_ms": round(timed.best_s * 1e3, 4)}
            clean = f"{timed.clean}/{timed.samples}"
            rows[key] |= {"clean": clean, "disturbed": timed.disturbed}
        ordered = {key: rows[key] for key in CONTENDERS if key in rows}
        return {"model": self.name, "batch": batch, **verdict(ordered), "contenders": ordered}


def verdict(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The fastest peer, of the faithful ones where there are any, and times over fxquant's."""
    ran = {key: row for key, row in rows.items() if "ms" in row}
    peers = {key: row for key, row in ran.items() if key in PEERS}
    faithful = {key: row for key, row in peers.items() if row["sqnr_db"] >= FAITHFUL_DB}
    fastest = min(faithful or peers, key=lambda key: float(ran[key]["ms"]), default=None)

    base = ran.get("fxquant", {}).get("ms")
    over = {key: round(row["ms"] / base, 3) for key, row in ran.items() if base}
    return {
        "fastest_peer": fastest,
        "peer_to_fxquant": over.get(fastest),
        "fp32_to_fxquant": over.get("fp32"),
        "disturbed": any(row["disturbed"] for row in ran.values()),
    }


def random_images(count: int, shape: tuple[int, ...], *, seed: int) -> Tensor:
    """Normally distributed, alike in every run."""
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def add_rows(table: Table, row: Mapping[str, Any]) -> None:
    """One line for each contender; those that did not run say why."""
    contenders = row["contenders"]
    here, base = (contenders.get(key, {}).get("ms") for key in ("fxquant", "fp32"))
    title = f"{row['model']}, {row['batch']}"
    for key, found in contenders.items():
        if "ms" not in found:
            why = escape(found.get("failed") or found["absent"])
            table.add_row(title, key, *[""] * 4, f"[yellow]{why}[/]")
        else:
            clean = found["clean"] + (" [red]DISTURBED[/]" if found["disturbed"] else "")
            ms = found["ms"]
            shares = (f"{base / ms:.2f}" if base else "-", f"{ms / here:.2f}" if here else "-")
            table.add_row(title, key, f"{ms:.3f}", *shares, f"{found['sqnr_db']:.1f}", clean)
        title = ""
    ratios = f"fp32 {row['fp32_to_fxquant']}, {row['fastest_peer']} {row['peer_to_fxquant']}"
    table.add_row("", "over fxquant", f"[bold]{ratios}[/]", end_section=True)


def confine(threads: int) -> None:
    """Keep every contender's threads on the same cores, one hardware thread of each core first."""
    if not hasattr(os, "sched_setaffinity"):
        return
    cores: dict[str, list[int]] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.setdefault(path.read_text() if path.exists() else str(cpu), []).append(cpu)
    order = sorted((place, cpu) for core in cores.values() for place, cpu in enumerate(core))
    os.sched_setaffinity(0, {cpu for _, cpu in order[:threads]})


def chosen(only: str, peers: str) -> list[str]:
    """Names of contenders from ``--only`` and ``--peers``, in the order of the table."""
    names = set(only.split(",") if only else CONTENDERS)
    if unknown := sorted(names - set(CONTENDERS)):
        raise SystemExit(f"unknown: {', '.join(unknown)}; there are {', '.join(CONTENDERS)}")
    return [key for key in CONTENDERS if key in names and (peers != "none" or key not in PEERS)]


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description="fxquant, float and int8 peers, interleaved")
    parser.add_argument("--models", default="deit_tiny,deit_small,vit_base")
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--recipe", default="w8a8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60.0, help="of timing per row")
    parser.add_argument("--only", default="", help=f"some of {','.join(CONTENDERS)}")
    parser.add_argument("--peers", default="installed", choices=("installed", "none"))
    options = parser.parse_args()
    names = chosen(options.only, options.peers)
    fair = restart_fairly()
    confine(options.threads)
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    import_with_torchvision("torchvision")
    from benchmarks.random_weights import random_model  # imports timm, after it is mended

    console = Console(width=120, highlight=False)
    table = Table(*COLUMNS, box=box.SIMPLE_HEAD)
    for name in options.models.split(","):
        model = random_model(name)
        shape = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))
        images = random_images(CALIBRATION_IMAGES, shape, seed=1)
        with tempfile.TemporaryDirectory(prefix="fxquant-") as folder:
            task = Task(model, images, options.threads, Path(folder), options.recipe)
            field = Field(name, task, names)
            for batch in map(int, options.batches.split(",")):
                row = field.measure(batch, seconds=options.seconds)
                row |= {"recipe": options.recipe, "fair_baseline": fair}
                record.append("latency", row)
                add_rows(table, row)
                console.print(f"[dim]{name}, batch {batch}: done[/]")
        del field
        gc.collect()
    console.print(table)


if __name__ == "__main__":
    main()
