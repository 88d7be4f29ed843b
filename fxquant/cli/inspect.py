"""``fxquant inspect``: what a ``.fxq`` file holds, without running or lowering it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fxquant.cli.console import output


def inspect_artifact(
    artifact: Annotated[Path, typer.Argument(help="A .fxq file.", metavar="X.fxq")],
    *,
    layers: Annotated[
        bool, typer.Option("--layers", help="Norms, activations and additions too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print manifest and report.")] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write the report as HTML.", metavar="FILE")
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(help="Write the plan, for 'compile --plan'.", metavar="plan.json"),
    ] = None,
) -> None:
    """Show what an artifact holds: layers, schemes, kernels, quality, size."""
    from fxquant.artifact import read
    from fxquant.staging import staged

    stored = read(artifact)
    with staged(html, plan) as files:
        if html is not None:
            stored.report.to_html(files[0])
        if plan is not None:
            stored.plan.save(files[-1])
    if as_json:
        typer.echo(json.dumps({"manifest": stored.manifest, "report": stored.report.to_json()}))
        return
    stored.report.show(all_layers=layers)
    output().print(_described(stored.manifest, artifact.stat().st_size), markup=False)


def _described(manifest: dict[str, Any], size: int) -> str:
    made = f"fxquant {manifest['fxquant']}, torch {manifest['torch']}"
    steps = str(manifest["extra"].get("pipeline", "")) or "not recorded"
    facts = {
        "file": f"{size / 1e6:.2f} MB, format {manifest['format_version']}, made by {made}",
        "runs on": manifest["backend"],
        "pipeline": steps,
    }
    lines = (f"{name:9} {value}" for name, value in facts.items())
    text = "\n" + "\n".join(lines)
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
