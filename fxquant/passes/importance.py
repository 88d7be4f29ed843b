"""How much the model's result hangs on each token of a layer's output."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxquant.graph.layers import Layer
from fxquant.passes.fisher import IMAGES, Kept, logits_of
from fxquant.passes.running import return_free_memory
from fxquant.quant.calibration import Leaves

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
    kinds = {layer.node: layer.kind for layer in layers}
    found: dict[str, list[Tensor]] = {name: [] for name in kinds}
    generator = torch.Generator().manual_seed(SEED)
    for part in zip(*(leaf.split(IMAGES) for leaf in leaves), strict=True):
        runner = Kept(graph_module, kinds)
        with torch.enable_grad():
            inputs = [leaf.detach().clone().requires_grad_() for leaf in part]
            logits = logits_of(runner.run(*inputs, enable_io_processing=False))
            direction = torch.randn(logits.shape, generator=generator)
            outputs = [runner.kept[name] for name in kinds]
            gradients = torch.autograd.grad((logits * direction).sum(), outputs, allow_unused=True)
        for (name, kind), output, gradient in zip(kinds.items(), outputs, gradients, strict=True):
            axis = -1 if kind == "linear" else 1
            squared = torch.zeros_like(output) if gradient is None else gradient.square()
            found[name].append(squared.sum(axis).detach().reshape(-1))
        return_free_memory()
    return {name: _mean_one(torch.cat(parts)) for name, parts in found.items()}


def _mean_one(weights: Tensor) -> Tensor:
    """Even weights where no token matters at all."""
    mean = weights.mean()
    return weights / mean if float(mean) > 0.0 else torch.ones_like(weights)
