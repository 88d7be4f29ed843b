"""Packing int8 weights for oneDNN, once per weight."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxquant.graph.rule import Decline
from fxquant.graph.tensors import attribute_name, read_buffer, tensor_at
from fxquant.quant import ops


@dataclass(frozen=True)
class IntWeight:
    """Plain int8 codes ``[out, in]`` with float32 scales ``[out]``, read off a dequantize node."""

    codes: Tensor
    scale: Tensor
    target: str


def int_weight(graph_module: GraphModule, node: object) -> IntWeight | Decline:
    """The weight behind a dequantize node, or why no packed kernel takes it."""
    if not isinstance(node, Node) or node.target not in ops.DEQUANTIZE:
        return Decline("its weight is not quantized")
    held = node.args[0]
    if not isinstance(held, Node) or held.op != "get_attr":
        return Decline("its weight is computed while the model runs")
    codes = tensor_at(graph_module, str(held.target))
    if codes.dtype is not torch.int8:
        return Decline(f"oneDNN takes int8 weights, not {codes.dtype}")
    if node.target is ops.dequantize_per_channel_group:
        return Decline("oneDNN's int8 linear has no group-wise weight scales")
    rows = codes.reshape(codes.shape[0], -1)
    if node.target is ops.dequantize_per_tensor:
        scale = torch.full((rows.shape[0],), float(node.args[1]))  # type: ignore[arg-type]
    else:
        scale = tensor_at(graph_module, str(node.args[1].target))  # type: ignore[union-attr]
    return IntWeight(rows.contiguous(), scale, str(held.target))


@dataclass
class Packer:
    """Packs weights into non-persistent buffers of a graph module, equal weights once."""

    graph_module: GraphModule
    packed: dict[str, str] = field(default_factory=dict)

    def arguments(self, weight: IntWeight, like: Node) -> tuple[Node, Node, Node]:
        """``get_attr`` nodes of the packed weight, its scale and its zero point, at the
        insertion point."""
        if weight.target not in self.packed:
            base = attribute_name(str(like.meta["layer"]), "packed")
            self._register(base, torch.ops.onednn.qlinear_prepack(weight.codes, None))
            self._register(base + "_scale", weight.scale.clone())
            self.packed[weight.target] = base
        base = self.packed[weight.target]
        if not hasattr(self.graph_module, "no_zero_point"):
            self._register("no_zero_point", torch.zeros(1, dtype=torch.int32))
        packed = self._node(base, like, weight.codes)
        scale = self._node(base + "_scale", like, weight.scale)
        return packed, scale, self._node("no_zero_point", like, torch.zeros(1, dtype=torch.int32))

    def _register(self, name: str, value: Tensor) -> None:
        self.graph_module.register_buffer(name, value, persistent=False)

    def _node(self, name: str, like: Node, stand_in: Tensor) -> Node:
        """A node for a packed tensor; its ``val`` is that of the plain tensor it was made from,
        since a packed tensor is opaque."""
        return read_buffer(self.graph_module, name, like=like, value=stand_in)
