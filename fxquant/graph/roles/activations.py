"""GELU in its three spellings (erf, tanh, quick) and the other activations."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch.fx import Node

from fxquant.graph.pattern import Any_, Op, Pattern, match

aten = torch.ops.aten

_X = Any_("x")
_MUL, _ADD, _DIV = (aten.mul.Tensor,), (aten.add.Tensor,), (aten.div.Tensor,)

QUICK = Op(
    _MUL,
    (_X, Op((aten.sigmoid.default,), (Op(_MUL, (_X, 1.702), commutative=True),))),
    commutative=True,
)
_ERF_INNER = (
    Op(_DIV, (_X, math.sqrt(2.0))),
    Op(_MUL, (_X, math.sqrt(0.5)), commutative=True),
)


def _written_erf(scaled: Pattern) -> tuple[Pattern, ...]:
    gate = Op(_ADD, (Op((aten.erf.default,), (scaled,)), 1.0), commutative=True)
    return (
        Op(_MUL, (Op(_MUL, (_X, 0.5), commutative=True), gate), commutative=True),
        Op(_MUL, (Op(_MUL, (_X, gate), commutative=True), 0.5), commutative=True),
        Op(_MUL, (_X, Op(_MUL, (gate, 0.5), commutative=True)), commutative=True),
    )


_CUBE = Op((aten.pow.Tensor_Scalar,), (_X, 3.0))
_TANH_ARGUMENT = Op(
    _MUL,
    (
        Op(_ADD, (_X, Op(_MUL, (_CUBE, 0.044715), commutative=True)), commutative=True, name="sum"),
        math.sqrt(2.0 / math.pi),
    ),
    commutative=True,
)
_TANH_GATE = Op(_ADD, (Op((aten.tanh.default,), (_TANH_ARGUMENT,)), 1.0), commutative=True)
TANH = Op(_MUL, (Op(_MUL, (_X, 0.5), commutative=True), _TANH_GATE), commutative=True)
ERF = tuple(p for scaled in _ERF_INNER for p in _written_erf(scaled))

_OTHERS = {
    aten.relu.default: "relu",
    aten.silu.default: "silu",
    aten.hardswish.default: "hardswish",
    aten.relu6.default: "relu6",
    aten.hardtanh.default: "hardtanh",
}


def sums_inside(nodes: Iterable[Node]) -> set[Node]:
    """The additions ``x + 0.044715 x^3`` inside written-out tanh GELUs: no residual adds."""
    found = (match(TANH, node) for node in nodes)
    return {bound["sum"] for bound in found if bound is not None}


def activation_role(node: Node) -> str | None:
    """``gelu`` (erf), ``gelu_tanh``, ``gelu_quick`` or another activation's name."""
    if node.target is aten.gelu.default:
        return "gelu_tanh" if node.kwargs.get("approximate") == "tanh" else "gelu"
    if node.target in _OTHERS:
        return _OTHERS[node.target]
    if node.target is not aten.mul.Tensor:
        return None
    if match(QUICK, node) is not None:
        return "gelu_quick"
    if match(TANH, node) is not None:
        return "gelu_tanh"
    return "gelu" if any(match(pattern, node) is not None for pattern in ERF) else None
