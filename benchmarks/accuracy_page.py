"""The tables of ``docs/accuracy.md`` from the recorded rows: run it without arguments.

Rewrites what stands between the markers ``<!-- table NAME -->`` and ``<!-- end -->``.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.methods import Method, ablations, claims, integer, recipes

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "accuracy.md"
RESULTS = ROOT / "benchmarks" / "results" / "accuracy.jsonl"
MODELS = ("deit_tiny", "vit_tiny")
NONE = "not measured"
Row = dict[str, Any]


def latest() -> dict[tuple[str, str, str], Row]:
    """The last recorded row of each model, method and backend."""
    rows: dict[tuple[str, str, str], Row] = {}
    for line in RESULTS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if "method" in row:
            rows[row["model"], row["method"], row["runs_as"]] = row
    return rows


def figures(row: Row | None) -> str:
    """``drop / agreement / SQNR`` of a row."""
    if row is None:
        return NONE
    return f"{row['drop']:.2f} / {row['agreement']:.1f} / {row['sqnr_db']:.2f}"


def recipe_table(rows: dict[tuple[str, str, str], Row]) -> list[str]:
    """Recipes by models."""
    lines = ["| recipe | runs as | " + " | ".join(MODELS) + " |", "|---|---|---|---|"]
    for method in recipes():
        cells = [figures(rows.get((model, method.name, method.runs_as))) for model in MODELS]
        lines.append(f"| {method.name} | {method.runs_as} | {' | '.join(cells)} |")
    return lines


def pair_table(rows: dict[tuple[str, str, str], Row], methods: list[Method]) -> list[str]:
    """Each method beside its base, with the difference in dB."""
    lines = ["| method | " + " | ".join(MODELS) + " |", "|---|---|---|"]
    for method in methods:
        cells = []
        for model in MODELS:
            row = rows.get((model, method.name, method.runs_as))
            base = rows.get((model, method.base, method.runs_as))
            change = f" ({row['sqnr_db'] - base['sqnr_db']:+.2f} dB)" if row and base else ""
            cells.append(figures(row) + change)
        lines.append(f"| {method.name} | {' | '.join(cells)} |")
    return lines


def integer_table(rows: dict[tuple[str, str, str], Row]) -> list[str]:
    """Fully quantized: the figures on evaluation images, and the dB on calibration images."""
    lines = ["| method | " + " | ".join(MODELS) + " |", "|---|---|---|"]
    for method in integer():
        cells = []
        for model in MODELS:
            row = rows.get((model, method.name, method.runs_as))
            cells.append(f"{figures(row)} / {row['calibration_sqnr_db']:.2f}" if row else NONE)
        lines.append(f"| {method.name} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Rewrite the page."""
    rows = latest()
    tables = {
        "recipes": recipe_table(rows),
        "claims": pair_table(rows, claims()),
        "ablations": pair_table(rows, ablations()),
        "integer": integer_table(rows),
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
