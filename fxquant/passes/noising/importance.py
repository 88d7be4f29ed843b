"""How much the loss hangs on each row of a layer's output."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxquant.passes.fisher import IMAGES, values_and_importance
from fxquant.passes.noising.sites import Reader
from fxquant.quant.calibration import Leaves


def row_importance(
    float_graph: GraphModule, leaves: Leaves, readers: Iterable[Reader]
) -> dict[str, Tensor]:
    """Squared gradient at a layer's output, averaged over channels: ``[rows]`` by node name.

    Rows are tokens, or patches of a convolution, of all images in order. Tokens that the model
    drops before its head count for nothing in the last block.
    """
    exact = {node.name: node for node in float_graph.graph.nodes}
    layers = {reader.node.name: reader.layer for reader in readers}
    sources = {name: exact[name].all_input_nodes[0].name for name in layers if name in exact}
    parts: dict[str, list[Tensor]] = defaultdict(list)
    for part in zip(*(leaf.split(IMAGES) for leaf in leaves), strict=True):
        for name, (_, squared) in values_and_importance(float_graph, part, sources).items():
            axis = 1 if layers[name].kind == "conv" else -1
            parts[name].append(squared.mean(axis).flatten())
    return {name: torch.cat(found) for name, found in parts.items()}
