"""Pass options to JSON values and back, checked against the field types."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from typing import Any

from fxquant.errors import PipelineError, SchemeError
from fxquant.pipeline.plan import Plan
from fxquant.quant.scheme import Scheme


def to_plain(value: Any) -> Any:
    """A JSON value: schemes as text, dataclasses as mappings without defaults, tuples as lists."""
    if isinstance(value, Scheme):
        return value.text()
    if isinstance(value, Plan):
        return value.to_json()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return changed_fields(value)
    if isinstance(value, (tuple, list)):
        return [to_plain(v) for v in value]
    return value


def changed_fields(instance: Any) -> dict[str, Any]:
    """Fields that differ from their defaults, as JSON values."""
    result = {}
    for item in dataclasses.fields(instance):
        value = getattr(instance, item.name)
        default = item.default
        if item.default_factory is not dataclasses.MISSING:
            default = item.default_factory()
        if value != default:
            result[item.name] = to_plain(value)
    return result


def from_plain(kind: type[Any], data: Any, *, where: str) -> Any:
    """An instance of dataclass ``kind`` from a mapping; unknown keys name the nearest one."""
    if not isinstance(data, dict):
        raise PipelineError(f"options must be a mapping, not {data!r}", where=where)
    hints = typing.get_type_hints(kind)
    known = [item.name for item in dataclasses.fields(kind)]
    values = {}
    for key, value in data.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            raise PipelineError(
                f"unknown option {key!r}",
                where=where,
                fix=f"did you mean {near[0]!r}?" if near else f"options: {', '.join(known)}",
            )
        values[key] = _value(hints[key], value, where=f"{where}, option {key}")
    try:
        return kind(**values)
    except TypeError as error:
        raise PipelineError("an option is missing", where=where, why=str(error)) from error


def _value(hint: Any, value: Any, *, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Scheme:
        try:
            return value if isinstance(value, Scheme) else Scheme.parse(value)
        except SchemeError as error:
            raise PipelineError(error.what, where=where, why=error.why, fix=error.fix) from error
    if hint is Plan:
        return value if isinstance(value, Plan) else Plan.from_json(value)
    if origin is tuple and isinstance(value, (list, tuple)):
        return _tuple(arguments, value, where=where)
    if origin is typing.Literal:
        if value in arguments:
            return value
        raise PipelineError(f"{value!r} is none of {arguments}", where=where)
    if origin is not None and type(None) in arguments:
        inner = next(a for a in arguments if a is not type(None))
        return None if value is None else _value(inner, value, where=where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else from_plain(hint, value, where=where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if (
        isinstance(hint, type)
        and isinstance(value, hint)
        and (hint is bool) == isinstance(value, bool)
    ):
        return value
    raise PipelineError(f"{value!r} is not of type {getattr(hint, '__name__', hint)}", where=where)


def _tuple(hints: tuple[Any, ...], values: Any, *, where: str) -> tuple[Any, ...]:
    """``tuple[int, ...]`` of any length, or ``tuple[float, float]`` of just that one."""
    if Ellipsis in hints:
        return tuple(_value(hints[0], value, where=where) for value in values)
    if len(hints) != len(values):
        raise PipelineError(f"{list(values)} holds {len(values)}, not {len(hints)}", where=where)
    pairs = zip(hints, values, strict=True)
    return tuple(_value(hint, value, where=where) for hint, value in pairs)
