"""All roles of a graph in one sweep."""

from __future__ import annotations

import torch
from torch.fx import Graph, GraphModule, Node

from fxquant.graph.flow import depends_on_input
from fxquant.graph.layer_names import MATMUL
from fxquant.graph.roles.activations import activation_role, sums_inside
from fxquant.graph.roles.attention import attention_roles
from fxquant.graph.roles.linears import linear_roles
from fxquant.graph.roles.norms import norm_role
from fxquant.graph.shapes import rank, same_shape

aten = torch.ops.aten

_FEWEST_AXES = 3  # batch, tokens, channels


def _residual_adds(graph: Graph) -> set[Node]:
    variable = depends_on_input(graph)
    return {
        node
        for node in graph.nodes
        if node.target is aten.add.Tensor
        and len(node.all_input_nodes) == 2
        and all(a in variable for a in node.all_input_nodes)
        and rank(node) >= _FEWEST_AXES
        and all(same_shape(a, node) for a in node.all_input_nodes)
    }


def find_roles(graph_module: GraphModule) -> dict[Node, str]:
    """Role of every operation that a plan, report or rule speaks of.

    ``qkv, proj, fc1, fc2, token_fc1, token_fc2, token_mix, spatial_gate, patch_embed,
    patch_merging, head, talking_heads, linear, conv`` (weighted); ``attention, attention_qk,
    attention_av, matmul``; ``layer_norm, affine, softmax, gelu, gelu_tanh, gelu_quick, relu,
    silu, ...``; ``residual_add``. A transform that puts something between a layer and what its role
    was read off keeps the role in ``meta["role"]``.
    """
    graph = graph_module.graph
    roles: dict[Node, str] = {}
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        role = activation_role(node) or norm_role(graph_module, node)
        if role is not None:
            roles[node] = role
    activations = {n for n, role in roles.items() if role not in {"layer_norm", "affine"}}
    roles |= attention_roles(graph)
    roles |= linear_roles(graph, roles, activations)
    for node in graph.nodes:
        if node.target in MATMUL:
            roles.setdefault(node, "matmul")
    for node in _residual_adds(graph) - sums_inside(activations):
        roles.setdefault(node, "residual_add")
    roles |= {node: node.meta["role"] for node in graph.nodes if "role" in node.meta}
    return {node: roles[node] for node in graph.nodes if node in roles}
