"""Codes of a value, as nodes: requantized, moved, added, concatenated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxquant.graph.tensors import add_buffer, attribute_name, call
from fxquant.passes.integers.values import (
    Cat,
    Clipped,
    Constant,
    Leaf,
    Moved,
    Value,
    movement_arguments,
    rounded,
)
from fxquant.quant.integer.codes import Codes
from fxquant.quant.integer.dyadic import (
    dyadic,
    dyadic_row,
    requantize,
    requantize_channels,
    saturate,
)

aten = torch.ops.aten
WIDE_END = 1 << 29  # summands are clipped here, so that a sum of three fits int32
_WIDE = (0, -WIDE_END, WIDE_END, torch.int32)


class Emitter:
    """Puts nodes before ``at`` and gives them its provenance; equal requests are met once."""

    def __init__(self, graph_module: GraphModule) -> None:
        self.graph_module = graph_module
        self.at: Node = next(iter(graph_module.graph.nodes))
        self._made: dict[tuple[Any, ...], Node] = {}

    def call(self, target: Any, *args: Any, like: Node | None = None, **kwargs: Any) -> Node:
        """One node before ``at``."""
        with self.graph_module.graph.inserting_before(self.at):
            return call(self.graph_module, target, args, like=like or self.at, **kwargs)

    def buffer(self, slot: str, value: Tensor, *, like: Node | None = None) -> Node:
        """A constant of the graph."""
        owner = like or self.at
        name = attribute_name(str(owner.meta["layer"]), slot)
        return add_buffer(self.graph_module, name, value, like=owner, before=self.at)

    def codes(self, value: Value, wanted: Codes) -> Node:
        """``clip(round(value / s) + z)``; the type is that of ``wanted``."""
        key = (value, wanted)
        if key not in self._made:
            self._made[key] = self._codes(value, wanted)
        return self._made[key]

    def _codes(self, value: Value, wanted: Codes) -> Node:
        if isinstance(value, Leaf):
            return self._leaf(value, wanted.scale, wanted.ends)
        if isinstance(value, Moved):
            return self._moved(value, self.codes(value.inner, wanted))
        if isinstance(value, Cat):
            parts = [self.codes(part, wanted) for part in value.parts]
            return self._cat(value, parts)
        if isinstance(value, Clipped):
            low, high = value.codes(wanted.scale, wanted.zero_point, wanted.low, wanted.high)
            return self.codes(value.inner, replace(wanted, low=low, high=high))
        return self.call(saturate, self._wide(value, wanted.scale), *wanted.ends)

    def _wide(self, value: Value, scale: float) -> Node:
        """``round(value / s)`` in int32, all but unclipped."""
        if isinstance(value, Leaf):
            return self._leaf(value, scale, _WIDE)
        if isinstance(value, Constant):
            return self.buffer("constant", rounded(value.tensor, scale))
        if isinstance(value, Moved):
            return self._moved(value, self._wide(value.inner, scale))
        if isinstance(value, Clipped):
            ends = value.codes(scale, 0, -WIDE_END, WIDE_END)
            return self.call(saturate, self._wide(value.inner, scale), 0, *ends, torch.int32)
        parts = [self._wide(part, scale) for part in value.parts]
        if isinstance(value, Cat):
            return self._cat(value, parts)
        made = parts[0]
        for part in parts[1:]:
            made = self.call(aten.add.Tensor, made, part)
        return made

    def _leaf(self, leaf: Leaf, scale: float, ends: tuple[int, int, int, torch.dtype]) -> Node:
        if isinstance(leaf.scale, Tensor):
            ratios = leaf.scale.to(torch.float64) / scale
            row = dyadic_row(ratios, -leaf.zero_point * ratios)
            parts = {"multiplier": row.multiplier, "shift": row.shift, "addend": row.addend}
            held = [self.buffer(name, value, like=leaf.node) for name, value in parts.items()]
            return self.call(requantize_channels, leaf.node, *held, *ends, like=leaf.node)
        node = leaf.node
        if leaf.zero_point:
            node = self.call(saturate, node, -leaf.zero_point, *_WIDE[1:])
        if leaf.scale == scale:
            return self.call(saturate, node, *ends)
        factor = dyadic(leaf.scale / scale)
        return self.call(requantize, node, factor.multiplier, factor.shift, *ends)

    def _moved(self, value: Moved, inner: Node) -> Node:
        key = (value.like.target, value.like.args[1:], inner)
        try:
            hash(key)
        except TypeError:
            return self.move(value.like, inner)
        if key not in self._made:
            self._made[key] = self.move(value.like, inner)
        return self._made[key]

    def move(self, like: Node, inner: Node) -> Node:
        """The movement of ``like`` on another tensor."""
        args, kwargs = movement_arguments(like)
        return self.call(like.target, inner, *args, like=like, **kwargs)

    def _cat(self, value: Cat, parts: list[Node]) -> Node:
        return self.call(aten.cat.default, parts, *value.like.args[1:], like=value.like)
