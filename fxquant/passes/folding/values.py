"""Where a scale can move from attention's output into V's rows, and why not elsewhere.

``A (V diag(e)) = (A V) diag(e)``: attention mixes tokens, not channels (papers, section 2d).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxquant.graph.channels import (
    MIXED,
    PADDED,
    carries,
    moved,
    numbered,
    per_channel,
    route,
    uniform,
)
from fxquant.graph.flow import consumers, origin
from fxquant.graph.layer_names import LINEAR
from fxquant.graph.layers import Layer
from fxquant.passes.folding.sites import Reader, linear_problem, shared_elsewhere

OPERAND = {"attention": 2, "attention_av": 1}  # V's place among the arguments


@dataclass(frozen=True)
class ValueSite:
    """An attention layer, the linear that makes V, and every linear that reads the result.

    ``columns``: for each reader the output channel of ``source`` behind each of its input channels.
    ``declined``: why nothing may move; then the rest is empty.
    """

    layer: str
    node: str
    source: Reader | None = None
    readers: tuple[Reader, ...] = ()
    columns: tuple[tuple[int, ...], ...] = ()
    no_shift: str = "V takes a scale only"
    declined: str = ""


def value_sites(graph_module: GraphModule, layers: tuple[Layer, ...]) -> tuple[ValueSite, ...]:
    """Every attention, fused or opened, with its linears or the reason why nothing may move."""
    nodes = {node.name: node for node in graph_module.graph.nodes}
    by_node = {layer.node: layer for layer in layers}
    return tuple(
        _site(layer, nodes[layer.node], by_node) for layer in layers if layer.role in OPERAND
    )


def _site(layer: Layer, attention: Node, by_node: Mapping[str, Layer]) -> ValueSite:
    def decline(reason: str) -> ValueSite:
        return ValueSite(layer.name, layer.node, declined=reason)

    place = OPERAND[layer.role]
    value = attention.args[place]
    source = _source(value)
    if source is None or not isinstance(value, Node):
        return decline("no linear makes V through movement alone")
    if attention.kwargs.get("enable_gqa"):
        return decline("heads share V by enable_gqa")
    if problem := linear_problem(source, source.args[0]):  # type: ignore[arg-type]
        return decline(f"{by_node[source.name].name}: {problem}")
    path = route(source, value)
    assert path is not None
    labels = moved(numbered(source), path)
    heads = uniform(labels, (-2,), keepdim=True)
    if bool((heads == MIXED).any()):
        return decline("attention mixes V's channels")
    if reason := _other_readers(source, attention, place, labels):
        return decline(f"V has another reader: {reason}")
    readers, columns = [], []
    start = heads.expand(numbered(attention).shape)
    for user, via in consumers(attention, carries):
        if user.target not in LINEAR or user.name not in by_node:
            return decline(f"{user.target} at {user.meta.get('layer', '')} reads the result")
        name = by_node[user.name].name
        if problem := linear_problem(user, via):
            return decline(f"{name}: {problem}")
        steps = route(attention, via)
        assert steps is not None
        found = per_channel(moved(start, steps))
        if found is None:
            return decline(f"the channels of {name} are no channels of V")
        readers.append(Reader(name, user.name, via.name))
        columns.append(found)
    ends = {node for node in attention.graph.nodes if node.name in {r.node for r in readers}}
    if reason := shared_elsewhere(attention.graph, {source}) or shared_elsewhere(
        attention.graph, ends
    ):
        return decline(reason)
    origin = Reader(by_node[source.name].name, source.name, source.name)
    return ValueSite(layer.name, layer.node, origin, tuple(readers), tuple(columns))


def _source(value: object) -> Node | None:
    """The linear that V comes from through nodes that carry a scale."""
    source = origin(value, carries) if isinstance(value, Node) else None
    return source if source is not None and source.target in LINEAR else None


def _other_readers(source: Node, attention: Node, place: int, labels: Tensor) -> str:
    """Who else reads a channel that becomes V; empty where nobody does."""
    taken = labels[labels != PADDED].unique()
    for user, via in consumers(source, carries):
        elsewhere = [i for i, argument in enumerate(user.args) if argument is via]
        if user is attention and elsewhere == [place]:
            continue
        path = route(source, via)
        assert path is not None
        found = moved(numbered(source), path)
        if bool(torch.isin(found, taken).any()) or bool((found == MIXED).any()):
            return str(user.meta.get("layer", "")) or user.name
    return ""
