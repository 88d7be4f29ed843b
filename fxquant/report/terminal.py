"""The report as text: one table that fits 100 columns, with totals and reasons at its foot."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from fxquant.quant.metrics import EXACT_DB
from fxquant.report.methods import methods_table
from fxquant.report.text import plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from fxquant.report.model import Report, Row

PLAIN_WIDTH = 120  # where the output is no terminal
SHAPE_WIDTH = 92  # narrower terminals get no shapes
LONGEST_LAYER = 26  # longer names are folded
LOW_DB, POOR_DB = 10.0, 20.0  # SQNR in red, in yellow
SIMULATED = "SIMULATED: int8 numbers, float speed"


def amount(value: float, unit: str = "") -> str:
    """Three digits and a decimal prefix: ``21.8M``, ``5.72 MB``."""
    prefixes = ["", "k", "M", "G", "T", "P"]
    while abs(value) >= 999.5 and len(prefixes) > 1:
        value /= 1000
        prefixes.pop(0)
    return f"{value:.3g}{' ' if unit else ''}{prefixes[0]}{unit}"


def decibels(value: float | None) -> str:
    """One decimal; ``-`` where nothing was measured."""
    if value is None:
        return "-"
    return "exact" if value >= EXACT_DB else f"{value:.1f}"


def as_shown(report: Report) -> tuple[Report, str]:
    """The report and its word for int8. A simulated one counts quantized layers instead."""
    if not report.simulated:
        return report, "int8"
    rows = (replace(r, int8=bool(r.input_scheme and r.weight_scheme)) for r in report.rows)
    return report.with_rows(tuple(rows)), "quantized"


def shape(row: Row, *, factored: bool = False) -> str:
    """``197x192 -> 197x576``; factored ``197x(192->576)`` where only the last axis changes."""
    before, after = ("x".join(map(str, s)) for s in (row.input_shape, row.output_shape))
    if not before or not after or (before == after and not row.macs):
        return before or after
    lead = row.input_shape[:-1]
    if factored and lead and lead == row.output_shape[:-1]:
        outer = "x".join(map(str, lead))
        return f"{outer}x({row.input_shape[-1]}->{row.output_shape[-1]})"
    return f"{before} -> {after}"


def _usual(schemes: Iterable[str]) -> str:
    """The most frequent granularity and rule: ``/tensor/minmax``. Rows leave it out."""
    counts = Counter("".join(scheme.partition("/")[1:]) for scheme in schemes if scheme)
    return counts.most_common(1)[0][0] if counts else ""


def _scheme(scheme: str, usual: str) -> str:
    """Bits alone where the rest is usual, else all of it on two lines."""
    if usual and scheme.endswith(usual):
        return plain(scheme.removesuffix(usual))
    kind, _, rule = scheme.rpartition("/")
    return plain(f"{kind}/") + "\n" + plain(rule) if kind else plain(rule) or "float"


def _quality(value: float | None) -> Text:
    style = ""
    if value is not None and value < POOR_DB:
        style = "red" if value < LOW_DB else "yellow"
    return Text(decibels(value), style=style)


def _header(report: Report) -> Panel:
    grid = Table.grid(padding=(0, 2))
    for name in ("model", "recipe", "backend", "machine"):
        grid.add_row(Text(name, style="dim"), Text(plain(getattr(report, name)), overflow="fold"))
    loud = Text(f" {SIMULATED} ", style="bold black on yellow")
    return Panel(
        Group(grid, Text(), loud) if report.simulated else grid,
        title=Text("fxquant report"),
        title_align="left",
        border_style="yellow" if report.simulated else "dim",
        box=box.ROUNDED,
    )


def _reasons(rows: Iterable[Row]) -> dict[str, int]:
    """A number for each reason, in order of appearance."""
    texts = dict.fromkeys(row.reason for row in rows if row.reason)
    return {text: number for number, text in enumerate(texts, 1)}


def _table(rows: Sequence[Row], reasons: dict[str, int], *, width: int) -> Table:
    gap = 1 if width < PLAIN_WIDTH else 2
    table = Table(box=box.SIMPLE_HEAD, padding=(0, gap - 1, 0, 0), pad_edge=False, show_edge=False)
    longest = max((len(row.layer) for row in rows), default=0)
    table.add_column("layer", overflow="fold", width=min(max(longest, 5), LONGEST_LAYER))
    table.add_column("role", style="dim", no_wrap=True)
    if width >= SHAPE_WIDTH:
        table.add_column("shape", overflow="fold")
    table.add_column("MACs", justify="right", no_wrap=True)
    table.add_column("input", overflow="fold", max_width=11)
    table.add_column("weight", overflow="fold", max_width=11)
    table.add_column("SQNR dB", justify="right", no_wrap=True)
    table.add_column("kernel", overflow="fold")
    inputs, weights = _usual(r.input_scheme for r in rows), _usual(r.weight_scheme for r in rows)
    for row in rows:
        kernel = Text(plain(row.kernel) or "-", style="" if row.int8 else "dim")
        if row.reason:
            kernel.append(f" [{reasons[row.reason]}]", style="not dim yellow")
        weighted = row.float_bytes or row.weight_scheme
        shapes = [Text(shape(row, factored=True))] if width >= SHAPE_WIDTH else []
        table.add_row(
            Text(plain(row.layer)),
            Text(plain(row.role)),
            *shapes,
            amount(row.macs) if row.macs else "-",
            Text(_scheme(row.input_scheme, inputs)),
            Text(_scheme(row.weight_scheme, weights) if weighted else "-"),
            _quality(row.sqnr_db),
            kernel,
        )
    return table


def _feet(report: Report, shown: Sequence[Row], reasons: dict[str, int]) -> Iterator[Text]:
    """What belongs to the table but fits no column."""
    inputs, weights = _usual(r.input_scheme for r in shown), _usual(r.weight_scheme for r in shown)
    if inputs or weights:
        usual = f"input bits{inputs}, weight bits{weights}"
        yield Text(f"schemes where only bits are given: {plain(usual)}", style="dim")
    hidden = Counter(row.role for row in report.rows) - Counter(row.role for row in shown)
    if hidden:
        roles = ", ".join(f"{count} {plain(role)}" for role, count in hidden.most_common())
        yield Text(f"not shown, as they have no MACs: {roles}", style="dim")
    if reasons:
        yield Text("\nreasons" if report.simulated else "\nnot int8", style="bold")
    for reason, number in reasons.items():
        count = sum(row.reason == reason for row in shown)
        line = Text(f"[{number}] ", style="yellow")
        yield line.append(f"{plain(reason)} ({count} row{'s' * (count != 1)})", style="default")
    yield Text()


def _totals(report: Report, word: str) -> Table:
    totals, sqnr = report.totals, report.output_sqnr_db
    ratio = f" ({totals.float_bytes / totals.bytes:.2f}x smaller)" if totals.bytes else ""
    sizes = f"{amount(totals.float_bytes, 'B')} -> {amount(totals.bytes, 'B')}{ratio}"
    share = f"{totals.int8_linear_share:.1%} of {amount(totals.linear_macs)}"
    output = "not measured" if sqnr is None else f"{decibels(sqnr)} dB".replace("exact dB", "exact")
    grid = Table.grid(padding=(0, 2))
    grid.add_row(f"{word} layers", Text(f"{totals.int8_layers} of {totals.layers}", style="bold"))
    grid.add_row(f"{word} linear MACs", Text(share, style="bold"))
    grid.add_row("weight bytes", Text(sizes, style="bold"))
    grid.add_row("output SQNR", Text(output, style="bold"))
    if report.timings:
        steps = ", ".join(f"{plain(name)} {seconds:.2f} s" for name, seconds in report.timings)
        total = sum(seconds for _, seconds in report.timings)
        grid.add_row("time", Text(f"{total:.2f} s: {steps}"))
    return grid


def show(report: Report, console: Console | None = None, *, all_layers: bool = False) -> None:
    """Print the report; ``all_layers`` also shows norms, activations and additions, and the
    methods tried at non-linearities."""
    if console is None:
        console = Console()
        if not console.is_terminal and not console.is_jupyter:
            console = Console(width=PLAIN_WIDTH)
    report, word = as_shown(report)
    shown = [r for r in report.rows if all_layers or r.macs or r.float_bytes]
    reasons = _reasons(shown)
    console.print(_header(report), _table(shown, reasons, width=console.width), "")
    for line in _feet(report, shown, reasons):
        console.print(line)
    if all_layers and report.sensitivities:
        console.print(methods_table(report.sensitivities))
    console.print(_totals(report, word), *([""] if report.notes else []))
    for layer, sentence in report.notes:
        line = Text("note ", style="yellow")
        console.print(line.append(plain(f"{layer}: {sentence}" if layer else sentence), "default"))
