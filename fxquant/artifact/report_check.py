"""A report read from a file: every field has the type that the class declares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from fxquant.artifact.checks import brief, items, short_source, unsound
from fxquant.errors import FxquantError
from fxquant.report.model import Report, Row, Sensitivity

_PLACE = "report.json"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_sizes(value: Any) -> bool:
    return isinstance(value, tuple) and all(type(size) is int for size in value)


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "str": lambda value: isinstance(value, str),
    "bool": lambda value: isinstance(value, bool),
    "int": lambda value: type(value) is int,
    "float": _is_number,
    "float | None": lambda value: value is None or _is_number(value),
    "tuple[int, ...]": _is_sizes,
}


def report_from_json(data: Any) -> Report:
    """Read and check a report."""
    held = data if isinstance(data, dict) else {}
    for key in ("rows", "timings", "notes"):
        items(held.get(key), where=f"{_PLACE}, {key}")
    items(held.get("sensitivities", []), where=f"{_PLACE}, sensitivities")
    try:
        report = Report.from_json(data)
    except (FxquantError, AttributeError, OverflowError) as error:
        raise unsound(str(error)[:300], where=_PLACE) from error
    _check(report)
    for row in report.rows:
        _check(row)
    for sensitivity in report.sensitivities:
        _check(sensitivity)
    return report


def without_paths(report: Report) -> Report:
    """The report with sources cut to ``folder/file:line``: no path of this machine is stored."""
    rows = tuple(replace(row, source=short_source(row.source)) for row in report.rows)
    return report.with_rows(rows)


def _check(record: Report | Row | Sensitivity) -> None:
    for field in fields(record):
        check = _CHECKS.get(str(field.type))
        value = getattr(record, field.name)
        if check is not None and not check(value):
            raise unsound(f"{field.name} is {brief(value)}", where=_PLACE)
