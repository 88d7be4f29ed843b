"""Arguments of a node as JSON. Every form that is not a plain int, bool, None or list has a tag."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import Node

from fxquant.artifact.checks import brief, integer, unsound, unstorable

DTYPES: dict[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.uint16,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
    )
}
_MEMORY_FORMATS = {
    str(fmt).removeprefix("torch."): fmt
    for fmt in (torch.contiguous_format, torch.preserve_format, torch.channels_last)
}
_LAYOUTS = {"strided": torch.strided}
_DEVICES = {"cpu": torch.device("cpu")}
_TABLES: dict[str, Mapping[str, Any]] = {
    "dtype": DTYPES,
    "memory_format": _MEMORY_FORMATS,
    "layout": _LAYOUTS,
    "device": _DEVICES,
}
_TYPES = {
    torch.dtype: "dtype",
    torch.memory_format: "memory_format",
    torch.layout: "layout",
    torch.device: "device",
}
# Every text that an allowed operator takes: approximations, paddings, roundings, index orders.
# fmt: off
_WORDS = frozenset({
    "none", "tanh", "same", "valid", "constant", "reflect", "replicate", "circular", "floor",
    "trunc", "ij", "xy",
})
# fmt: on
_EQUATION = re.compile(r"[A-Za-z, ]{1,100}(?:->[A-Za-z ]{0,100})?")  # of einsum
_HEX_FLOAT = re.compile(r"-?(?:inf|nan|0x[01]\.[0-9a-f]{1,13}p[+-][0-9]{1,4})")
_DEEPEST = 4


def encode_argument(value: Any, *, where: str) -> Any:
    """The JSON form; raises for objects that have none."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return {"float": value.hex()}
    if isinstance(value, Node):
        return {"node": value.name}
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, (list, tuple)):
        members = [encode_argument(member, where=where) for member in value]
        return members if isinstance(value, list) else {"tuple": members}
    tag = _TYPES.get(type(value))
    if tag is not None:
        for name, known in _TABLES[tag].items():
            if value == known:
                return {tag: name}
    raise unstorable(f"an argument {type(value).__name__} {value}", where=where)


def decode_argument(
    value: Any, nodes: Mapping[str, Node], *, takes_text: bool, where: str, depth: int = 0
) -> Any:
    """The argument behind a JSON form; ``nodes`` are those that came before."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return integer(value, where=where)
    tag, inner = ("list", value) if isinstance(value, list) else _tagged(value, where=where)
    if tag in ("list", "tuple"):
        if not isinstance(inner, list) or depth >= _DEEPEST:
            raise unsound("a list argument is malformed or nested too deeply", where=where)
        members = [
            decode_argument(m, nodes, takes_text=False, where=where, depth=depth + 1) for m in inner
        ]
        return members if tag == "list" else tuple(members)
    if not isinstance(inner, str):
        raise unsound(f"argument {tag} holds {brief(inner)}", where=where)
    if tag == "node":
        if inner not in nodes:
            raise unsound(f"it reads {brief(inner)}, which no earlier node computes", where=where)
        return nodes[inner]
    return _leaf(tag, inner, takes_text=takes_text, where=where)


def _leaf(tag: str, inner: str, *, takes_text: bool, where: str) -> Any:
    if tag == "float":
        if _HEX_FLOAT.fullmatch(inner) is None:
            raise unsound(f"{brief(inner)} is not a number", where=where)
        try:
            return float.fromhex(inner)
        except OverflowError as error:
            raise unsound(f"{brief(inner)} is not a number", where=where) from error
    if tag == "text":
        if not takes_text:
            raise unsound(f"text {brief(inner)} where the operator takes none", where=where)
        return _word(inner, where=where)
    table = _TABLES.get(tag, {})
    if inner not in table:
        raise unsound(f"unknown {brief(tag)} {brief(inner)}", where=where)
    return table[inner]


def _tagged(value: Any, *, where: str) -> tuple[str, Any]:
    if not isinstance(value, dict) or len(value) != 1:
        raise unsound(f"an argument is {brief(value)}", where=where)
    return next(iter(value.items()))


def _word(value: str, *, where: str) -> str:
    if value in _WORDS or _EQUATION.fullmatch(value):
        return str(value)
    raise unsound(f"text argument {brief(value)} is not among the known ones", where=where)
