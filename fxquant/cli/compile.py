"""``fxquant compile``: a named model into a ``.fxq`` file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fxquant.cli.console import output
from fxquant.cli.options import (
    MODEL,
    CalibrationFolder,
    Example,
    Pretrained,
    Weights,
    example_input,
    named_model,
    overridden,
)
from fxquant.errors import RecipeError


def compile_model(
    model: Annotated[str, typer.Argument(help=MODEL)],
    *,
    out: Annotated[Path, typer.Option(help="The artifact to write.", metavar="X.fxq")],
    weights: Weights = None,
    pretrained: Pretrained = False,
    calibration: CalibrationFolder = None,
    limit: Annotated[int, typer.Option(min=1, help="Calibration images read at most.")] = 1024,
    recipe: Annotated[
        str | None, typer.Option(help="A name (see 'fxquant recipes') or a YAML file.")
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option(help="Decide the matching sites anew; repeatable.", metavar="GLOB=SCHEME"),
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="Decisions in place of a recipe.", metavar="plan.json")
    ] = None,
    backend: Annotated[str, typer.Option(help="x86 or reference.")] = "x86",
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail where a planned layer gets no int8 kernel.")
    ] = False,
    example: Example = None,
    report: Annotated[
        Path | None, typer.Option(help="Write the report as HTML too.", metavar="R.html")
    ] = None,
) -> None:
    """Quantize a model and write it as a .fxq file."""
    import fxquant
    from fxquant.staging import check_writable, staged

    check_writable(out, report)
    if plan is not None and override:
        raise RecipeError(
            "a plan takes no overrides", where="--override", fix="edit the plan's own decisions"
        )
    chosen = overridden(recipe, override or [], calibrated=calibration is not None)
    made = fxquant.compile(
        named_model(model, weights=weights, pretrained=pretrained),
        calibration=calibration,
        recipe=chosen,
        plan=None if plan is None else fxquant.Plan.load(plan),
        backend=backend,
        strict=strict,
        example=example_input(example),
        limit=limit,
    )
    with staged(out, report) as files:
        made.save(files[0])
        if report is not None:
            made.report.to_html(files[1])
    made.report.show()
    console = output()
    console.print(f"\nwrote {out} ({out.stat().st_size / 1e6:.2f} MB)", markup=False)
    if report is not None:
        console.print(f"wrote {report}", markup=False)
