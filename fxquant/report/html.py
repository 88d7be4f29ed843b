"""The report as one HTML page that needs nothing else: no network, no script to be read."""

from __future__ import annotations

import math
from collections import Counter
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from fxquant.report.heatmap import heatmap
from fxquant.report.terminal import SIMULATED, amount, as_shown, decibels, shape
from fxquant.report.text import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fxquant.report.model import Report, Row

TALLEST_DB, DEEPEST_DB = 60.0, -20.0  # bars end here, so that exact layers do not dwarf the rest
AXIS = 6.0  # percent of the chart's width for the axis labels
FILL = ("float", "int8")  # CSS class by Row.int8
NAMES = ("layer", "shape", "MACs", "weight bytes", "input and weight scheme", "SQNR dB", "kernel")
NUMBERS = ("MACs", "weight bytes", "SQNR dB")

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1b2129; --dim: #5d6876;
  --line: #e1e5ea; --int8: #2563c9; --float: #a9b3bf; --warn: #955800; }
@media (prefers-color-scheme: dark) { :root { --page: #0f1317; --card: #181d23; --ink: #e4e8ec;
  --dim: #98a3af; --line: #2a313a; --int8: #6aa5f8; --float: #66727f; --warn: #e5ad55; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 28px 20px 60px; max-width: 1240px; background: var(--page);
  color: var(--ink); font: 15px/1.45 system-ui, sans-serif; font-variant-numeric: tabular-nums; }
h1 { margin: 0; font-size: 27px; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 0 0 12px; font-size: 15px; } p, ul { margin: 0; } ul { padding-left: 20px; }
.dim, dt, .tile span, th, td { font-size: 13px; } .dim, dt, .tile span, th { color: var(--dim); }
dl { display: flex; flex-wrap: wrap; gap: 4px 28px; margin: 10px 0 20px; }
dt, dd { display: inline; margin: 0 6px 0 0; }
code { font: 13px ui-monospace, monospace; overflow-wrap: anywhere; }
.loud { background: #ffd24d; color: #221a00; font-weight: 700; padding: 12px 18px; }
.card, .loud { border-radius: 10px; margin-bottom: 16px; }
.card { background: var(--card); border: 1px solid var(--line); padding: 16px 18px; min-width: 0; }
.grid { display: grid; gap: 0 16px; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); }
.wide { grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); }
@media (max-width: 1180px) { .tiles { grid-template-columns: 1fr 1fr; } }
.tile b { display: block; font-size: 20px; line-height: 1.4; }
svg { display: block; width: 100%; } svg text { fill: var(--dim); font-size: 11px; }
.int8 { fill: var(--int8); } .float { fill: var(--float); } .axis { stroke: var(--line); }
.bar { display: flex; justify-content: space-between; gap: 16px; overflow-wrap: anywhere; }
.bar + svg { margin: 3px 0 11px; } .bar b { white-space: nowrap; } .track { fill: var(--line); }
.dim svg { display: inline; width: 10px; margin: 0 5px 0 0; }
.tools { display: flex; flex-wrap: wrap; gap: 8px 20px; margin-bottom: 12px; align-items: center; }
[type=search] { font: inherit; padding: 5px 10px; border: 1px solid var(--line); color: inherit;
  border-radius: 7px; background: var(--page); } [hidden] { display: none !important; }
body:has(#minor:not(:checked)) tr.minor { display: none; }
table { border-collapse: collapse; width: 100%; } tbody tr { border-top: 1px solid var(--line); }
th { text-align: left; } td, th { vertical-align: top; padding: 7px 14px 7px 0; }
td:first-child { min-width: 150px; } td small { display: block; font-size: 12px; opacity: .75; }
.num { text-align: right; white-space: nowrap; } small.why { color: var(--warn); opacity: 1; }
.heat { border-spacing: 2px; border-collapse: separate; width: auto; }
.heat td { padding: 2px 10px; text-align: right; color: #10151b; border-radius: 4px; }
.heat td:first-child { color: inherit; text-align: left; } .heat b { text-decoration: underline; }
@media (max-width: 760px) { thead { display: none; } table, tbody { display: block; }
  tbody tr { display: grid; grid-template-columns: 1fr 1fr; gap: 2px 16px; padding: 10px 0; }
  td { padding: 0; } td:first-child, td:last-child { grid-column: 1/-1; }
  td:empty { display: none; } td.num { text-align: left; }
  td[title]::before { content: attr(title) " "; opacity: .7; } }
"""
SCRIPT = """
const [find, only] = document.querySelectorAll("#find, #only");
const body = document.querySelector("#layers tbody"), rows = [...body.rows];
const text = (row, i) => row.cells[i].dataset.v ?? row.cells[i].textContent;
document.querySelectorAll(".tools > [hidden]").forEach(e => { e.hidden = false; });
find.oninput = only.onchange = () => rows.forEach(row => {
  const found = row.textContent.toLowerCase().includes(find.value.toLowerCase());
  row.hidden = !found || only.checked && row.classList.contains("int8"); });
document.querySelectorAll("#layers th").forEach((th, i, _, way = -1) => th.onclick = () => {
  way = -way;
  rows.sort((p, q) => { const a = text(p, i), b = text(q, i);
    return a === "" || b === "" ? (a === "") - (b === "") : way * (isNaN(a) || isNaN(b)
      ? a.localeCompare(b, "en", { numeric: true }) : a - b); }); body.append(...rows); });
"""
HEAD = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<style>{STYLE}</style>"""
TOOLS = """<div class="tools"><input type="search" id="find" placeholder="find a layer" hidden>
<label hidden><input type="checkbox" id="only"> only float layers</label>
<label><input type="checkbox" id="minor"> norms, activations and additions too</label></div>"""


def _text(text: str) -> str:
    return escape(plain(text))


def _card(title: str, content: str) -> str:
    return f'<section class="card"><h2>{title}</h2>{content}</section>' if content else ""


def _sqnr_chart(rows: Sequence[Row], word: str) -> str:
    """A column per layer. Coordinates are percentages, so that text keeps its size."""
    entries = ((row.sqnr_db, i, row) for i, row in enumerate(rows))
    known = [(v, i, row) for v, i, row in entries if v is not None and math.isfinite(v)]
    if not known:
        return '<p class="dim">Not measured.</p>'
    top = min(TALLEST_DB, 10 * math.ceil(max(1.0, *(v for v, _, _ in known)) / 10))
    low = max(DEEPEST_DB, 10 * math.floor(min(0.0, *(v for v, _, _ in known)) / 10))

    def y(value: float) -> float:
        return 8 + 90 * (top - min(max(value, low), top)) / (top - low)

    parts = [
        f'<line class="axis" x2="100%" y1="{y(tick):.2f}%" y2="{y(tick):.2f}%"/>'
        f'<text y="{y(tick):.2f}%" dy="-3">{tick}{" dB" if tick == top else ""}</text>'
        for tick in range(int(low), int(top) + 1, 10)
    ]
    step = (100 - AXIS) / len(rows)
    parts += [
        f'<rect class="{FILL[row.int8]}" x="{AXIS + step * i:.3f}%" width="{0.78 * step:.3f}%"'
        f' y="{min(y(value), y(0)):.2f}%" height="{max(abs(y(value) - y(0)), 0.4):.2f}%">'
        f"<title>{_text(row.layer)}: {decibels(value)} dB</title></rect>"
        for value, i, row in known
    ]
    worst = sorted(known, key=lambda entry: entry[0])[:3]
    lowest = ", ".join(f"<code>{_text(row.layer)}</code> {v:.1f}" for v, _, row in worst)
    limits = f" Not measured: {len(rows) - len(known)}." if len(rows) > len(known) else ""
    limits += f" Bars end at {top:g} dB." if any(v > top for v, _, _ in known) else ""
    keys = " ".join(
        f'<svg height="10"><rect class="{kind}" width="10" height="10"/></svg>{name}'
        for kind, name in (("int8", word), ("float", "float"))
    )
    return (
        f'<svg height="230" role="img" aria-label="SQNR by layer">{"".join(parts)}</svg><p class="'
        f'dim">{keys}. Layers in graph order. Lowest: {lowest}.{limits}</p>'
    )


def _bars(rows: Sequence[Row], field: str) -> str:
    """Share of all MACs by ``kernel`` or ``reason``."""
    macs: Counter[tuple[str, bool]] = Counter()
    for row in rows:
        macs[getattr(row, field), row.int8] += row.macs
    total = max(macs.total(), 1)
    return "".join(
        f'<div class="bar"><span>{_text(name)}</span><b>{count / total:.1%}</b></div>'
        '<svg height="8"><rect class="track" width="100%" height="8" rx="3"/><rect class="'
        f'{FILL[int8]}" width="{100 * count / total:.2f}%" height="8" rx="3"/></svg>'
        for (name, int8), count in macs.most_common()
        if name
    )


def _row(row: Row) -> str:
    schemes = "<br>".join(_text(s) for s in (row.input_scheme, row.weight_scheme) if s) or "float"
    sizes = f"{amount(row.float_bytes, 'B')} → {amount(row.bytes, 'B')}" if row.float_bytes else ""
    said = [*([row.reason] if row.reason else []), *row.choices]
    why = "".join(f'<small class="why">{_text(text)}</small>' for text in said)
    order = "" if row.sqnr_db is None or math.isnan(row.sqnr_db) else row.sqnr_db
    return (
        f'<tr class="{FILL[row.int8]}{"" if row.macs or row.float_bytes else " minor"}">'
        f"<td><code>{_text(row.layer)}</code><small>{_text(row.role)}</small></td>"
        f'<td>{shape(row).replace("->", "→")}</td><td class="num" title="MACs" data-v="{row.macs}">'
        f'{amount(row.macs)}</td><td class="num" data-v="{row.float_bytes}">{sizes}</td>'
        f'<td>{schemes}</td><td class="num" title="SQNR dB" data-v="{order}">'
        f"{decibels(row.sqnr_db)}</td><td>{_text(row.kernel)}{why}</td></tr>\n"
    )


def _tiles(report: Report, word: str) -> str:
    totals, sqnr = report.totals, report.output_sqnr_db
    ratio = f", {totals.float_bytes / totals.bytes:.2f}× smaller" if totals.bytes else ""
    tiles = {
        f"{word} weighted layers": f"{totals.int8_layers} of {totals.layers}",
        f"{word}, of {amount(totals.linear_macs)} linear MACs": f"{totals.int8_linear_share:.1%}",
        f"weights{ratio}": f"{amount(totals.float_bytes, 'B')} → {amount(totals.bytes, 'B')}",
        "SQNR of the output": "not measured" if sqnr is None else f"{decibels(sqnr)} dB",
    }
    parts = (f'<div class="card tile"><b>{v}</b><span>{k}</span></div>' for k, v in tiles.items())
    return f'<div class="grid tiles">{"".join(parts)}</div>'


def write_html(report: Report, path: str | Path) -> None:
    """Write the page, UTF-8."""
    report, word = as_shown(report)
    rows = [row for row in report.rows if row.macs or row.float_bytes]
    facts = [(name, getattr(report, name)) for name in ("recipe", "backend", "machine")]
    facts += [("time", ", ".join(f"{name} {s:.2f} s" for name, s in report.timings))]
    header = "".join(f"<div><dt>{k}</dt><dd>{_text(v)}</dd></div>" for k, v in facts if v)
    notes = "".join(f"<li><code>{_text(a)}</code> {_text(b)}</li>" for a, b in report.notes)
    heads = "".join(f"<th{' class=num' * (name in NUMBERS)}>{name}</th>" for name in NAMES)
    body = "".join(map(_row, report.rows))
    table = f"<table id=layers><thead><tr>{heads}</tr></thead><tbody>\n{body}"
    page = (
        f"{HEAD}<title>{_text(report.model)} · fxquant report</title></head>\n<body>"
        f'<p class="dim">fxquant report</p><h1>{_text(report.model)}</h1><dl>{header}</dl>'
        + (f'<p class="loud">{SIMULATED}</p>' if report.simulated else "")
        + f"{_tiles(report, word)}{_card('SQNR by layer', _sqnr_chart(rows, word))}"
        + f'<div class="grid wide">{_card("MACs by kernel", _bars(rows, "kernel"))}'
        + f"{_card('MACs by reason', _bars(rows, 'reason'))}</div>"
        + _card("dB lost through each non-linearity, by method", heatmap(report.sensitivities))
        + _card("Notes", notes and f"<ul>{notes}</ul>")
        + _card("Layers", f"{TOOLS}{table}</tbody></table>")
        + f"<script>{SCRIPT}</script></body></html>\n"
    )
    Path(path).write_text(page, encoding="utf-8")
