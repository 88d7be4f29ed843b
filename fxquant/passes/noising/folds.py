"""Where noise is added at no cost: into a norm's bias or V's, else by an addition of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from fxquant.graph.channels import is_padding, numbered, per_channel
from fxquant.graph.layer_names import GELU, LINEAR
from fxquant.graph.pattern import match
from fxquant.graph.roles.norms import AFFINE, norm_role
from fxquant.passes.noising.paths import Fold, carried, one_to_one, other_reader, start
from fxquant.passes.noising.sites import NoiseSite
from fxquant.passes.noising.values import value_fold
from fxquant.quant import ops

aten = torch.ops.aten
NOT_FREE = "not free: GELU and the u8 output are one kernel, which the addition takes apart"
_ADDED = "one addition per value, in the kernel that quantizes"
_ACTIVATIONS = GELU | {aten.relu.default}


def plan_fold(graph_module: GraphModule, site: NoiseSite) -> Fold:
    """The cheapest legal fold in front of a quantizer."""
    if site.readers[0].layer.kind == "conv":
        refusals = "a convolution reads it"
    else:
        norm = _norm_fold(graph_module, site)
        if isinstance(norm, Fold):
            return norm
        value = value_fold(site)
        if isinstance(value, Fold):
            return value
        refusals = "; ".join(text for text in (norm, value) if text) or "no norm or V before it"
    if _is_epilogue(site.quantize):
        return Fold("add", site.quantize, free=False, reason=f"{NOT_FREE} ({refusals})")
    return Fold("add", site.quantize, reason=f"{_ADDED} ({refusals})")


def _norm_fold(graph_module: GraphModule, site: NoiseSite) -> Fold | str:
    """``q(LN(x) γ + β + N) = q(LN(x) γ + β')``, β' = β + N: the norm, or why not; empty where the
    quantizer reads no norm."""
    given = site.quantize.args[0]
    norm = start(given)
    if isinstance(norm, Node) and norm.op == "call_function" and is_padding(norm):
        behind = start(norm.args[0])
        if isinstance(behind, Node) and norm_role(graph_module, behind) is not None:
            return "zeros are padded in after the norm and would carry no noise"
    if not isinstance(norm, Node) or norm_role(graph_module, norm) is None:
        return ""
    name = str(norm.meta["layer"]) or "the norm"
    if other := other_reader(norm, site.quantize):
        return f"{other} reads {name} too"
    if norm.target is aten.layer_norm.default and not _per_channel_norm(norm):
        return f"{name} normalises over more than the channels, or its bias is computed"
    assert isinstance(given, Node)
    entries = per_channel(carried(numbered(norm), norm, given))
    if not one_to_one(entries):
        return f"the channels of {name} are not those of the layer"
    assert entries is not None
    return Fold("layer_norm", norm, entries, reason=f"in the bias of {name}, at no cost")


def _per_channel_norm(norm: Node) -> bool:
    shape = norm.args[1]
    bias = norm.args[3] if len(norm.args) > 3 else None
    computed = isinstance(bias, Node) and bias.op != "get_attr"
    return isinstance(shape, (list, tuple)) and len(shape) == 1 and not computed


def _is_epilogue(quantize: Node) -> bool:
    """Whether a kernel may write these codes itself: u8 right after a linear or its activation."""
    if quantize.target is not ops.quantize_per_tensor or quantize.args[3:5] != (0, 255):
        return False
    made: Any = quantize.args[0]
    if made.target in _ACTIVATIONS and len(made.users) == 1:
        made = made.args[0]
    return made.target in LINEAR and len(made.users) == 1


def shift_of(node: Node) -> Node | None:
    """The bias of a norm as a graph node, None where it has none."""
    if node.target is aten.layer_norm.default:
        held = node.args[3] if len(node.args) > 3 else None
        return held if isinstance(held, Node) else None
    bound = match(AFFINE, node)
    assert bound is not None
    shift: Node = bound["shift"]
    return shift
