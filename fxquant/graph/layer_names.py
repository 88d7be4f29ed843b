"""Unique layer names for the operations a plan or report speaks of."""

from __future__ import annotations

import re
from collections import Counter

import torch
from torch.fx import GraphModule, Node

from fxquant.graph.weighted import row_exponentials, weighted_mean

aten = torch.ops.aten

LINEAR = frozenset({aten.linear.default})
CONV = frozenset({aten.conv2d.default, aten.conv1d.default, aten.convolution.default})
MATMUL = frozenset({aten.matmul.default, aten.bmm.default, aten.mm.default, weighted_mean})
ATTENTION = frozenset({aten.scaled_dot_product_attention.default})
NORM = frozenset({aten.layer_norm.default})
GELU = frozenset({aten.gelu.default})
SOFTMAX = frozenset({aten.softmax.int, aten._softmax.default, row_exponentials})
WEIGHTED = LINEAR | CONV
_MADE = re.compile(r"__(weight|constant)(_\d+)?$")  # transposed or folded during capture
_SUFFIX = {
    **dict.fromkeys(MATMUL, "matmul"),
    **dict.fromkeys(ATTENTION, "sdpa"),
    **dict.fromkeys(GELU, "gelu"),
    **dict.fromkeys(SOFTMAX, "softmax"),
    **dict.fromkeys(NORM, "norm"),
    **dict.fromkeys(LINEAR, "linear"),
    **dict.fromkeys(CONV, "conv"),
}


def weight_layer(node: Node) -> str | None:
    """Layer of a weighted call, read off its weight's name: ``x.qkv.weight`` -> ``x.qkv``.

    None where the weight is no tensor of the model (computed, or folded into a constant).
    """
    weight = node.args[1] if len(node.args) > 1 else None
    if not isinstance(weight, Node) or weight.op != "get_attr":
        return None
    target = str(weight.target)
    if made := _MADE.search(target):
        return str(weight.meta["layer"]) if made[1] == "weight" else None
    for ending in (".weight", "_weight", ".proj_weight"):
        if target.endswith(ending):
            return target[: -len(ending)]
    return target


def name_layers(graph_module: GraphModule) -> None:
    """Set ``meta["layer"]`` of every operation of note to a name no other one has.

    A weighted operation is called after its weight, so that both doors agree; other operations
    after their module, with the operation's name appended where a module holds several. A layer
    that runs again (a module called twice) gets ``@2``, ``@3``.
    """
    noted = [n for n in graph_module.graph.nodes if n.op == "call_function" and n.target in _SUFFIX]
    wanted: dict[Node, str] = {}
    for node in noted:
        by_weight = weight_layer(node) if node.target in WEIGHTED else None
        wanted[node] = by_weight if by_weight is not None else str(node.meta["layer"])
    kinds = Counter(name for node, name in wanted.items() if weight_layer(node) != name)
    parents = {
        str(n.meta["layer"])
        for n in graph_module.graph.nodes
        if n.op == "call_function" and n not in wanted
    }
    calls: Counter[str] = Counter()
    for node in noted:
        name = wanted[node]
        weighted = node.target in WEIGHTED and weight_layer(node) is not None
        if not weighted and (kinds[name] > 1 or name in parents or not name):
            name = f"{name}.{_SUFFIX[node.target]}".lstrip(".")
        calls[name] += 1
        node.meta["layer"] = name if calls[name] == 1 else f"{name}@{calls[name]}"
