"""The tables of ``docs/accuracy.md`` from the recorded rows: run it without arguments.

Rewrites what stands between the markers ``<!-- table NAME -->`` and ``<!-- end -->``.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.methods import Method, ablations, claims, integer, recipes

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "accuracy.md"
RESULTS = ROOT / "benchmarks" / "results" / "accuracy.jsonl"
MODELS = ("deit_tiny", "vit_tiny")
Row = dict[str, Any]
Rows = dict[tuple[str, str, str], Row]  # by model, method, backend
Cell = Callable[[Row | None, Row | None], str]


def latest() -> Rows:
    """The last recorded row of each model, method and backend."""
    rows: Rows = {}
    for line in RESULTS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if "method" in row:
            rows[row["model"], row["method"], row["runs_as"]] = row
    return rows


def figures(row: Row | None) -> str:
    """``drop / agreement / SQNR`` of a row."""
    if row is None:
        return "not measured"
    return f"{row['drop']:.2f} / {row['agreement']:.1f} / {row['sqnr_db']:.2f}"


def recipe_table(rows: Rows) -> list[str]:
    """Recipes by models."""
    lines = ["| recipe | runs as | " + " | ".join(MODELS) + " |", "|---|---|---|---|"]
    for method in recipes():
        cells = [figures(rows.get((model, method.name, method.runs_as))) for model in MODELS]
        lines.append(f"| {method.name} | {method.runs_as} | {' | '.join(cells)} |")
    return lines


def method_table(rows: Rows, methods: list[Method], cell: Cell) -> list[str]:
    """Methods by models; ``cell`` gets a method's row and its base's."""
    lines = ["| method | " + " | ".join(MODELS) + " |", "|---|---|---|"]
    for method in methods:
        pairs = (
            [rows.get((model, name, method.runs_as)) for name in (method.name, method.base)]
            for model in MODELS
        )
        lines.append(f"| {method.name} | {' | '.join(cell(*pair) for pair in pairs)} |")
    return lines


def beside_base(row: Row | None, base: Row | None) -> str:
    """A row's figures with its difference from the base in dB."""
    change = f" ({row['sqnr_db'] - base['sqnr_db']:+.2f} dB)" if row and base else ""
    return figures(row) + change


def with_calibration(row: Row | None, _: Row | None) -> str:
    """The figures on evaluation images, and the dB on calibration images."""
    return f"{figures(row)} / {row['calibration_sqnr_db']:.2f}" if row else figures(row)


def main() -> None:
    """Rewrite the page."""
    rows = latest()
    tables = {
        "recipes": recipe_table(rows),
        "claims": method_table(rows, claims(), beside_base),
        "ablations": method_table(rows, ablations(), beside_base),
        "integer": method_table(rows, integer(), with_calibration),
    }
    page = PAGE.read_text(encoding="utf-8")
    for name, lines in tables.items():
        block = f"<!-- table {name} -->\n" + "\n".join(lines) + "\n<!-- end -->"
        page, count = re.subn(rf"<!-- table {name} -->.*?<!-- end -->", block, page, flags=re.S)
        if not count:
            raise SystemExit(f"docs/accuracy.md has no table {name}")
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
