"""A quantized layer's stored weight and bias: reading them, and exchanging them in a copy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxquant.graph.layers import Layer
from fxquant.graph.tensors import add_buffer, attribute_name, constant_of, tensor_at
from fxquant.quant import ops
from fxquant.quant.qparams import QParams

_DEQUANTIZE_WEIGHT = frozenset(
    {ops.dequantize_per_tensor, ops.dequantize_per_channel, ops.dequantize_per_channel_group}
)


@dataclass(frozen=True)
class StoredWeight:
    """The dequantize node of a layer's weight and the names of the buffers it reads."""

    dequantize: Node
    codes: str

    @staticmethod
    def of(node: Node) -> StoredWeight | None:
        """That of a linear or convolution, or None where its weight is not stored as codes."""
        source = node.args[1]
        if not isinstance(source, Node) or source.target not in _DEQUANTIZE_WEIGHT:
            return None
        codes = source.args[0]
        if not isinstance(codes, Node) or codes.op != "get_attr":
            return None
        return StoredWeight(source, str(codes.target))

    def readers(self) -> int:
        """How many operations compute with the codes: more than one where a weight is tied."""
        nodes = self.dequantize.graph.nodes
        reads = [n for n in nodes if n.op == "get_attr" and str(n.target) == self.codes]
        return sum(len(dequantize.users) for read in reads for dequantize in read.users)

    def exchange(self, graph_module: GraphModule, codes: Tensor, qparams: QParams) -> None:
        """Put other codes and scales in place; zero points stay.

        ``codes``: shape and dtype of those that are there. Buffers of that name are set on
        ``graph_module`` alone: modules that share the old tensors keep them.
        """
        graph_module.register_buffer(self.codes, codes)
        scale = self.dequantize.args[1]
        if isinstance(scale, Node):
            graph_module.register_buffer(str(scale.target), qparams.scale)
        else:
            self.dequantize.update_arg(1, float(qparams.scale))


def bias_of(graph_module: GraphModule, node: Node) -> Tensor:
    """A layer's bias ``[O]``, zeros where it has none."""
    bias = constant_of(graph_module, node.args[2]) if len(node.args) > 2 else None
    if bias is not None:
        return bias.detach()
    return torch.zeros(node.args[1].meta["val"].shape[0])  # type: ignore[union-attr]


def has_plain_bias(node: Node) -> bool:
    """Whether a layer's bias is a tensor of the model, or absent, rather than computed."""
    bias = node.args[2] if len(node.args) > 2 else None
    return bias is None or (isinstance(bias, Node) and bias.op == "get_attr")


def exchange_bias(graph_module: GraphModule, layer: Layer, node: Node, bias: Tensor) -> None:
    """Give a layer a bias buffer of its own, whether or not it had a bias."""
    name = attribute_name(layer.name, "bias")
    read = add_buffer(graph_module, name, bias, like=node, before=node)
    node.args = (*node.args[:2], read, *node.args[3:])


def weight_value(graph_module: GraphModule, stored: StoredWeight) -> Tensor:
    """The float32 weight that the layer computes with now."""
    args = [
        tensor_at(graph_module, str(a.target)) if isinstance(a, Node) else a
        for a in stored.dequantize.args
    ]
    value: Tensor = stored.dequantize.target(*args)  # type: ignore[operator]
    return value
