"""Where noise can go in: static quantizers that only weighted layers read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxquant.graph.convolution import CONVOLUTION, Convolution
from fxquant.graph.layers import Layer
from fxquant.passes.fit import WEIGHTED
from fxquant.passes.stored import has_plain_bias, weight_value
from fxquant.quant import ops

aten = torch.ops.aten
STEPPED = frozenset({ops.quantize_per_tensor, ops.quantize_region})


@dataclass(frozen=True)
class Reader:
    """A weighted layer behind a quantizer, and its graph node."""

    layer: Layer
    node: Node


@dataclass(frozen=True)
class NoiseSite:
    """A quantizer, its dequantizer, and every layer that reads the result, in graph order.

    ``declined``: why no noise may be added, empty where it may.
    """

    quantize: Node
    dequantize: Node
    readers: tuple[Reader, ...]
    declined: str = ""

    @property
    def places(self) -> tuple[str, ...]:
        """The readers' sites, such as ``blocks.0.attn.qkv:input``; the first names this site."""
        return tuple(f"{reader.layer.name}:input" for reader in self.readers)

    @property
    def step(self) -> float:
        """Δ, or Δ1 of a region quantizer."""
        scale: Any = self.quantize.args[1]
        return float(scale)

    @property
    def widths(self) -> tuple[float, ...]:
        """The quantizer's steps, in units of ``step``: 1, and 2^m where there are two regions."""
        if self.quantize.target is not ops.quantize_region:
            return (1.0,)
        shift: Any = self.quantize.args[2]
        return (1.0, 2.0**shift) if shift else (1.0,)

    @property
    def channels(self) -> int:
        """Entries of the noise: input channels of a linear or of a convolution's image."""
        given: Any = self.quantize.args[0]
        return int(given.meta["val"].shape[1 if self.is_convolution else -1])

    @property
    def is_convolution(self) -> bool:
        """Whether channels lie on axis 1."""
        return self.readers[0].layer.kind == "conv"

    @property
    def kernel(self) -> tuple[int, ...]:
        """Elements of a patch per channel, ``(height, width)``; empty for linears."""
        weight: Any = self.readers[0].node.args[1]
        return tuple(weight.meta["val"].shape[2:])

    @property
    def spread(self) -> Tensor:
        """int64 ``[K]``: the noise channel of each column of the readers' flat weights."""
        return torch.arange(self.channels).repeat_interleave(math.prod(self.kernel))


def noise_sites(graph_module: GraphModule, layers: tuple[Layer, ...]) -> tuple[NoiseSite, ...]:
    """Every activation quantizer in front of linears and convolutions, in graph order."""
    nodes = {node.name: node for node in graph_module.graph.nodes}
    behind: dict[Node, list[Reader]] = {}
    for layer in layers:
        node = nodes.get(layer.node)
        if layer.kind not in WEIGHTED or node is None:
            continue
        given = node.args[0]
        if isinstance(given, Node) and given.target in ops.DEQUANTIZE:
            behind.setdefault(given, []).append(Reader(layer, node))
    sites = []
    for dequantize, readers in behind.items():
        codes = dequantize.args[0]
        assert isinstance(codes, Node)
        refusal = _refusal(graph_module, codes, dequantize, readers)
        sites.append(NoiseSite(codes, dequantize, tuple(readers), refusal))
    return tuple(sites)


def _refusal(
    graph_module: GraphModule, codes: Node, dequantize: Node, readers: list[Reader]
) -> str:
    """Why a quantizer gets no noise; empty where it may."""
    if dequantize.target is ops.dequantize_per_token:
        return "its range is found per token while the model runs: there is no step to search by"
    if codes.target not in STEPPED:
        return "its codes do not come from a quantizer with one step"
    if set(codes.users) != {dequantize} or len(dequantize.users) != len(readers):
        return "something other than linears and convolutions reads its codes"
    kinds = {reader.layer.kind for reader in readers}
    if len(kinds) > 1:
        return "a convolution and a linear read it: their channels lie on different axes"
    if kinds == {"conv"} and len(readers) > 1:
        return "several convolutions read it"
    for reader in readers:
        if problem := _unfit(graph_module, reader):
            return f"{reader.layer.name}: {problem}"
    return ""


def _unfit(graph_module: GraphModule, reader: Reader) -> str:
    """What stands against taking the noise's image off a layer's bias."""
    node = reader.node
    if weight_value(graph_module, node) is None or not has_plain_bias(node):
        return "its weight or bias is computed while the model runs"
    if node.target is aten.linear.default:
        return ""
    if node.target is not CONVOLUTION:
        return f"{node.target} is no 2-d convolution"
    form = Convolution.of(node)
    if form.padded:
        return "zeros are padded in after the quantizer, and they carry no noise"
    return "grouped convolution" if form.groups != 1 else ""
