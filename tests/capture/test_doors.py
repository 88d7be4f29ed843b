"""Every door gives the same graph, and the graph gives what the model gave."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from fxquant.capture import capture
from fxquant.capture.symbolic import trace
from fxquant.graph.layers import find_layers
from fxquant.graph.normal_form import verify
from fxquant.graph.text import print_graph
from tests.capture.models import (
    DOORS,
    MODELS,
    Encoder,
    Function,
    batch_of,
    graph_of,
    tensor,
    written_into,
)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_door_prints_the_same_graph(name: str) -> None:
    texts = {door: print_graph(graph_of(MODELS[name](), door=door)) for door in DOORS}
    assert texts["traced"] == texts["export"]
    assert texts["symbolic_trace"] == texts["export"]


@pytest.mark.parametrize("door", sorted(DOORS))
@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_graph_computes_what_the_model_computes(name: str, door: str) -> None:
    model = MODELS[name]().eval()
    graph_module = graph_of(model, door=door)
    for batch in (1, 2, 7):
        x = batch_of(batch, seed=batch)
        torch.testing.assert_close(graph_module(x), model(x.clone()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_example_may_have_any_batch_size(batch: int) -> None:
    model = MODELS["encoder"]().eval()
    assert print_graph(graph_of(model, batch_of(batch))) == print_graph(graph_of(model))


def check_provenance(graph_module: GraphModule) -> None:
    """Names that are unique, and a line of a file for every node."""
    names = [layer.name for layer in find_layers(graph_module)]
    assert len(set(names)) == len(names)
    assert all(names)
    for node in graph_module.graph.nodes:
        if node.op == "output":
            continue
        file, _, line = node.meta["source"].rpartition(":")
        assert Path(file).is_file(), f"{node.name}: {node.meta['source']}"
        assert 0 < int(line) <= len(Path(file).read_text(encoding="utf-8").splitlines())
        assert "/torch/" not in file


@pytest.mark.parametrize("door", ["export", "traced"])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_node_has_a_line_and_every_layer_a_name(name: str, door: str) -> None:
    check_provenance(graph_of(MODELS[name](), door=door))


def small_vit() -> nn.Module:
    import timm

    return timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32, num_classes=5)  # type: ignore[no-any-return]


def small_swin() -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(
        img_size=32,
        patch_size=2,
        embed_dim=16,
        depths=(2, 1),
        num_heads=(2, 4),
        window_size=4,
        num_classes=5,
    )


def small_mixer(kind: str) -> nn.Module:
    from timm.layers import GatedMlp
    from timm.models import mlp_mixer

    options = {
        "mixer": {},
        "resmlp": {
            "mlp_ratio": 4,
            "block_layer": mlp_mixer.ResBlock,
            "norm_layer": mlp_mixer.Affine,
        },
        "gmlp": {
            "mlp_ratio": 6,
            "block_layer": mlp_mixer.SpatialGatingBlock,
            "mlp_layer": GatedMlp,
        },
    }
    return mlp_mixer.MlpMixer(
        img_size=32, patch_size=8, num_blocks=2, embed_dim=16, num_classes=5, **options[kind]
    )


TIMM: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "vit": (
        small_vit,
        {"qkv": 2, "proj": 2, "attention": 2, "fc1": 2, "fc2": 2, "patch_embed": 1, "head": 1},
    ),
    "swin": (
        small_swin,
        {"qkv": 3, "proj": 3, "fc1": 3, "fc2": 3, "patch_merging": 1, "patch_embed": 1, "head": 1},
    ),
    "mixer": (
        lambda: small_mixer("mixer"),
        {"token_fc1": 2, "token_fc2": 2, "fc1": 2, "fc2": 2, "patch_embed": 1, "head": 1},
    ),
    "resmlp": (
        lambda: small_mixer("resmlp"),
        {"token_mix": 2, "affine": 5, "fc1": 2, "fc2": 2, "patch_embed": 1, "head": 1},
    ),
    "gmlp": (
        lambda: small_mixer("gmlp"),
        {"spatial_gate": 2, "fc1": 2, "fc2": 2, "patch_embed": 1, "head": 1},
    ),
}


@pytest.mark.parametrize("name", sorted(TIMM))
def test_timm_models_come_through_both_doors(name: str) -> None:
    torch.manual_seed(0)
    maker, expected = TIMM[name]
    model = maker().eval()
    graphs = [capture(door, tensor(2, 3, 32, 32)) for door in (model, trace(model))]
    assert print_graph(graphs[0]) == print_graph(graphs[1])
    for graph_module in graphs:
        verify(graph_module)
        check_provenance(graph_module)
    for batch in (1, 3):
        x = tensor(batch, 3, 32, 32, seed=batch)
        with torch.no_grad():
            torch.testing.assert_close(graphs[0](x), model(x), rtol=1e-4, atol=1e-4)
    roles = [layer.role for layer in find_layers(graphs[0])]
    assert {role: roles.count(role) for role in expected} == expected
    assert "linear" not in roles


def test_what_symbolic_trace_cannot_write_torch_export_can() -> None:
    model = Function(written_into).eval()
    graph_module = graph_of(model)
    x = batch_of(3)
    torch.testing.assert_close(graph_module(x), model(x))
    assert "aten.select_scatter.default" in print_graph(graph_module)


def test_a_captured_graph_can_be_captured_again() -> None:
    first = capture(Encoder().eval(), batch_of(2))
    assert not any(module.training for module in first.modules())
    assert print_graph(capture(first, batch_of(2))) == print_graph(first)
