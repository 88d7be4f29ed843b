"""Roles of MLPs, token mixing, gating, patches; of norms and activations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.graph.layers import find_layers
from tests.asset_models.gmlp import GMlp
from tests.asset_models.resmlp import ResMlp
from tests.graph.captured import graph_of, inner_roles, layers_of, roles_of
from tests.graph.models import (
    DIM,
    Affine,
    GatingUnit,
    Merging,
    MixerBlock,
    Mlp,
    ResMlpBlock,
    erf_written,
    quick_written,
    tanh_written,
)


def test_a_mixer_block() -> None:
    assert inner_roles(MixerBlock()) == {
        "norm1": "layer_norm",
        "mlp_tokens.fc1": "token_fc1",
        "mlp_tokens.act": "gelu",
        "mlp_tokens.fc2": "token_fc2",
        "add": "residual_add",
        "norm2": "layer_norm",
        "mlp_channels.fc1": "fc1",
        "mlp_channels.act": "gelu",
        "mlp_channels.fc2": "fc2",
        "add@2": "residual_add",
    }


@pytest.mark.parametrize("fused", [True, False])
def test_a_resmlp_block(*, fused: bool) -> None:
    assert inner_roles(ResMlpBlock(fused=fused)) == {
        "norm1": "affine",
        "linear_tokens": "token_mix",
        "add": "residual_add",
        "norm2": "affine",
        "mlp_channels.fc1": "fc1",
        "mlp_channels.act": "gelu",
        "mlp_channels.fc2": "fc2",
        "add@2": "residual_add",
    }


@pytest.mark.parametrize("fused", [True, False])
def test_affine_spellings(*, fused: bool) -> None:
    assert list(inner_roles(Affine(fused=fused)).values()) == ["affine"]


def test_an_addition_with_alpha_is_no_affine() -> None:
    class Scaled(Affine):
        def forward(self, x: Tensor) -> Tensor:
            return torch.add(self.alpha * x, self.beta, alpha=2)

    assert inner_roles(Scaled(fused=False)) == {}


@pytest.mark.parametrize("spelling", ["linear", "matmul", "einsum"])
def test_spatial_gating_in_every_spelling(spelling: str) -> None:
    assert inner_roles(GatingUnit(spelling)) == {  # type: ignore[arg-type]
        "fc1": "fc1",
        "act": "gelu",
        "norm": "layer_norm",
        "proj": "spatial_gate",
        "fc2": "fc2",
    }


@pytest.mark.parametrize("spatial", ["einsum", "matmul"])
def test_the_gmlp_of_the_real_weights(spatial: str) -> None:
    model = GMlp(depth=1, dim=8, hidden=16, spatial=spatial)  # type: ignore[arg-type]
    assert list(roles_of(model, 1, 28, 28).items()) == [
        ("to_patch_embed.1", "patch_embed"),
        ("layers.0.fn.norm", "layer_norm"),
        ("layers.0.fn.fn.proj_in.0", "fc1"),
        ("layers.0.fn.fn.proj_in.1", "relu"),
        ("layers.0.fn.fn.sgu.norm", "layer_norm"),
        ("layers.0.fn.fn.sgu", "spatial_gate"),
        ("layers.0.fn.fn.proj_out", "fc2"),
        ("layers.0.add", "residual_add"),
        ("to_logits.0", "layer_norm"),
        ("to_logits.2", "head"),
    ]


def test_the_resmlp_of_the_real_weights() -> None:
    roles = roles_of(ResMlp(depth=1, dim=8, hidden=16), 3, 32, 32)
    assert roles["embed_linear"] == "patch_embed"
    assert roles["blocks.0.token_mixer.linear"] == "token_mix"
    assert [roles[f"blocks.0.mlp.linear_{i}"] for i in (1, 2)] == ["fc1", "fc2"]
    assert roles["classifier_linear"] == "head"
    assert list(roles.values()).count("affine") == 4


@pytest.mark.parametrize("by_slices", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_patch_merging(*, by_slices: bool, norm_first: bool) -> None:
    roles = inner_roles(Merging(by_slices=by_slices, norm_first=norm_first), 4, 4, DIM)
    assert roles["reduction"] == "patch_merging"
    assert roles["fc"] == "fc1"


class Around(nn.Module):
    """An activation between two linears."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.activation = activation
        self.first, self.second = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.activation(self.first(x)))
        return out


ACTIVATIONS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "erf": ("gelu", F.gelu),
    "tanh": ("gelu_tanh", lambda x: F.gelu(x, approximate="tanh")),
    "erf written": ("gelu", erf_written),
    "erf written, half last": ("gelu", lambda x: x * (torch.erf(x * 0.5**0.5) + 1) * 0.5),
    "erf written, half gate": ("gelu", lambda x: x * (0.5 * (1 + torch.erf(x / 2**0.5)))),
    "tanh written": ("gelu_tanh", tanh_written),
    "quick": ("gelu_quick", quick_written),
    "quick, factor last": ("gelu_quick", lambda x: torch.sigmoid(x * 1.702) * x),
    "relu": ("relu", F.relu),
    "relu6": ("relu6", F.relu6),
    "silu": ("silu", F.silu),
    "hardswish": ("hardswish", F.hardswish),
}


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_in_every_spelling(name: str) -> None:
    role, function = ACTIVATIONS[name]
    assert sorted(inner_roles(Around(function)).values()) == sorted(["fc1", role, "fc2"])


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * torch.sigmoid(1.5 * x),
        lambda x: 0.5 * x * (1.0 + torch.erf(x / 1.5)),
        lambda x: 0.5 * x * (2.0 + torch.erf(x / 2**0.5)),
        lambda x: 0.5 * x * (1.0 + torch.tanh(0.8 * (x + 0.05 * x**3))),
    ],
)
def test_near_misses_of_gelu_are_not_called_gelu(function: Callable[[Tensor], Tensor]) -> None:
    assert not [role for role in inner_roles(Around(function)).values() if "gelu" in role]


def test_a_linear_before_fc1_is_not_fc1_itself() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.mlp = nn.Linear(DIM, DIM), Mlp()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.mlp(self.first(x))
            return out

    assert inner_roles(Twice()) == {
        "first": "linear",
        "mlp.fc1": "fc1",
        "mlp.act": "gelu",
        "mlp.fc2": "fc2",
    }


def test_channels_brought_last_after_a_convolution_are_no_tokens() -> None:
    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mlp = nn.Conv2d(3, DIM, 4, 4), Mlp()

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x).flatten(2).transpose(1, 2)
            out: Tensor = x + self.mlp(x)
            return out

    roles = roles_of(Stem(), 3, 8, 8)
    assert roles["embed"] == "patch_embed"
    assert (roles["mlp.fc1"], roles["mlp.fc2"]) == ("fc1", "fc2")


def test_additions_of_constants_and_of_other_shapes_are_no_residuals() -> None:
    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pos = nn.Parameter(torch.zeros(1, 6, DIM))

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.pos
            x = x + x.mean(1, keepdim=True)
            x = x + x.mean(0, keepdim=True)  # the same shape per image, not per batch
            x = x + 1.0
            return x + x.flip(1)

    assert list(roles_of(Sums()).values()) == ["residual_add"]


def test_every_layer_has_a_name_of_its_own() -> None:
    layers = layers_of(Around(tanh_written))
    assert all(layer.name for layer in layers)
    assert len({layer.name for layer in layers}) == len(layers)


def test_finding_layers_leaves_the_graph_as_it_was() -> None:
    graph_module = graph_of(MixerBlock())
    before = str(graph_module.graph)
    assert find_layers(graph_module) == find_layers(graph_module)
    assert str(graph_module.graph) == before
