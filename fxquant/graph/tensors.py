"""Tensors of a graph: reading them, adding buffers, building nodes that keep the normal form."""

from __future__ import annotations

import copy
import re
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.fx import Graph, GraphModule, Node


def tensor_at(module: nn.Module, target: str) -> Tensor:
    """The parameter or buffer under a dotted name."""
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part)
    assert isinstance(value, Tensor)
    return value


def constant_of(graph_module: GraphModule, node: object) -> Tensor | None:
    """The tensor behind a ``get_attr`` node, else None."""
    if isinstance(node, Node) and node.op == "get_attr":
        return tensor_at(graph_module, str(node.target))
    return None


def attribute_name(layer: str, slot: str) -> str:
    """A flat attribute name for a tensor of a site, such as ``blocks_0_mlp_fc1__weight``."""
    return re.sub(r"\W", "_", layer) + "__" + slot


def add_buffer(
    graph_module: GraphModule, name: str, value: Tensor, *, like: Node, before: Node
) -> Node:
    """Register ``value`` as a persistent buffer and return a ``get_attr`` node for it.

    An equal name gets a number appended. The node takes layer and source from ``like``.
    """
    unique, count = name, 1
    while hasattr(graph_module, unique):
        count += 1
        unique = f"{name}_{count}"
    graph_module.register_buffer(unique, value)
    with graph_module.graph.inserting_before(before):
        return read_buffer(graph_module, unique, like=like, value=value)


def exchange_argument(
    graph_module: GraphModule, node: Node, place: int, name: str, value: Tensor
) -> Node:
    """Let argument ``place`` of ``node`` be a new buffer, whether or not there was one."""
    made = add_buffer(graph_module, name, value, like=node, before=node)
    missing = [None] * (place - len(node.args))
    node.args = (*node.args[:place], *missing, made, *node.args[place + 1 :])
    return made


def read_buffer(graph_module: GraphModule, name: str, *, like: Node, value: Tensor) -> Node:
    """Another reader of a buffer that is there already, at the graph's insertion point.

    ``value`` tells shape and dtype: the buffer itself, or the plain tensor an opaque one was
    packed from.
    """
    node = graph_module.graph.get_attr(name)
    return inherit(node, like, val=fake_like(like, value))


def fake_mode_of(graph_module: GraphModule) -> Any:
    """The fake tensor mode that made the graph's ``val`` entries."""
    for node in graph_module.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, FakeTensor):
            return value.fake_mode
    return torch._subclasses.FakeTensorMode()


def fake_like(node: Node, value: Tensor) -> Tensor:
    """A fake tensor for a real one, in the mode of ``node``'s graph."""
    mode = fake_mode_of(node.graph.owning_module)  # type: ignore[arg-type]
    fake: Tensor = mode.from_tensor(value.detach(), static_shapes=True)
    return fake


def inherit(node: Node, like: Node, *, val: Any) -> Node:
    """Give a new node its value and the provenance of ``like``."""
    node.meta["val"] = val
    node.meta["layer"] = like.meta["layer"]
    node.meta["source"] = like.meta["source"]
    return node


def _value(argument: Any) -> Any:
    return argument.meta["val"] if isinstance(argument, Node) else argument


def call(
    graph_module: GraphModule, target: Any, args: tuple[Any, ...], *, like: Node, **kwargs: Any
) -> Node:
    """Insert ``target(*args)`` at the graph's insertion point and infer its ``val``."""
    node = graph_module.graph.call_function(target, args, kwargs)
    fake_args = torch.fx.node.map_aggregate(args, _value)
    fake_kwargs = torch.fx.node.map_aggregate(kwargs, _value)
    with fake_mode_of(graph_module), torch.no_grad():
        val = target(*fake_args, **fake_kwargs)
    return inherit(node, like, val=val)


def interpose(node: Node, reader: Node) -> None:
    """All readers of ``node`` read ``reader`` instead, which goes on reading ``node``."""
    node.replace_all_uses_with(reader, delete_user_cb=lambda user: user is not reader)


def copy_graph(graph: Graph) -> Graph:
    """A deep copy of a graph, its argument structure included."""
    with warnings.catch_warnings():
        # torch copies its own tree specification through a deprecated spelling
        warnings.simplefilter("ignore", FutureWarning)
        return copy.deepcopy(graph)


def prune(graph_module: GraphModule) -> None:
    """Drop dead nodes, and every parameter, buffer and submodule the graph no longer reads."""
    graph_module.graph.eliminate_dead_code()
    used = {str(n.target) for n in graph_module.graph.nodes if n.op == "get_attr"}
    for path, module in list(graph_module.named_modules()):
        for name in list(module._parameters) + list(module._buffers):
            if (f"{path}.{name}" if path else name) not in used:
                delattr(module, name)
    graph_module.delete_all_unused_submodules()
    graph_module.recompile()
