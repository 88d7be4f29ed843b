"""Layers as data: MACs, shapes, bytes; and the graph over them."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.graph.layer_graph import layer_graph, must_share_groups
from fxquant.graph.layers import Layer, find_layers
from tests.graph.captured import graph_of, layers_of
from tests.graph.models import (
    DIM,
    HEADS,
    TOKENS,
    Classifier,
    EncoderBlock,
    FusedAttention,
    MixerBlock,
    PreNormBlock,
    WrittenAttention,
)


def by_name(layers: tuple[Layer, ...]) -> dict[str, Layer]:
    return {layer.name: layer for layer in layers}


def test_macs_of_linears_are_tokens_times_inputs_times_outputs() -> None:
    layers = by_name(layers_of(PreNormBlock(FusedAttention())))
    assert layers["attn.qkv"].macs == TOKENS * DIM * 3 * DIM
    assert layers["mlp.fc1"].macs == TOKENS * DIM * 2 * DIM
    assert layers["attn.sdpa"].macs == 2 * TOKENS * TOKENS * DIM
    assert layers["norm1"].macs == layers["add"].macs == layers["mlp.act"].macs == 0


def test_macs_of_written_attention_equal_those_of_fused() -> None:
    layers = by_name(layers_of(PreNormBlock(WrittenAttention("mask", talking=True))))
    assert layers["attn.matmul"].macs == TOKENS * TOKENS * DIM
    assert layers["attn.matmul@2"].macs == TOKENS * TOKENS * DIM
    assert layers["attn.before"].macs == TOKENS * TOKENS * HEADS * HEADS


def test_macs_of_token_mixing_count_channels_as_rows() -> None:
    layers = by_name(layers_of(MixerBlock()))
    assert layers["mlp_tokens.fc1"].macs == DIM * TOKENS * 10
    assert layers["mlp_tokens.fc1"].input_shape == (1, DIM, TOKENS)
    assert layers["mlp_tokens.fc1"].output_shape == (1, DIM, 10)


@pytest.mark.parametrize(
    ("conv", "macs"),
    [
        (nn.Conv2d(3, 8, 4, 4), 8 * 2 * 2 * 3 * 4 * 4),
        (nn.Conv2d(3, 8, 3, padding=1), 8 * 8 * 8 * 3 * 3 * 3),
        (nn.Conv2d(3, 9, 3, padding=1, groups=3), 9 * 8 * 8 * 1 * 3 * 3),
    ],
)
def test_macs_of_convolutions_are_outputs_times_kernel(conv: nn.Module, macs: int) -> None:
    (layer,) = layers_of(conv, 3, 8, 8)
    assert layer.macs == macs
    assert layer.kind == "conv"
    assert layer.weight_elements == sum(p.numel() for n, p in conv.named_parameters() if "w" in n)


def test_macs_agree_with_torchs_flop_counter() -> None:
    model = Classifier().eval()
    layers = layers_of(model, 3, 8, 8)
    with (
        torch.utils.flop_counter.FlopCounterMode(display=False) as counter,
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        model(torch.zeros(1, 3, 8, 8))
    assert sum(layer.macs for layer in layers) * 2 == counter.get_total_flops()


def test_shapes_are_per_image_and_sources_are_lines() -> None:
    for layer in layers_of(PreNormBlock(FusedAttention())):
        assert layer.input_shape[0] == layer.output_shape[0] == 1
        file, _, line = layer.source.rpartition(":")
        assert file.endswith(".py")
        assert line.isdigit()


def test_weights_and_kinds() -> None:
    layers = by_name(layers_of(EncoderBlock()))
    assert layers["self_attention.in_proj"].weight == "self_attention.in_proj_weight"
    assert layers["self_attention.in_proj"].weight_elements == 3 * DIM * DIM
    assert layers["self_attention.sdpa"].kind == "attention"
    assert layers["self_attention.sdpa"].weight == ""
    assert layers["ln_1"].kind == "other"


class Tied(nn.Module):
    """``a`` and ``b`` hold one weight; ``a`` runs twice; ``q`` and ``k`` read one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.b.weight = self.a.weight
        self.q, self.k = nn.Linear(DIM, 4), nn.Linear(DIM, 4)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x * 2.0))
        x = F.relu(self.b(x))
        x = F.relu(self.a(x))
        pair = torch.cat([self.q(x), self.k(x.reshape(-1, TOKENS, DIM))], -1)
        out: Tensor = self.last(pair)
        return out


def test_tied_weights_and_readers_of_one_tensor_must_share() -> None:
    graph_module = graph_of(Tied())
    layers = find_layers(graph_module)
    groups = must_share_groups(graph_module, layers)
    tied = tuple(la.name for la in layers if la.weight_elements == DIM * DIM)
    assert groups == (tied, ("q", "k"), ("last",))
    assert len(tied) == 3
    assert sorted(name for group in groups for name in group) == sorted(
        layer.name for layer in layers if layer.kind == "linear"
    )


@pytest.mark.parametrize("moved", [False, True])
def test_q_k_and_v_of_one_tensor_must_share(*, moved: bool) -> None:
    class Moved(WrittenAttention):
        def forward(self, x: Tensor) -> Tensor:
            x = x * 2.0
            y = x.transpose(1, 2).transpose(1, 2).reshape(x.shape) if moved else x
            q, k, v = self.heads(self.q(x)), self.heads(self.k(y)), self.heads(self.v(y))
            out: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).flatten(2))
            return out

    class Narrow(Moved):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(TOKENS * DIM // HEADS, DIM)

    graph_module = graph_of(Narrow())
    groups = must_share_groups(graph_module, find_layers(graph_module))
    assert groups == (("q", "k", "v"), ("proj",))


def test_the_layer_graph_contracts_sharers_and_counts_their_weight_once() -> None:
    graph_module = graph_of(Tied())
    layers = find_layers(graph_module)
    graph = layer_graph(graph_module, layers)
    tied = graph.nodes[layers[0].name]
    assert len(tied["members"]) == 3
    assert tied["weight_bytes"] == DIM * DIM * 4
    assert tied["macs"] == 3 * TOKENS * DIM * DIM
    assert graph.nodes["last"]["activation_bytes"] == TOKENS * 8 * 4
    assert sum(data["macs"] for _, data in graph.nodes(data=True)) == sum(
        layer.macs for layer in layers
    )
    assert not any(graph.has_edge(node, node) for node in graph)


def test_the_layer_graph_of_a_block_is_its_data_flow() -> None:
    graph_module = graph_of(PreNormBlock(WrittenAttention("table")))
    graph = layer_graph(graph_module, find_layers(graph_module))
    assert graph.nodes["attn.q"]["members"] == ("attn.q", "attn.k", "attn.v")
    assert set(graph.successors("attn.q")) == {"attn.matmul", "attn.matmul@2"}
    assert set(graph.predecessors("add@2")) == {"add", "mlp.fc2"}
    assert graph.edges["mlp.fc1", "mlp.act"]["bytes"] == TOKENS * 2 * DIM * 4
    assert nx.is_directed_acyclic_graph(graph)
    assert nx.is_weakly_connected(graph)
    assert nx.dag_longest_path(graph)[-1] == "add@2"


def test_a_weight_computed_from_the_input_is_no_weight() -> None:
    class Dynamic(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x * 2.0, x.mean((0, 1))[None].expand(3, -1))

    (layer,) = layers_of(Dynamic())
    assert (layer.kind, layer.weight, layer.weight_elements) == ("linear", "", 0)
    assert layer.macs == TOKENS * DIM * 3
