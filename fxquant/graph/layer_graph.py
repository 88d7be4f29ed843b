"""Layers as a networkx graph: the only input of an allocator."""

from __future__ import annotations

from collections import defaultdict

import networkx as nx
from torch.fx import GraphModule, Node

from fxquant.graph.flow import origin
from fxquant.graph.layers import Layer
from fxquant.graph.shapes import elements

_FLOAT_BYTES = 4


def must_share_groups(
    graph_module: GraphModule, layers: tuple[Layer, ...]
) -> tuple[tuple[str, ...], ...]:
    """Layers that must be quantized alike: they read one tensor or hold one weight.

    Each weighted layer is in exactly one group, in graph order.
    """
    by_name = {node.name: node for node in graph_module.graph.nodes}
    union: nx.Graph[str] = nx.Graph()
    holders: dict[object, list[str]] = defaultdict(list)
    for layer in layers:
        if layer.kind not in {"linear", "conv"}:
            continue
        union.add_node(layer.name)
        source = by_name[layer.node].args[0]
        assert isinstance(source, Node)
        holders["tensor", origin(source).name].append(layer.name)
        if layer.weight:
            holders["weight", layer.weight].append(layer.name)
    for names in holders.values():
        nx.add_path(union, names)
    order = {layer.name: i for i, layer in enumerate(layers)}
    groups = [tuple(sorted(c, key=order.__getitem__)) for c in nx.connected_components(union)]
    return tuple(sorted(groups, key=lambda group: order[group[0]]))


def layer_graph(graph_module: GraphModule, layers: tuple[Layer, ...]) -> nx.DiGraph[str]:
    """Directed graph over layers; must-share groups contracted into one node.

    Node: ``members``, ``role``, ``macs``, ``weight_bytes`` (float32), ``activation_bytes`` (input
    per image, float32). Edge: ``tensor`` (name of the graph node) and ``bytes`` per image.
    """
    by_node = {layer.node: layer for layer in layers}
    representative = {layer.name: layer.name for layer in layers}
    for group in must_share_groups(graph_module, layers):
        representative |= dict.fromkeys(group, group[0])
    result: nx.DiGraph[str] = nx.DiGraph()
    seen_weights: set[str] = set()
    for layer in layers:
        key = representative[layer.name]
        if key not in result:
            result.add_node(
                key, members=(), role=layer.role, macs=0, weight_bytes=0, activation_bytes=0
            )
        data = result.nodes[key]
        data["members"] += (layer.name,)
        data["macs"] += layer.macs
        if layer.weight and layer.weight not in seen_weights:
            seen_weights.add(layer.weight)
            data["weight_bytes"] += layer.weight_elements * _FLOAT_BYTES
        size = 1
        for extent in layer.input_shape:
            size *= extent
        data["activation_bytes"] = max(data["activation_bytes"], size * _FLOAT_BYTES)
    _add_edges(graph_module, by_node, representative, result)
    return result


def _add_edges(
    graph_module: GraphModule,
    by_node: dict[str, Layer],
    representative: dict[str, str],
    result: nx.DiGraph[str],
) -> None:
    nearest: dict[Node, set[Node]] = {}
    for node in graph_module.graph.nodes:
        parents: set[Node] = set()
        for argument in node.all_input_nodes:
            parents |= {argument} if argument.name in by_node else nearest[argument]
        nearest[node] = parents
        if node.name not in by_node:
            continue
        for parent in parents:
            tail = representative[by_node[parent.name].name]
            head = representative[by_node[node.name].name]
            if tail != head:
                size = elements(parent) * _FLOAT_BYTES
                result.add_edge(tail, head, tensor=parent.name, bytes=size)
