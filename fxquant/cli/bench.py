"""``fxquant bench``: float against int8, interleaved in one run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fxquant.cli.console import output, show_note
from fxquant.cli.options import (
    MODEL,
    CalibrationFolder,
    Example,
    Pretrained,
    Weights,
    example_input,
    named_model,
    numbers,
)
from fxquant.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fxquant.profile import Profile
    from fxquant.timing import Timed

CALIBRATION_IMAGES = 16  # random ones: their values do not change the speed
FIDELITY_IMAGES = 16


def bench(
    model: Annotated[str, typer.Argument(help=f"{MODEL}; or a .fxq file")],
    *,
    against: Annotated[
        str | None, typer.Option(help="The float model of a .fxq file.", metavar="timm:NAME")
    ] = None,
    weights: Weights = None,
    pretrained: Pretrained = False,
    calibration: CalibrationFolder = None,
    recipe: Annotated[str, typer.Option(help="See 'fxquant recipes'.")] = "w8a8",
    example: Example = None,
    batch: Annotated[str, typer.Option(help="Batch sizes.")] = "1,16",
    threads: Annotated[int, typer.Option(min=0, help="0: as torch sees fit.")] = 0,
    seconds: Annotated[float, typer.Option(help="For each batch size, once compiled.")] = 20.0,
    with_profile: Annotated[
        bool, typer.Option("--profile", help="Time per kernel and per layer too.")
    ] = False,
) -> None:
    """Time float (torch.compile, constant weights) against int8, and compare their logits."""
    import torch

    from fxquant.profile import profile

    sizes = numbers(batch, option="--batch")
    if threads:
        torch.set_num_threads(threads)
    stored = model.endswith(".fxq")
    if stored:
        quantized, original = _stored(Path(model), against, weights, pretrained)
    else:
        if against is not None:
            raise InputError("--against belongs to a .fxq file", where=model, fix="leave it out")
        original = named_model(model, weights=weights, pretrained=pretrained)
        quantized = _quantized(original, calibration, recipe, example)
    x = _images(quantized, max(FIDELITY_IMAGES, *sizes))
    profiles = [(size, profile(quantized, x[:size])) for size in sizes if with_profile]
    rows = [(size, _timed(quantized, original, x[:size], seconds)) for size in sizes]
    _show_times(rows)
    for size, found in profiles:
        _show_profile(size, found)
    _show_facts(quantized, original, x[:FIDELITY_IMAGES], batch=sizes[-1])
    library = (against if stored else model) or ""
    random = library.startswith(("timm:", "torchvision:")) and weights is None and not pretrained
    _show_notes(quantized, random=random, calibrated=stored or calibration is not None)


def _stored(
    path: Path, against: str | None, weights: Path | None, pretrained: object
) -> tuple[Any, nn.Module | None]:
    import fxquant

    made = fxquant.load(path)
    if against is None:
        show_note("no float model to compare with: pass --against timm:NAME")
        return made, None
    return made, named_model(against, weights=weights, pretrained=pretrained)


def _quantized(model: nn.Module, calibration: Path | None, recipe: str, example: str | None) -> Any:
    import torch

    import fxquant
    from fxquant.models.example import example_for

    given = example_input(example)
    data: Any = calibration
    if data is None:
        shape = (example_for(model) if given is None else given).shape[1:]
        generator = torch.Generator().manual_seed(1)
        data = torch.randn(CALIBRATION_IMAGES, *shape, generator=generator)
    return fxquant.compile(model, calibration=data, recipe=recipe, example=given)


def _images(quantized: Any, count: int) -> Tensor:
    import torch

    from fxquant.cli.shapes import input_shape

    generator = torch.Generator().manual_seed(2)
    return torch.randn(count, *input_shape(quantized), generator=generator)


def _timed(quantized: Any, model: nn.Module | None, x: Tensor, seconds: float) -> dict[str, Timed]:
    import torch

    from fxquant.timing import float_baseline, interleaved

    torch._dynamo.reset()  # each batch size is compiled for itself, as if it were the only one
    calls: dict[str, Callable[[], object]] = {}
    if model is not None:
        baseline = float_baseline(model, x)
        calls["float"] = lambda: baseline(x)
    calls["int8"] = lambda: quantized(x)
    return interleaved(calls, seconds=seconds)


def _show_times(rows: list[tuple[int, dict[str, Timed]]]) -> None:
    from rich import box
    from rich.table import Table

    table = Table("batch", "float ms", "int8 ms", "float / int8", "clean samples", box=box.SIMPLE)
    for size, times in rows:
        ours, theirs = times["int8"], times.get("float")
        table.add_row(
            str(size),
            "-" if theirs is None else f"{theirs.ms:.3f}",
            f"{ours.ms:.3f}",
            "-" if theirs is None else f"[bold]{theirs.median_s / ours.median_s:.2f}[/]",
            ", ".join(f"{name} {t.clean} of {t.samples}" for name, t in times.items()),
        )
    output().print(table)
    if any(timed.disturbed for _, times in rows for timed in times.values()):
        show_note("other processes held the cores during most samples: do not trust these times")


def _show_profile(size: int, found: Profile) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    steps = sum(step.seconds for step in found.steps)
    for what, groups in (("kernel", found.by_kernel()), ("layer", found.by_layer())):
        table = Table(what, "kernels", "steps", "ms", "%", "GOP/s", box=box.SIMPLE)
        table.title = f"batch {size}: {1e3 * found.total_s:.3f} ms, {1e3 * steps:.3f} ms in steps"
        for group in groups:
            kernels = "" if what == "kernel" else ", ".join(group.kernels)
            figures = (f"{1e3 * group.seconds:.3f}", f"{100 * group.share:.1f}")
            rate = f"{group.gops:.0f}" if group.macs else "-"
            table.add_row(Text(group.name), kernels, str(group.steps), *figures, rate)
        output().print(table)


def _show_facts(quantized: Any, model: nn.Module | None, x: Tensor, *, batch: int) -> None:
    import torch

    from fxquant.fidelity import logits_of
    from fxquant.quant.metrics import sqnr_db
    from fxquant.timing import baseline_is_fair

    console = output()
    if model is not None:
        reference, ours = (logits_of(m, x, batch=batch) for m in (model, quantized))
        distance = f"{sqnr_db(reference, ours):.1f} dB on {len(x)} random inputs"
        console.print(f"SQNR of the logits: {distance}")
    machine, threads = quantized.report.machine, torch.get_num_threads()
    console.print(f"{machine}, {threads} threads, torch {torch.__version__}", markup=False)
    if baseline_is_fair():
        console.print("float products take MKL's fast path")


def _show_notes(quantized: Any, *, random: object, calibrated: object) -> None:
    from fxquant.timing import baseline_is_fair

    if quantized.report.simulated:
        show_note("the reference backend simulates int8: its times are not those of int8")
    if random:
        show_note("the float weights are random, as there is no --weights: the SQNR says little")
    if not calibrated:
        show_note("activation ranges come from random inputs, as there is no --calibration")
    if not baseline_is_fair():
        show_note(
            "MKL takes a slow path on this CPU, so the float times may be up to twice too long; "
            "benchmarks/latency.py overrides that"
        )
