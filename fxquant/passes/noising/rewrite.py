"""Putting noise in front of quantizers and taking its image off the biases behind them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxquant.graph.layer_names import WEIGHTED
from fxquant.graph.tensors import add_buffer, attribute_name, call, constant_of, exchange_argument
from fxquant.passes.noising.folds import shift_of
from fxquant.passes.noising.paths import Fold
from fxquant.passes.noising.search import Amount
from fxquant.passes.noising.sites import NoiseSite, Reader
from fxquant.passes.stored import bias_of, exchange_bias, weight_value

aten = torch.ops.aten


@dataclass(frozen=True)
class Addition:
    """What goes into the graph at one site.

    ``noise``: float32 ``[channels]``. ``drift``: how the mean of ``q(X + N) - N`` moved, float64
    with an entry per column of the readers' flat weights; zeros where that is left alone.
    """

    site: NoiseSite
    fold: Fold
    amount: Amount
    noise: Tensor
    drift: Tensor


def image_of(weight: Tensor, noise: Tensor) -> Tensor:
    """``W N``, float64 ``[O]``, for a weight ``[O, K]`` (or ``[O, C, ...]``) and N ``[K]``."""
    return weight.flatten(1).to(torch.float64) @ noise.to(torch.float64)


def carry_out(graph_module: GraphModule, additions: list[Addition]) -> None:
    """``W q(x) + b -> W q(x + N) + (b - W N)``, W dequantized; N where its fold says.

    Biases are summed in float64 and rounded to float32 once, whatever goes into them.
    """
    shifts: dict[Node, Tensor] = {}
    for addition in additions:
        _rescale(addition)
        for reader in addition.site.readers:
            _take_off(graph_module, shifts, addition, reader)
        if addition.fold.kind == "add":
            _insert(graph_module, addition)
        else:
            bias = _held(graph_module, shifts, addition.fold.node)
            bias.index_add_(0, torch.tensor(addition.fold.entries), addition.noise.double())
    for node, shift in shifts.items():
        _store(graph_module, node, shift)


def _rescale(addition: Addition) -> None:
    site = addition.site
    if addition.amount.clip != 1.0:
        step = site.step * addition.amount.clip
        site.quantize.update_arg(1, step)
        site.dequantize.update_arg(1, step)


def _take_off(
    graph_module: GraphModule, shifts: dict[Node, Tensor], addition: Addition, reader: Reader
) -> None:
    weight = weight_value(graph_module, reader.node)
    assert weight is not None
    bias = _held(graph_module, shifts, reader.node)
    bias -= image_of(weight, addition.noise.double()[addition.site.spread] + addition.drift)


def _insert(graph_module: GraphModule, addition: Addition) -> None:
    quantize, layer = addition.site.quantize, addition.site.readers[0].layer
    shape = (-1, 1, 1) if addition.site.is_convolution else (-1,)
    noise = addition.noise.reshape(shape)
    name = attribute_name(layer.name, "noise")
    held = add_buffer(graph_module, name, noise.clone(), like=quantize, before=quantize)
    with graph_module.graph.inserting_before(quantize):
        made = call(graph_module, aten.add.Tensor, (quantize.args[0], held), like=quantize)
    quantize.update_arg(0, made)


def _held(graph_module: GraphModule, shifts: dict[Node, Tensor], node: Node) -> Tensor:
    """The bias of a linear, convolution or norm as collected so far, float64 and flat."""
    if node not in shifts:
        held = _bias(graph_module, node)
        shifts[node] = held.detach().flatten().to(torch.float64, copy=True)
    return shifts[node]


def _bias(graph_module: GraphModule, node: Node) -> Tensor:
    """Zeros where there is none."""
    if node.target in WEIGHTED:
        return bias_of(graph_module, node)
    held = constant_of(graph_module, shift_of(node))
    return torch.zeros(int(node.meta["val"].shape[-1])) if held is None else held


def _store(graph_module: GraphModule, node: Node, shift: Tensor) -> None:
    """A buffer of the node's own: another layer may read the old bias."""
    value, layer = shift.to(torch.float32), str(node.meta["layer"])
    if node.target in WEIGHTED:
        exchange_bias(graph_module, layer, node, value)
        return
    name, value = attribute_name(layer, "bias"), value.reshape(_bias(graph_module, node).shape)
    if node.target is aten.layer_norm.default:
        exchange_argument(graph_module, node, 3, name, value)
        return
    old = shift_of(node)
    assert old is not None
    node.replace_input_with(old, add_buffer(graph_module, name, value, like=node, before=node))
