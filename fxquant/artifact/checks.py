"""Checks on data read from a file: types, names, text. Whatever passes is safe to put in code.

torch.fx writes the source of ``forward`` from node names, input names, attribute paths and the
``repr`` of arguments, and executes it. These checks are the fence: ASCII identifiers only.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Collection
from functools import lru_cache
from typing import Any

from torch import nn
from torch.fx import Graph, GraphModule

from fxquant.errors import ArtifactError

LARGEST_INTEGER = 2**63 - 1
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,499}")
_LABEL = re.compile(r"[^\"'\\]{0,500}")
_SOURCE = re.compile(r"(?:[A-Za-z0-9_.\-+ <>]{1,300}/)?[A-Za-z0-9_.\-+ <>]{1,300}:[0-9]{1,9}")
# What the generated code itself refers to: a value of that name would hide it.
# fmt: off
_RESERVED = frozenset({
    "self", "torch", "pytree", "fx_pytree", "device", "inf", "nan", "NoneType", "operator", "math",
    "getattr", "slice",
})
# fmt: on
# What torch.export's modules and torch.fx set on an instance rather than on the class.
_INSTANCE_ATTRIBUTES = frozenset(
    {"_in_spec", "_out_spec", "shape_env", "range_constraints", "validate_inputs"}
)


def unsound(why: str, *, where: str) -> ArtifactError:
    """The error for content that no fxquant writes."""
    return ArtifactError(
        "the artifact is not sound",
        where=where,
        why=why,
        fix="use a file as fxquant wrote it; this one is damaged, or was altered by hand",
    )


def unstorable(what: str, *, where: str, why: str = "") -> ArtifactError:
    """The error for a graph that an artifact has no form for."""
    return ArtifactError(
        f"{what} cannot be stored in an artifact",
        where=where,
        why=why,
        fix="rewrite this part of the model with ordinary tensors and operations",
    )


def brief(value: object) -> str:
    """A short ``repr`` for messages: the value may be huge, or hold control characters."""
    text = ascii(value) if isinstance(value, (str, int, float, bool)) else type(value).__name__
    return text if len(text) <= 80 else text[:77] + "..."


def mapping(value: Any, keys: Collection[str], *, where: str) -> dict[str, Any]:
    """``value`` as a dict with exactly these keys."""
    if not isinstance(value, dict) or set(value) != set(keys):
        raise unsound(f"expected a mapping with the keys {', '.join(sorted(keys))}", where=where)
    return value


def items(value: Any, *, where: str) -> list[Any]:
    """``value`` as a list."""
    if not isinstance(value, list):
        raise unsound(f"expected a list, found {brief(value)}", where=where)
    return value


def text(value: Any, *, where: str) -> str:
    """``value`` as printable text."""
    if not isinstance(value, str) or len(value) > 10_000 or not value.isprintable():
        raise unsound(f"expected text, found {brief(value)}", where=where)
    return value


def plain_texts(data: Any, *, where: str) -> None:
    """Raise where JSON data holds control characters: it will be printed to terminals."""
    pending = [data]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending += [*value, *value.values()]
        elif isinstance(value, list):
            pending += value
        elif isinstance(value, str) and not value.replace("\n", "").isprintable():
            raise unsound(f"text {brief(value)} holds control characters", where=where)


def integer(value: Any, *, where: str) -> int:
    """``value`` as an int of at most 64 bits."""
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > LARGEST_INTEGER:
        raise unsound(f"expected an integer, found {brief(value)}", where=where)
    return value


def identifier(value: Any, *, where: str) -> str:
    """``value`` as a name that may stand in generated code."""
    sound = (
        isinstance(value, str)
        and _IDENTIFIER.fullmatch(value) is not None
        and not keyword.iskeyword(value)
        and value not in _RESERVED
        and not _is_dunder(value)
    )
    if not sound:
        raise unsound(f"{brief(value)} cannot be a name", where=where)
    return str(value)


def layer_label(value: Any, *, where: str) -> str:
    """``value`` as a layer name: torch.fx can be told to print ``meta`` into the code it runs."""
    sound = isinstance(value, str) and value.isprintable() and _LABEL.fullmatch(value)
    if not sound:
        raise unsound(f"{brief(value)} is not a layer", where=where)
    return str(value)


def source_label(value: Any, *, where: str) -> str:
    """``value`` as ``folder/file.py:12``, or empty."""
    if not isinstance(value, str) or (value and _SOURCE.fullmatch(value) is None):
        raise unsound(f"{brief(value)} is not a source line", where=where)
    return value


def short_source(source: str) -> str:
    """``file:line`` with at most one folder, so that no path of this machine is stored."""
    path, colon, line = source.replace("\\", "/").rpartition(":")
    short = "/".join(path.split("/")[-2:])
    short = re.sub(r"[^A-Za-z0-9_.\-+ <>/]", "_", short).strip("/")
    result = f"{short}{colon}{line}"
    return result if _SOURCE.fullmatch(result) else ""


def tensor_name(value: Any, *, where: str) -> str:
    """``value`` as the dotted path of a tensor that hides nothing of a module."""
    if not isinstance(value, str) or len(value) > 500:
        raise unsound(f"{brief(value)} cannot name a tensor", where=where)
    for depth, part in enumerate(value.split(".")):
        if part.isascii() and part.isdigit():
            continue
        taken = _attributes_of_graph_module() if depth == 0 else _attributes_of_module()
        sound = (
            _IDENTIFIER.fullmatch(part) is not None
            and not keyword.iskeyword(part)
            and not _is_dunder(part)
            and part not in taken
        )
        if not sound:
            raise unsound(f"{brief(value)} cannot name a tensor", where=where)
    return value


def _is_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


@lru_cache(maxsize=1)
def _attributes_of_graph_module() -> frozenset[str]:
    blank = GraphModule(nn.Module(), Graph())
    return frozenset(dir(blank)) | frozenset(vars(blank)) | _INSTANCE_ATTRIBUTES


@lru_cache(maxsize=1)
def _attributes_of_module() -> frozenset[str]:
    blank = nn.Module()
    return frozenset(dir(blank)) | frozenset(vars(blank))
