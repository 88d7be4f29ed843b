"""Spelling differences between models removed: one way to write each thing."""

from __future__ import annotations

import re
import sys
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from fxquant.graph.flow import depends_on_input
from fxquant.graph.tensors import add_buffer, attribute_name, constant_of

aten = torch.ops.aten

# Evaluated without rounding or randomness, and never worth redoing on every call.
_TRACER_CONSTANT = re.compile(r"(_tensor_constant|lifted_tensor_|c_lifted_tensor_)\d+")
_LARGEST_CONSTANT = 2**26  # elements; anything larger is cheaper to recompute than to store


def _identity(node: Node) -> bool:
    target, args = node.target, node.args
    if target is aten.dropout.default:
        return args[2] is False or bool(args[1] == 0)
    if target in {aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default}:
        return True
    if target in {aten.clone.default, aten.contiguous.default}:
        return True
    if target is aten.slice.Tensor:
        step = args[4] if len(args) > 4 else 1
        return bool(args[2:4] == (0, sys.maxsize) and step == 1)
    if target in {aten.to.dtype, aten.to.device, aten._to_copy.default, aten.to.dtype_layout}:
        source, value = node.args[0], node.meta.get("val")
        assert isinstance(source, Node)
        return isinstance(value, Tensor) and source.meta["val"].dtype == value.dtype
    if target is aten.pad.default:
        padding = args[1]
        return isinstance(padding, (list, tuple)) and not any(padding)
    if target in {aten.expand.default, aten.reshape.default} and isinstance(args[0], Node):
        before, after = args[0].meta["val"].shape, node.meta["val"].shape
        return [str(size) for size in before] == [str(size) for size in after]
    return False


def drop_identities(graph: Graph) -> None:
    """``f(x) -> x`` for dropout in eval mode, copies, full slices and casts to the same type."""
    for node in list(graph.nodes):
        # the guards that torch.export puts before the graph and before each cast
        if node.op == "call_module" or node.target is aten._assert_tensor_metadata.default:
            graph.erase_node(node)
        elif node.op == "call_function" and _identity(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def name_tracer_constants(graph_module: GraphModule) -> None:
    """``_tensor_constant3`` and its like are named after their first reader."""
    for node in list(graph_module.graph.nodes):
        if node.op == "get_attr" and _TRACER_CONSTANT.fullmatch(str(node.target)) and node.users:
            value = constant_of(graph_module, node)
            assert value is not None
            reader = next(iter(node.users))
            name = attribute_name(str(reader.meta["layer"]), "constant")
            named = add_buffer(graph_module, name, value, like=reader, before=node)
            node.replace_all_uses_with(named)
            graph_module.graph.erase_node(node)


def input_free_factories(graph: Graph) -> None:
    """``new_zeros(x, sizes) -> full(sizes, 0)`` for constant sizes, so that masks can be folded."""
    for node in list(graph.nodes):
        fill = {aten.new_zeros.default: 0, aten.new_ones.default: 1}.get(node.target)
        if fill is None or not all(isinstance(size, int) for size in node.args[1]):
            continue
        with graph.inserting_before(node):
            dtype = {"dtype": node.meta["val"].dtype}
            full = graph.call_function(aten.full.default, (node.args[1], fill), dtype)
        full.meta.update(node.meta)
        node.replace_all_uses_with(full)
        graph.erase_node(node)


def sink_operands(graph: Graph) -> None:
    """Put tensors and size arithmetic right before their first reader, in operand order.

    The doors create them in orders of their own; afterwards equal models print equally.
    """
    order = list(graph.nodes)
    floating = {
        n
        for n in order
        if n.op == "get_attr"
        or (n.op == "call_function" and not isinstance(n.meta.get("val"), (Tensor, tuple, list)))
    }
    placed: set[Node] = set()

    def place(node: Node, reader: Node) -> None:
        for operand in node.all_input_nodes:
            if operand in floating and operand not in placed:
                place(operand, reader)
        placed.add(node)
        reader.prepend(node)

    for reader in order:
        if reader in floating:
            continue
        for operand in reader.all_input_nodes:
            if operand in floating and operand not in placed:
                place(operand, reader)


def fold_constants(graph_module: GraphModule) -> None:
    """Evaluate every subgraph that no input reaches (position tables, masks) into a buffer."""
    graph = graph_module.graph
    variable = depends_on_input(graph)
    values: dict[Node, Any] = {}

    def value_of(node: Node) -> Any:
        if node not in values:
            if node.op == "get_attr":
                values[node] = constant_of(graph_module, node)
            else:
                args = torch.fx.node.map_arg(node.args, value_of)
                kwargs = torch.fx.node.map_arg(node.kwargs, value_of)
                target: Any = node.target
                values[node] = target(*args, **kwargs)
        return values[node]

    for node in list(graph.nodes):
        if node.op != "call_function" or node in variable:
            continue
        readers = [user for user in node.users if user in variable or user.op == "output"]
        meta = node.meta.get("val")
        if not readers or not isinstance(meta, Tensor) or meta.numel() > _LARGEST_CONSTANT:
            continue
        with torch.no_grad():
            value = value_of(node)
        assert isinstance(value, Tensor)
        reader = readers[0] if readers[0].op != "output" else node
        name = attribute_name(str(reader.meta["layer"]), "constant")
        constant = add_buffer(graph_module, name, value.detach().clone(), like=reader, before=node)
        node.replace_all_uses_with(constant, delete_user_cb=lambda user, r=readers: user in r)
    graph.eliminate_dead_code()
