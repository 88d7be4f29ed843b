"""Seconds until ready, and peak memory, in fresh processes: ``python benchmarks/startup.py``.

Ready: an artifact is loaded (which lowers it) and has answered once. Cold: with empty compiler
caches. Peak memory is VmHWM after one forward of a large batch, weights included, of the int8
model and of float32 under torch.compile with constant weights. Results:
``benchmarks/results/startup.jsonl``.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

CALIBRATION_IMAGES = 16


def peak_mb() -> float:
    """VmHWM of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    line = next(line for line in lines if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def child(what: str, name: str, artifact: str, batch: int) -> dict[str, Any]:
    """Runs in a process of its own: one forward, timed from after the imports."""
    import torch

    import fxquant
    from fxquant.capture.torchvision_ops import import_with_torchvision

    torch.set_num_threads(2)
    x = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    if what == "int8":
        start = time.perf_counter()
        run: Any = fxquant.load(artifact)
    else:
        import_with_torchvision("torchvision")
        from benchmarks.random_weights import random_model
        from fxquant.timing import float_baseline

        model = random_model(name)
        start = time.perf_counter()
        run = float_baseline(model, x)
    with torch.no_grad():
        run(x)
    return {"seconds": round(time.perf_counter() - start, 2), "peak_mb": round(peak_mb(), 1)}


def fresh(what: str, name: str, artifact: str, batch: int, caches: str) -> dict[str, Any]:
    """:func:`child` in a new process with its compiler caches in a folder."""
    command = [sys.executable, __file__, "--child", what, "--models", name]
    command += ["--artifact", artifact, "--batch", str(batch)]
    own = {"FXQUANT_CACHE": f"{caches}/kernels", "TORCHINDUCTOR_CACHE_DIR": f"{caches}/inductor"}
    done = subprocess.run(
        command, env=os.environ | own, capture_output=True, text=True, check=False, cwd=ROOT
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(name: str, batch: int) -> dict[str, Any]:
    """Cold and warm starts at batch 1, peak memory at ``batch``."""
    import torch

    import fxquant
    from benchmarks.random_weights import random_model

    images = torch.randn(CALIBRATION_IMAGES, 3, 224, 224)
    with tempfile.TemporaryDirectory() as folder:
        artifact = f"{folder}/model.fxq"
        fxquant.compile(random_model(name), calibration=images).save(artifact)
        cold = fresh("int8", name, artifact, 1, f"{folder}/cache")
        warm = fresh("int8", name, artifact, 1, f"{folder}/cache")
        ours = fresh("int8", name, artifact, batch, f"{folder}/cache")
        theirs = fresh("float", name, artifact, batch, f"{folder}/cache")
    return {
        "model": name,
        "cold_s": cold["seconds"],
        "warm_s": warm["seconds"],
        "batch": batch,
        "int8_peak_mb": ours["peak_mb"],
        "float_peak_mb": theirs["peak_mb"],
        "memory_ratio": round(ours["peak_mb"] / theirs["peak_mb"], 3),
    }


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description="start-up time and peak memory")
    parser.add_argument("--models", default="deit_small,vit_base")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    parser.add_argument("--artifact", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        found = child(options.child, options.models, options.artifact, options.batch)
        print(json.dumps(found))
        return
    from rich.console import Console

    from benchmarks import record
    from fxquant.capture.torchvision_ops import import_with_torchvision

    import_with_torchvision("torchvision")
    for name in options.models.split(","):
        row = measure(name, options.batch)
        record.append("startup", row)
        Console().print(row)


if __name__ == "__main__":
    main()
