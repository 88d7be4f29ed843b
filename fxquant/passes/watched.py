"""The tensors that calibration looks at, each with its scheme and the layers that read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxquant.errors import CalibrationError
from fxquant.graph.convolution import CONVOLUTION, Convolution
from fxquant.graph.layers import Layer
from fxquant.graph.tensors import constant_of
from fxquant.quant.scheme import SAMPLED_RULES, Scheme

OPERAND = {"input": 0, "lhs": 0, "rhs": 1}  # argument of a slot's tensor


@dataclass
class Watched:
    """One tensor under one scheme: the node that makes it, the sites and layers that read it so.

    Equal quantizers of one tensor are found once. Where the rule weighs errors by what readers make
    of them, linears count with their weights side by side, others each for itself.
    """

    source: Node
    scheme: Scheme
    sites: list[str] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)
    readers: list[Node] = field(default_factory=list)

    @property
    def weighs(self) -> bool:
        """Whether the rule weighs errors by what the readers make of them."""
        return self.scheme.rule in SAMPLED_RULES

    @property
    def partner(self) -> Node | None:
        """The other operand, where the reader is a matmul and the rule weighs by it."""
        if not self.weighs or self.layers[0].kind != "matmul":
            return None
        other = self.readers[0].args[1 if self.slot == "lhs" else 0]
        assert isinstance(other, Node)
        return other

    @property
    def slot(self) -> str:
        """``input``, ``lhs`` or ``rhs``: the same for all readers that count together."""
        return self.sites[0].rpartition(":")[2]

    def rows(self, x: Tensor) -> Tensor:
        """The tensor with the axis that a reader sums over last: patches of a convolution, columns
        of a right operand. The same elements in any order, where errors are not weighed."""
        if self.weighs and self.layers[0].kind == "conv":
            return _patches(self.readers[0], x, self.sites[0])
        return x.transpose(-1, -2) if self.weighs and self.slot == "rhs" else x

    def weight(self, graph_module: GraphModule) -> Tensor:
        """The readers' weights ``[O, C]``, one below the other."""
        weights = [constant_of(graph_module, reader.args[1]) for reader in self.readers]
        return torch.cat([w.detach().flatten(1) for w in weights if w is not None])


def watched_tensors(
    graph_module: GraphModule, sites: Mapping[str, tuple[Layer, Scheme]]
) -> list[Watched]:
    """The distinct tensors and schemes among activation sites, in graph order."""
    nodes = {node.name: node for node in graph_module.graph.nodes}
    found: dict[tuple[Any, ...], Watched] = {}
    for site, (layer, scheme) in sites.items():
        reader, slot = nodes[layer.node], site.rpartition(":")[2]
        source = reader.args[OPERAND[slot]]
        assert isinstance(source, Node)
        apart = scheme.rule in SAMPLED_RULES and layer.kind != "linear"
        key = (source, scheme, (reader, slot) if apart else None)
        one = found.setdefault(key, Watched(source, scheme))
        one.sites.append(site)
        one.layers.append(layer)
        one.readers.append(reader)
    return list(found.values())


def _patches(reader: Node, x: Tensor, site: str) -> Tensor:
    """What a convolution multiplies: ``[B, C, H, W] -> [B, patches, C kh kw]``."""
    if reader.target is not CONVOLUTION or Convolution.of(reader).groups != 1:
        raise CalibrationError(
            "errors are weighed at linears, matmuls and ungrouped 2-d convolutions only",
            where=site,
            fix="use the rule mse here",
        )
    return Convolution.of(reader).patches(x)
