"""A quantized layer's stored weight and bias: reading them, and exchanging them in a copy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxquant.graph.tensors import attribute_name, constant_of, exchange_argument, tensor_at
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


def weight_value(graph_module: GraphModule, node: Node) -> Tensor | None:
    """The float32 weight that a layer computes with now, ``[O, C, ...]``: a tensor of the model, or
    codes dequantized; None where it is computed while the model runs."""
    value: Tensor | None = _value(graph_module, node.args[1])
    return value


def _value(graph_module: GraphModule, argument: Any) -> Any:
    if not isinstance(argument, Node):
        return argument
    if argument.op == "get_attr":
        return tensor_at(graph_module, str(argument.target)).detach()
    if argument.target not in ops.DEQUANTIZE:
        return None
    values = [_value(graph_module, part) for part in argument.args]
    target: Any = argument.target
    return None if any(value is None for value in values) else target(*values)


def bias_node(node: Node) -> Node | None:
    """The bias among a layer's arguments, None where it has none."""
    held = node.args[2] if len(node.args) > 2 else None
    return held if isinstance(held, Node) else None


def bias_of(graph_module: GraphModule, node: Node) -> Tensor:
    """A layer's bias ``[O]``, zeros where it has none."""
    bias = constant_of(graph_module, bias_node(node))
    if bias is not None:
        return bias.detach()
    return torch.zeros(node.args[1].meta["val"].shape[0])  # type: ignore[union-attr]


def has_plain_bias(node: Node) -> bool:
    """Whether a layer's bias is a tensor of the model, or absent, rather than computed."""
    bias = bias_node(node)
    return bias is None or bias.op == "get_attr"


def exchange_bias(graph_module: GraphModule, layer: str, node: Node, bias: Tensor) -> None:
    """Give a layer a bias buffer of its own, whether or not it had a bias."""
    exchange_argument(graph_module, node, 2, attribute_name(layer, "bias"), bias)
