"""``fxquant quickstart``: the packaged model, quantized, checked and timed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fxquant.cli.console import output


def quickstart(
    *,
    report: Annotated[Path, typer.Option(help="The report to write.", metavar="FILE")] = Path(
        "report.html"
    ),
    out: Annotated[Path, typer.Option(help="The artifact to write.", metavar="X.fxq")] = Path(
        "digits.fxq"
    ),
) -> None:
    """Quantize a small trained vision transformer; needs no download."""
    from fxquant.quickstart.run import run
    from fxquant.quickstart.show import show

    console = output()
    show(run(report=report, artifact=out, say=lambda step: console.print(f"[dim]{step} ...[/]")))
