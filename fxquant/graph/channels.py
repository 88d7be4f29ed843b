"""Which channel of one tensor each channel of another is, found by moving channel numbers.

Symbolic axis arithmetic would have to know every view, permutation and slice; running the nodes
themselves on numbers knows them already. The batch is set to two, so that a view which mixes
batch and channels shows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from fxquant.graph.flow import is_movement

aten = torch.ops.aten

PADDED = -1  # a zero that padding put in: belongs to no channel, and equals itself scaled
MIXED = -2  # an average over several channels
_BATCH = 2
_ABOVE = torch.iinfo(torch.int64).max
_MEANS = frozenset({aten.mean.dim})
_POOLS = frozenset({aten.adaptive_avg_pool2d.default})
_PADS = frozenset({aten.pad.default, aten.constant_pad_nd.default})


def is_average(node: Node) -> bool:
    """Whether a node averages its first argument over some axes, keeping the dtype."""
    return node.target in _POOLS or (node.target in _MEANS and "dtype" not in node.kwargs)


def is_padding(node: Node) -> bool:
    """Whether a node puts constants around its first argument."""
    if node.target is aten.pad.default and len(node.args) > 2:
        return node.args[2] == "constant"
    return node.target in _PADS


def is_zero_padding(node: Node) -> bool:
    """Whether a node puts zeros around its first argument."""
    if not is_padding(node):
        return False
    given = node.args[3:] if node.target is aten.pad.default else node.args[2:]
    value = node.kwargs.get("value", given[0] if given else None)
    return value in (None, 0)


def carries(node: Node) -> bool:
    """Whether ``f(x * e) = f(x) * e`` for one factor ``e`` per channel that ``node`` keeps apart.

    Movement, averages over other axes and padding with zeros. All but the padding also carry a
    summand per channel, ``f(x + m) = f(x) + m``.
    """
    return is_movement(node) or is_average(node) or is_zero_padding(node)


def route(source: Node, target: Node) -> list[Node] | None:
    """The nodes after ``source`` up to ``target`` along first arguments; None where one does not
    :func:`carries`, or ``source`` is not met."""
    path: list[Node] = []
    while target is not source:
        first = target.args[0] if target.op == "call_function" and target.args else None
        if not (carries(target) and isinstance(first, Node)):
            return None
        path.append(target)
        target = first
    return path[::-1]


def numbered(node: Node) -> Tensor:
    """int64, in the shape of ``node`` for two images: each element's place on the last axis."""
    value = node.meta["val"]
    assert isinstance(value, Tensor)
    shape = [_size(size) for size in value.shape]
    return torch.arange(shape[-1]).expand(shape)


def moved(labels: Tensor, path: list[Node]) -> Tensor:
    """``labels`` of the first node's operand, carried along ``path``; int64."""
    value: Any = labels
    for node in path:
        args, kwargs = torch.fx.node.map_aggregate((node.args, node.kwargs), _plain)
        if is_average(node):
            value = _averaged(value, node, args)
        elif is_padding(node):
            value = aten.constant_pad_nd.default(value, args[1], PADDED)
        else:
            target: Any = node.target
            value = target(value, *args[1:], **kwargs)
    assert isinstance(value, Tensor)
    return value


def uniform(labels: Tensor, axes: tuple[int, ...], *, keepdim: bool = False) -> Tensor:
    """The one label along ``axes``, ``MIXED`` where there are several; padding does not count."""
    high = labels.amax(axes, keepdim=keepdim)
    low = labels.masked_fill(labels == PADDED, _ABOVE).amin(axes, keepdim=keepdim)
    return torch.where((low == high) | (high == PADDED), high, MIXED)


def per_channel(labels: Tensor) -> tuple[int, ...] | None:
    """The label that each place of the last axis holds everywhere; None where one holds none or
    several."""
    found = uniform(labels.reshape(-1, labels.shape[-1]), (0,))
    return None if bool((found < 0).any()) else tuple(found.tolist())


def channels(source: Node, target: Node) -> tuple[int, ...] | None:
    """The channel of ``source`` (last axis) that each channel of ``target`` (last axis) is.

    None where ``target`` is not reached through nodes that :func:`carries`, or where the answer
    differs between tokens or images.
    """
    path = route(source, target)
    return None if path is None else per_channel(moved(numbered(source), path))


def _averaged(labels: Tensor, node: Node, args: Any) -> Tensor:
    if node.target in _POOLS:
        planes = uniform(labels, (-2, -1), keepdim=True)
        return planes.expand(*planes.shape[:-2], *(_size(s) for s in node.meta["val"].shape[-2:]))
    axes = tuple(args[1]) if args[1] else tuple(range(labels.dim()))
    keepdim = bool(args[2]) if len(args) > 2 else False
    return uniform(labels, axes, keepdim=keepdim)


def _plain(argument: Any) -> Any:
    """A size node's value for two images; the tensor operand is put in by the caller."""
    if not isinstance(argument, Node):
        return argument
    value = argument.meta["val"]
    return None if isinstance(value, (Tensor, tuple, list)) else _size(value)


def _size(size: Any) -> int:
    if isinstance(size, torch.SymInt):
        expression = size.node.expr
        return int(expression.subs(dict.fromkeys(expression.free_symbols, _BATCH)))
    return int(size)
