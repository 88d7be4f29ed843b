"""Printed graphs and their differences."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from fxquant.capture import capture
from fxquant.graph.tensors import call
from fxquant.graph.text import diff_graphs, print_graph
from tests.graph.captured import graph_of, tensor
from tests.graph.models import DIM, Mlp, PreNormBlock, WrittenAttention


def test_one_line_per_node_with_number_call_type_and_layer() -> None:
    assert print_graph(graph_of(Mlp())).splitlines() == [
        "%0 = input x : f32[B, 6, 8]  # -",
        "%1 = tensor fc1.weight : f32[16, 8]  # fc1",
        "%2 = tensor fc1.bias : f32[16]  # fc1",
        "%3 = aten.linear.default(%0, %1, %2) : f32[B, 6, 16]  # fc1",
        "%4 = aten.gelu.default(%3) : f32[B, 6, 16]  # act",
        "%5 = tensor fc2.weight : f32[8, 16]  # fc2",
        "%6 = tensor fc2.bias : f32[8]  # fc2",
        "%7 = aten.linear.default(%4, %5, %6) : f32[B, 6, 8]  # fc2",
        "return [%7]",
    ]


class Kinds(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        parts = x.chunk(2, dim=-1)
        size = x.shape[0] * 2
        y = parts[0].reshape(size, -1).to(torch.int8)
        return y, {"more": torch.where(x > 0.1, x, -0.30000001192092896)}


def test_keywords_tuples_sizes_and_types_print() -> None:
    text = print_graph(graph_of(Kinds()))
    assert ": (f32[B, 6, 4], f32[B, 6, 4])" in text
    assert "getitem(%1, 0)" in text
    assert "operator.mul(%3, 2) : size" in text
    assert ": s8[2*B, 12]" in text
    assert ": b1[B, 6, 8]" in text
    assert "0.3" in text
    assert re.search(r"return \[%\d+, %\d+\]", text)


def test_the_print_does_not_depend_on_what_was_exported_before() -> None:
    model = PreNormBlock(WrittenAttention("mask"))
    texts = [print_graph(graph_of(model))]
    for batch in (1, 3, 7):
        graph_of(Mlp())
        texts.append(print_graph(capture(model, tensor(batch, 6, DIM))))
    assert len(set(texts)) == 1
    assert ": f32[B, 6, 8]" in texts[0]


def test_the_print_does_not_depend_on_node_names() -> None:
    graph_module = graph_of(Mlp())
    before = print_graph(graph_module)
    for node in graph_module.graph.nodes:
        if node.op == "call_function":
            node.name = f"renamed_{node.name}"
    assert print_graph(graph_module) == before


def changes(before: str, after: str) -> list[str]:
    lines = diff_graphs(before, after, name="step").splitlines()
    return [line for line in lines if line[0] in "+-" and line[:3] not in {"---", "+++"}]


def test_equal_graphs_have_no_difference() -> None:
    text = print_graph(graph_of(Mlp()))
    assert diff_graphs(text, text, name="step") == ""


def test_an_inserted_node_shows_and_renumbering_does_not() -> None:
    graph_module = graph_of(Mlp())
    before = print_graph(graph_module)
    act = next(n for n in graph_module.graph.nodes if n.target is torch.ops.aten.gelu.default)
    with graph_module.graph.inserting_after(act):
        made = call(graph_module, torch.ops.aten.neg.default, (act,), like=act)
    act.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)
    after = print_graph(graph_module)
    assert changes(before, after) == [
        "+%5 = aten.neg.default(%4) : f32[B, 6, 16]  # act",
        "-%7 = aten.linear.default(%4, %5, %6) : f32[B, 6, 8]  # fc2",
        "+%8 = aten.linear.default(%5, %6, %7) : f32[B, 6, 8]  # fc2",
    ]
    assert diff_graphs(before, after, name="step").startswith("--- before step\n+++ after step\n@@")
    assert [line[1:] for line in changes(after, before)[:1]] == [changes(before, after)[0][1:]]


def test_a_change_of_wiring_alone_shows() -> None:
    graph_module = graph_of(Mlp())
    before = print_graph(graph_module)
    nodes = {str(n.target): n for n in graph_module.graph.nodes}
    act, linear = nodes["aten.gelu.default"], nodes["aten.linear.default"]
    linear.replace_input_with(act, act.all_input_nodes[0])
    assert changes(before, print_graph(graph_module)) == [
        "-%7 = aten.linear.default(%4, %5, %6) : f32[B, 6, 8]  # fc2",
        "+%7 = aten.linear.default(%3, %5, %6) : f32[B, 6, 8]  # fc2",
    ]


def test_a_removed_node_shows_with_its_readers() -> None:
    graph_module = graph_of(Mlp())
    before = print_graph(graph_module)
    act = next(n for n in graph_module.graph.nodes if n.target is torch.ops.aten.gelu.default)
    act.replace_all_uses_with(act.all_input_nodes[0])
    graph_module.graph.erase_node(act)
    assert changes(before, print_graph(graph_module)) == [
        "-%4 = aten.gelu.default(%3) : f32[B, 6, 16]  # act",
        "-%7 = aten.linear.default(%4, %5, %6) : f32[B, 6, 8]  # fc2",
        "+%6 = aten.linear.default(%3, %4, %5) : f32[B, 6, 8]  # fc2",
    ]
