"""Noise in V's bias: attention passes a summand per channel on, since its rows sum to 1."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from fxquant.graph.channels import numbered, per_channel, uniform
from fxquant.graph.flow import consumers
from fxquant.graph.layer_names import ATTENTION, LINEAR, MATMUL, SOFTMAX
from fxquant.graph.shapes import rank, shape_of
from fxquant.passes.noising.paths import (
    Fold,
    carried,
    one_to_one,
    other_reader,
    passes,
    start,
)
from fxquant.passes.noising.sites import NoiseSite
from fxquant.passes.stored import has_plain_bias
from fxquant.quant import ops

_DROPOUT, _MASK = 4, 3  # places among the arguments of fused attention


def value_fold(site: NoiseSite) -> Fold | str:
    """``A (V + 1 N^T) = A V + 1 N^T``, since the rows of A sum to 1: the linear that makes V, or
    why not; empty where the quantizer reads no attention."""
    given = site.quantize.args[0]
    attention = start(given)
    if not isinstance(attention, Node) or attention.target not in ATTENTION | MATMUL:
        return ""
    fused = attention.target in ATTENTION
    if reason := _fused_problem(attention) if fused else _weights_problem(attention):
        return reason
    place = 2 if fused else 1
    value = attention.args[place]
    source = start(value)
    if not isinstance(source, Node) or source.target not in LINEAR:
        quantized = isinstance(source, Node) and source.target in ops.DEQUANTIZE
        return "V is quantized in between" if quantized else "no linear makes V"
    if not has_plain_bias(source):
        return "V's bias is computed while the model runs"
    if other := other_reader(attention, site.quantize):
        return f"{other} reads attention's result too"
    assert isinstance(value, Node)
    assert isinstance(given, Node)
    labels = carried(numbered(source), source, value)
    tokens = uniform(labels, (-2,), keepdim=True)
    if bool((tokens < 0).any()):
        return "attention mixes V's channels"
    spread = tokens.expand(numbered(attention).shape)
    entries = per_channel(carried(spread, attention, given))
    if not one_to_one(entries):
        return "the layer's channels are no channels of V"
    assert entries is not None
    taken = torch.tensor(entries)
    for user, via in consumers(source, passes):
        if user is attention and [a for a in user.args if a is via] == [user.args[place]]:
            continue
        if bool(torch.isin(carried(numbered(source), source, via), taken).any()):
            return f"{user.meta.get('layer', '') or user.name} reads V too"
    name = str(source.meta["layer"])
    return Fold("value_bias", source, entries, reason=f"in V's bias, of {name}, at no cost")


def _fused_problem(attention: Node) -> str:
    """Why the rows of fused attention may not sum to 1."""
    if len(attention.args) > _DROPOUT and attention.args[_DROPOUT]:
        return "attention drops weights out"
    if attention.kwargs.get("dropout_p") or attention.kwargs.get("enable_gqa"):
        return "attention drops weights out, or shares V between heads"
    mask = attention.args[_MASK] if len(attention.args) > _MASK else None
    mask = attention.kwargs.get("attn_mask", mask)
    if isinstance(mask, Node) and mask.meta["val"].dtype is torch.bool:
        return "a row of attention that is masked throughout would not sum to 1"
    return ""


def _weights_problem(product: Node) -> str:
    """Why the rows of a product's left operand may not sum to 1."""
    lhs = product.args[0]
    softmax = start(lhs)
    if isinstance(softmax, Node) and softmax.target in ops.DEQUANTIZE:
        return "attention's weights are quantized: their rows no longer sum to 1"
    if not isinstance(softmax, Node) or softmax.target not in SOFTMAX:
        return "the left operand is no softmax"
    axis: Any = softmax.args[1]
    assert isinstance(lhs, Node)
    entries = per_channel(carried(numbered(softmax), softmax, lhs))
    summed = entries == tuple(range(shape_of(lhs)[-1])) and axis % rank(softmax) == rank(lhs) - 1
    return "" if summed else "the softmax runs over another axis"
