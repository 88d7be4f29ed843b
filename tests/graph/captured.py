"""From a tiny model to its graph, its layers and their roles."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxquant.capture import capture
from fxquant.graph.layers import Layer, find_layers
from tests.graph.models import DIM, TOKENS


def tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def graph_of(model: nn.Module, *shape: int) -> GraphModule:
    torch.manual_seed(0)
    return capture(model.eval(), tensor(2, *(shape or (TOKENS, DIM))))


def layers_of(model: nn.Module, *shape: int) -> tuple[Layer, ...]:
    return find_layers(graph_of(model, *shape))


def roles_of(model: nn.Module, *shape: int) -> dict[str, str]:
    return {layer.name: layer.role for layer in layers_of(model, *shape)}


class After(nn.Module):
    """A model behind one more operation, so that nothing in it reads the input itself."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x * 2.0) * 0.5
        return out


def inner_roles(model: nn.Module, *shape: int) -> dict[str, str]:
    """Roles of a part of a model, under the names that the part gives."""
    return {k.removeprefix("model."): v for k, v in roles_of(After(model), *shape).items()}
