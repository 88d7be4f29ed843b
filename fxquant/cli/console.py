"""What the commands print, and how an error looks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from fxquant.errors import FxquantError, FxquantWarning

WIDTH = 120  # where the output is no terminal


def output(*, stderr: bool = False) -> Console:
    """A console made anew, so that it writes to wherever the stream points now."""
    console = Console(stderr=stderr, highlight=False)
    return console if console.is_terminal else Console(stderr=stderr, width=WIDTH, highlight=False)


def show_error(error: FxquantError) -> None:
    """What, where, why and fix, in red, without a traceback."""
    console = output(stderr=True)
    console.print(Text("error: ", style="bold red").append(error.what, style="red"))
    for label in ("where", "why", "fix"):
        text = getattr(error, label)
        if text:
            style = "default" if label == "fix" else "red"
            console.print(Text(f"  {label}: ", style="bold red").append(text, style=style))


def show_note(text: str) -> None:
    """Something to know that stops nothing."""
    line = Text("note: ", style="bold yellow").append(text, style="yellow")
    output(stderr=True).print(line)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Print fxquant's own warnings as notes, without the source line that raised them."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> Any:
            if issubclass(category, FxquantWarning):
                show_note(str(message))
            else:
                usual(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield
