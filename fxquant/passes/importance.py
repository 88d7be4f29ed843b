"""How much the model's result hangs on each token of a layer's output."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxquant.graph.layers import Layer
from fxquant.passes.fisher import IMAGES, Kept, Loss, own_entropy
from fxquant.quant.calibration import Leaves, parts_of
from fxquant.quant.memory import return_free_memory

Importance = Literal["even", "energy", "gradient"]
SEED = 0


def by_energy(y: Tensor) -> Tensor:
    """``1 / (|y_t|^2 + median)``, mean 1, for output rows ``[n, O]``: float32 ``[n]``.

    A few tokens of a ViT carry nearly all the energy of its residual stream, and the next norm
    divides it out again; unweighted least squares would serve these tokens alone [I].
    """
    energy = y.square().sum(1)
    weights = 1.0 / (energy + energy.median()).clamp(min=torch.finfo(torch.float32).tiny)
    return weights / weights.mean()


def by_gradient(
    graph_module: GraphModule, leaves: Leaves, layers: Collection[Layer]
) -> dict[str, Tensor]:
    """``|J_t^T v|^2`` of each token t, mean 1, by layer node: float32 ``[n]``, image by image.

    J is the Jacobian of the logits by the layer's output and v a standard normal vector, so the
    expectation is the squared Frobenius norm of J_t: how far an error at the token moves the
    logits. One draw per image, from a fixed seed. The papers weigh by squared gradients of the
    loss (section 2a); which loss, and to sum over channels, is [I]: logits need no labels, and do
    not fade on images that the model is sure of.
    """
    generator = torch.Generator().manual_seed(SEED)

    def projected(logits: Tensor) -> Tensor:
        return (logits * torch.randn(logits.shape, generator=generator)).sum()

    found = _by_row(graph_module, leaves, layers, projected, torch.sum)
    return {name: _mean_one(weights) for name, weights in found.items()}


def by_loss(
    graph_module: GraphModule, leaves: Leaves, layers: Collection[Layer]
) -> dict[str, Tensor]:
    """Squared gradient of the loss at each row of a layer's output, averaged over channels, by
    layer node: float32 ``[n]``, image by image.

    Tokens that the model drops before its head count for nothing in the last block. Layers that are
    not in the graph are left out.
    """
    there = {node.name for node in graph_module.graph.nodes}
    found = [layer for layer in layers if layer.node in there]
    return _by_row(graph_module, leaves, found, own_entropy, torch.mean)


def _by_row(
    graph_module: GraphModule,
    leaves: Leaves,
    layers: Collection[Layer],
    loss: Loss,
    over_channels: Callable[[Tensor, int], Tensor],
) -> dict[str, Tensor]:
    """Squared gradients at outputs of layers, a number for each row: token, or patch."""
    found: dict[str, list[Tensor]] = {layer.node: [] for layer in layers}
    for part in parts_of(leaves, IMAGES):
        squared = Kept(graph_module, found).squared_gradients(part, found, loss)
        for layer in layers:
            axis = -1 if layer.kind == "linear" else 1
            found[layer.node].append(over_channels(squared[layer.node], axis).reshape(-1))
        return_free_memory()
    return {name: torch.cat(parts) for name, parts in found.items()}


def _mean_one(weights: Tensor) -> Tensor:
    """Even weights where no token matters at all."""
    mean = weights.mean()
    return weights / mean if float(mean) > 0.0 else torch.ones_like(weights)
