"""LayerNorm, and the Affine norms of ResMLP that scale and shift without normalising."""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from fxquant.graph.pattern import Any_, Either, Op, match

aten = torch.ops.aten


def _is_constant(value: object) -> bool:
    return isinstance(value, Node) and value.op == "get_attr"


def _is_variable(value: object) -> bool:
    return isinstance(value, Node) and value.op != "get_attr"


_SCALE = Any_("scale", when=_is_constant)
_SHIFT = Any_("shift", when=_is_constant)
_X = Any_("x", when=_is_variable)
AFFINE = Either(
    (
        Op((aten.addcmul.default,), (_SHIFT, _SCALE, _X)),
        Op(
            (aten.add.Tensor,),
            (Op((aten.mul.Tensor,), (_X, _SCALE), commutative=True, sole_user=True), _SHIFT),
            commutative=True,
        ),
    )
)


def norm_role(graph_module: GraphModule, node: Node) -> str | None:
    """``layer_norm`` for aten.layer_norm; ``affine`` for ``scale * x + shift`` with vectors."""
    if node.target is aten.layer_norm.default:
        return "layer_norm"
    bound = match(AFFINE, node)
    if bound is None or node.kwargs:  # alpha= scales one summand
        return None
    scale, shift = bound["scale"].meta["val"], bound["shift"].meta["val"]
    vector = scale.numel() == scale.shape[-1] and shift.numel() == shift.shape[-1]
    return "affine" if vector and scale.dim() and scale.numel() > 1 else None
