"""Methods tried at non-linearities, as a table for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from fxquant.report.text import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fxquant.report.model import Sensitivity


def methods_table(sensitivities: Sequence[Sensitivity]) -> Table:
    """dB in less dB out by layer and method; what the plan has is bold."""
    methods = list(dict.fromkeys(s.method for s in sensitivities))
    cells = {(s.layer, s.method): s for s in sensitivities}
    table = Table(box=box.SIMPLE_HEAD, title="dB lost through each non-linearity, by method")
    table.add_column("layer", overflow="fold")
    table.add_column("in dB", justify="right")
    for method in methods:
        table.add_column(plain(method), justify="right")
    for layer in dict.fromkeys(s.layer for s in sensitivities):
        first = next(s for s in sensitivities if s.layer == layer)
        row = [Text(plain(layer)), Text(f"{first.in_db:.1f}")]
        for method in methods:
            one = cells.get((layer, method))
            style = "bold" if one is not None and one.chosen else "dim"
            row.append(Text("" if one is None else f"{one.delta_db:.2f}", style=style))
        table.add_row(*row)
    return table
