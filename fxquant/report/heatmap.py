"""Layers x methods: dB lost through each non-linearity, as a table whose cells are coloured."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from fxquant.report.text import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fxquant.report.model import Sensitivity

LEAST_DB, MOST_DB = 0.0, 20.0  # ends of the scale, from blue to red
_COOL, _MIDDLE, _WARM = (147, 190, 250), (245, 240, 225), (240, 128, 110)


def colour(delta_db: float) -> str:
    """Blue where little is lost, red where much is."""
    share = min(max((delta_db - LEAST_DB) / (MOST_DB - LEAST_DB), 0.0), 1.0)
    ends = (_COOL, _MIDDLE) if share < 0.5 else (_MIDDLE, _WARM)
    part = 2 * share - (share >= 0.5)
    mixed = (round(a + (b - a) * part) for a, b in zip(*ends, strict=True))
    return "rgb({},{},{})".format(*mixed)


def heatmap(sensitivities: Sequence[Sensitivity]) -> str:
    """The table, empty without figures; what the plan has is underlined."""
    methods = list(dict.fromkeys(s.method for s in sensitivities))
    cells = {(s.layer, s.method): s for s in sensitivities}
    lines = []
    for layer in dict.fromkeys(s.layer for s in sensitivities):
        row = [f"<td><code>{escape(plain(layer))}</code></td>"]
        row += [_cell(cells.get((layer, method))) for method in methods]
        lines.append(f"<tr>{''.join(row)}</tr>")
    heads = "".join(f"<th>{escape(plain(name))}</th>" for name in ("layer", *methods))
    key = (
        '<p class="dim">SQNR in less SQNR out, in dB, all methods on the same inputs. Underlined: '
        "what the plan has.</p>"
    )
    table = f'<table class="heat"><thead><tr>{heads}</tr></thead><tbody>{"".join(lines)}</tbody>'
    return f"{table}</table>{key}" if lines else ""


def _cell(one: Sensitivity | None) -> str:
    if one is None:
        return "<td></td>"
    value = f"<b>{one.delta_db:.1f}</b>" if one.chosen else f"{one.delta_db:.1f}"
    cost = "" if one.cost_us is None else f", {one.cost_us:.0f} us per image"
    told = f"in {one.in_db:.1f} dB, out {one.out_db:.1f} dB{cost}"
    return f'<td style="background:{colour(one.delta_db)}" title="{told}">{value}</td>'
