"""``fxquant``: the commands put together."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fxquant.cli.bench import bench
from fxquant.cli.compile import compile_model
from fxquant.cli.console import output, plain_warnings, show_error
from fxquant.cli.evaluate import evaluate
from fxquant.cli.inspect import inspect_artifact
from fxquant.cli.quickstart import quickstart
from fxquant.errors import FxquantError


class _Commands(TyperGroup):
    """Prints deliberate errors instead of their tracebacks; the exit code is then 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with plain_warnings():
                return super().invoke(ctx)
        except FxquantError as error:
            show_error(error)
            raise typer.Exit(2) from None


app = typer.Typer(
    name="fxquant",
    cls=_Commands,
    help="One call from a PyTorch vision transformer to an int8 graph that runs on x86.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


def _show_version(wanted: Any) -> None:
    if wanted:
        from fxquant import __version__

        typer.echo(f"fxquant {__version__}")
        raise typer.Exit


@app.callback()
def common(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """One call from a PyTorch vision transformer to an int8 graph that runs on x86."""


def recipes() -> None:
    """Names and descriptions of the recipes that ship with fxquant."""
    from rich.table import Table

    from fxquant.recipe import recipe, recipe_names

    table = Table.grid(padding=(0, 2, 1, 0))
    for name in recipe_names():
        table.add_row(f"[bold]{name}[/]", recipe(name).description)
    output().print(table)


app.command("quickstart")(quickstart)
app.command("compile")(compile_model)
app.command("inspect")(inspect_artifact)
app.command("evaluate")(evaluate)
app.command("bench")(bench)
app.command("recipes")(recipes)

if __name__ == "__main__":
    app()
