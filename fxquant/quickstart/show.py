"""What the quick start prints at its end."""

from __future__ import annotations

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from fxquant.quickstart.run import Outcome
from fxquant.report.terminal import PLAIN_WIDTH, amount


def show(outcome: Outcome, console: Console | None = None) -> None:
    """The layers, then one table of what was measured, then notes and files."""
    if console is None:
        console = Console(highlight=False)
        if not console.is_terminal:
            console = Console(highlight=False, width=PLAIN_WIDTH)
    outcome.report.show()
    fidelity, totals = outcome.fidelity, outcome.report.totals
    title = f"{fidelity.images} held-out digits, {torch.get_num_threads()} threads"
    table = Table("", "float", "int8", "", box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_row(
        "top-1",
        f"{fidelity.float_top1:.2f} %",
        f"{fidelity.int8_top1:.2f} %",
        f"{fidelity.agreement:.2f} % get the same class",
    )
    table.add_row("logits", "", "", f"SQNR {fidelity.sqnr_db:.1f} dB")
    for size, times in sorted(outcome.times.items()):
        ours, theirs = times["int8"], times["float"]
        table.add_row(
            f"batch {size}",
            f"{theirs.ms:.3f} ms",
            f"{ours.ms:.3f} ms",
            f"int8 is {theirs.median_s / ours.median_s:.2f}x as fast",
        )
    table.add_row(
        "weights of layers",
        amount(totals.float_bytes, "B"),
        amount(totals.bytes, "B"),
        f"{totals.float_bytes / totals.bytes:.2f}x smaller" if totals.bytes else "",
    )
    table.add_row(
        "file",
        amount(outcome.float_bytes, "B"),
        amount(outcome.artifact_bytes, "B"),
        "reads back bit-equal" if outcome.reload_equal else "[red]reads back with OTHER bits[/]",
    )
    console.print("", table)
    if outcome.times:
        console.print("[dim]float: torch.compile with constant weights; medians, interleaved[/]")
    for note in outcome.notes:
        console.print("[bold yellow]note:[/]", f"[yellow]{note}[/]")
    wrote = " and ".join(map(str, outcome.files))
    console.print(f"wrote {wrote} in {outcome.seconds:.0f} s", markup=False)
