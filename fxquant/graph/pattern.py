"""Pattern combinators over ATen graphs: data that a matcher walks, captures by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

Bindings = dict[str, Any]


@dataclass(frozen=True)
class Any_:
    """Matches anything and binds it; ``when`` may refuse."""

    name: str = ""
    when: Callable[[Any], bool] | None = None


@dataclass(frozen=True)
class Op:
    """Matches a call to one of ``targets`` whose leading arguments match ``args``.

    ``sole_user``: the node's value is used by exactly one other node (an inner node that a
    rewrite removes must have no other reader). ``commutative``: two leading arguments in either
    order.
    """

    targets: tuple[Any, ...]
    args: tuple[Any, ...] = ()
    name: str = ""
    sole_user: bool = False
    commutative: bool = False


@dataclass(frozen=True)
class Either:
    """Matches the first alternative that matches."""

    alternatives: tuple[Any, ...]


Pattern = Any_ | Op | Either


def op(*targets: Any, args: tuple[Any, ...] = (), name: str = "") -> Op:
    """A call whose value may have other readers."""
    return Op(targets, args, name)


def inner(*targets: Any, args: tuple[Any, ...] = (), name: str = "") -> Op:
    """A call read by nothing but the matched pattern."""
    return Op(targets, args, name, sole_user=True)


def match(pattern: Any, value: Any) -> Bindings | None:
    """Bindings when ``value`` matches, else None. Literals match by equality."""
    if isinstance(pattern, Any_):
        if pattern.when is not None and not pattern.when(value):
            return None
        return {pattern.name: value} if pattern.name else {}
    if isinstance(pattern, Either):
        for alternative in pattern.alternatives:
            if (bound := match(alternative, value)) is not None:
                return bound
        return None
    if isinstance(pattern, Op):
        return _match_op(pattern, value)
    if isinstance(pattern, float) and isinstance(value, (int, float)):
        return {} if abs(pattern - value) <= 1e-4 * max(1.0, abs(pattern)) else None
    return {} if pattern == value else None


def _match_op(pattern: Op, value: Any) -> Bindings | None:
    if not isinstance(value, Node) or value.op != "call_function":
        return None
    if value.target not in pattern.targets or len(value.args) < len(pattern.args):
        return None
    if pattern.sole_user and len(value.users) != 1:
        return None
    orders = [value.args]
    if pattern.commutative and len(value.args) >= 2:
        orders.append((value.args[1], value.args[0], *value.args[2:]))
    for order in orders:
        bound: Bindings | None = {pattern.name: value} if pattern.name else {}
        for sub, argument in zip(pattern.args, order, strict=False):
            deeper = match(sub, argument)
            if deeper is None or _conflict(bound, deeper):
                bound = None
                break
            assert bound is not None
            bound |= deeper
        if bound is not None:
            return bound
    return None


def _conflict(bound: Bindings | None, deeper: Bindings) -> bool:
    assert bound is not None
    return any(key in bound and bound[key] is not value for key, value in deeper.items())
