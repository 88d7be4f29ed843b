"""Nested inputs and outputs as JSON: only tuples, lists, dicts and leaves.

torch's own reader of such specs looks types up by name and can import modules.
"""

from __future__ import annotations

from typing import Any

import torch.utils._pytree as pytree

from fxquant.artifact.checks import brief, items, mapping, text, unsound, unstorable

_LEAF = "*"
_DEEPEST = 16
_MOST_LEAVES = 10_000


def encode_structure(spec: pytree.TreeSpec, *, where: str) -> Any:
    """``"*"`` for a leaf, else a mapping from the container's kind to its children."""
    if spec.is_leaf():
        return _LEAF
    children = [encode_structure(child, where=where) for child in spec.children()]
    if spec.type is tuple:
        return {"tuple": children}
    if spec.type is list:
        return {"list": children}
    if spec.type is dict and all(isinstance(key, str) for key in spec.context):
        return {"dict": [list(pair) for pair in zip(spec.context, children, strict=True)]}
    raise unstorable(
        f"a model that takes or returns {getattr(spec.type, '__name__', spec.type)}",
        where=where,
        why="an artifact knows tensors in tuples, lists and dicts with text keys",
    )


def decode_structure(data: Any, *, where: str) -> pytree.TreeSpec:
    """The spec behind the JSON form."""
    spec = pytree.tree_structure(_sample(data, where=where, depth=0))
    if spec.num_leaves > _MOST_LEAVES:
        raise unsound("the structure has too many leaves", where=where)
    return spec


def _sample(data: Any, *, where: str, depth: int) -> Any:
    """An object of that structure, with zeros for leaves: torch derives the spec from it."""
    if data == _LEAF:
        return 0
    if not isinstance(data, dict) or len(data) != 1 or depth >= _DEEPEST:
        raise unsound(f"{brief(data)} is not a structure of inputs or outputs", where=where)
    kind, children = next(iter(data.items()))
    if kind in ("tuple", "list"):
        members = [_sample(c, where=where, depth=depth + 1) for c in items(children, where=where)]
        return tuple(members) if kind == "tuple" else members
    pairs = mapping(data, {"dict"}, where=where)["dict"]
    made: dict[str, Any] = {}
    for pair in items(pairs, where=where):
        if len(items(pair, where=where)) != 2 or text(pair[0], where=where) in made:
            raise unsound("a dict of inputs or outputs is malformed", where=where)
        made[pair[0]] = _sample(pair[1], where=where, depth=depth + 1)
    return made
