"""Following a summand per channel through a graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import Node

from fxquant.graph.channels import carries, is_padding, moved
from fxquant.graph.flow import consumers, origin

aten = torch.ops.aten
FoldKind = Literal["layer_norm", "value_bias", "add"]


@dataclass(frozen=True)
class Fold:
    """How noise gets in front of a quantizer.

    ``kind``: ``layer_norm`` adds it to the bias of norm ``node``, ``value_bias`` to that of the
    linear ``node`` that makes V, ``add`` is a node of its own. ``entries``: for each noise channel
    the entry of that bias. ``free``: no kernel is added or taken apart. ``reason``: why this kind.
    """

    kind: FoldKind
    node: Node
    entries: tuple[int, ...] = ()
    free: bool = True
    reason: str = ""


def _is_cast(node: Node) -> bool:
    return node.target is aten.to.dtype and len(node.args) == 2


def passes(node: Node) -> bool:
    """Whether ``f(x + m) = f(x) + m`` for a summand per channel; a cast but for its rounding."""
    return _is_cast(node) or (carries(node) and not is_padding(node))


def start(node: Any) -> Any:
    """The nearest ancestor along first arguments that does more than pass a summand."""
    return origin(node, passes) if isinstance(node, Node) else node


def carried(labels: Tensor, source: Node, target: Node) -> Tensor:
    """``labels`` of ``source`` as they lie in ``target``, which :func:`start` leads back from."""
    path = []
    while target is not source:
        if not _is_cast(target):
            path.append(target)
        target = target.args[0]  # type: ignore[assignment]
    return moved(labels, path[::-1])


def one_to_one(entries: tuple[int, ...] | None) -> bool:
    """Whether every entry was found, and none twice."""
    return entries is not None and len(set(entries)) == len(entries)


def other_reader(source: Node, quantize: Node) -> str:
    """The layer that reads ``source`` beside ``quantize``; empty where there is none."""
    others = [user for user, _ in consumers(source, passes) if user is not quantize]
    return str(others[0].meta.get("layer", "")) or others[0].name if others else ""
