"""Walking a graph through operations that let pass what is followed: by default, movement only."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator

import torch
from torch.fx import Node

aten = torch.ops.aten

MOVEMENT = frozenset(
    {
        aten.reshape.default,
        aten.view.default,
        aten.flatten.using_ints,
        aten.unflatten.int,
        aten.permute.default,
        aten.transpose.int,
        aten.unbind.int,
        aten.chunk.default,
        aten.split.Tensor,
        aten.split_with_sizes.default,
        aten.select.int,
        aten.slice.Tensor,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.unsqueeze.default,
        aten.expand.default,
        aten.roll.default,
        aten.contiguous.default,
        aten.clone.default,
        operator.getitem,
    }
)


def is_movement(node: Node) -> bool:
    """Whether a node only moves the elements of its first argument."""
    return node.op == "call_function" and node.target in MOVEMENT


def origin(node: Node, through: Callable[[Node], bool] = is_movement) -> Node:
    """The nearest ancestor along first arguments that is not to be passed ``through``."""
    while through(node) and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def moved_through(node: Node) -> list[Node]:
    """The movement nodes between ``node`` and its :func:`origin`, nearest first."""
    path = []
    while is_movement(node) and isinstance(node.args[0], Node):
        path.append(node)
        node = node.args[0]
    return path


def consumers(
    node: Node, through: Callable[[Node], bool] = is_movement
) -> Iterator[tuple[Node, Node]]:
    """``(consumer, operand)`` pairs reached from ``node`` through first arguments of nodes that are
    to be passed ``through``."""
    stack, seen = [node], {node}
    while stack:
        current = stack.pop()
        for user in current.users:
            if through(user) and user.args[0] is current:
                if user not in seen:
                    seen.add(user)
                    stack.append(user)
            else:
                yield user, current


def depends_on_input(graph: torch.fx.Graph) -> set[Node]:
    """All nodes that depend on a placeholder."""
    reached: set[Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(a in reached for a in node.all_input_nodes):
            reached.add(node)
    return reached
