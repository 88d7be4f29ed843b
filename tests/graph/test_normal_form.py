"""The verifier, and the helpers that build legal nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule, Node

from fxquant.errors import UnsupportedOpError, VerificationError
from fxquant.graph.flow import consumers, depends_on_input, moved_through, origin
from fxquant.graph.normal_form import require_supported, verify
from fxquant.graph.tensors import add_buffer, attribute_name, call, constant_of, copy_graph, prune
from fxquant.graph.text import print_graph
from tests.graph.captured import graph_of, tensor
from tests.graph.models import DIM, TOKENS, FusedAttention, Mlp, PreNormBlock

aten = torch.ops.aten


def find(graph_module: GraphModule, target: Any) -> Node:
    return next(n for n in graph_module.graph.nodes if n.target is target)


def insert(graph_module: GraphModule, op: str, target: Any) -> Node:
    """A node of any kind after the activation, without meta."""
    act = find(graph_module, aten.gelu.default)
    with graph_module.graph.inserting_after(act):
        return graph_module.graph.create_node(op, target, (act,) if op != "get_attr" else ())


def drop(key: str) -> Callable[[GraphModule], Any]:
    return lambda gm: find(gm, aten.gelu.default).meta.pop(key)


DAMAGE: dict[str, tuple[Callable[[GraphModule], Any], str]] = {
    "a call of a module": (
        lambda gm: (gm.add_module("m", nn.ReLU()), insert(gm, "call_module", "m")),
        "opcode call_module",
    ),
    "a call of a method": (lambda gm: insert(gm, "call_method", "relu"), "opcode call_method"),
    "a torch function": (
        lambda gm: insert(gm, "call_function", torch.relu),
        "not an ATen operator",
    ),
    "an operator in place": (
        lambda gm: insert(gm, "call_function", aten.relu_.default),
        "in place",
    ),
    "a foreign namespace": (
        lambda gm: insert(gm, "call_function", torch.ops.prims.sin.default),
        "namespace 'prims'",
    ),
    "a random operator": (
        lambda gm: insert(gm, "call_function", aten.rand_like.default),
        "draws random numbers",
    ),
    "no value": (drop("val"), "no 'val'"),
    "no layer": (drop("layer"), "no 'layer'"),
    "no source": (drop("source"), "no 'source'"),
    "no tensor": (lambda gm: delattr(gm.fc1, "weight"), "fc1.weight"),
}


@pytest.mark.parametrize("name", sorted(DAMAGE))
@pytest.mark.filterwarnings("ignore:Attempted to insert")
def test_the_verifier_names_what_is_wrong_and_the_pass(name: str) -> None:
    damage, message = DAMAGE[name]
    graph_module = graph_of(Mlp())
    damage(graph_module)
    with pytest.raises(VerificationError, match=message) as caught:
        verify(graph_module, after="my_pass")
    assert "after my_pass" in str(caught.value)


def test_the_verifier_finds_a_node_read_before_it_is_made() -> None:
    graph_module = graph_of(Mlp())
    act = find(graph_module, aten.gelu.default)
    act.append(act.all_input_nodes[0])
    with pytest.raises(VerificationError, match="malformed after my_pass"):
        verify(graph_module, after="my_pass")


def test_dropout_draws_numbers_only_while_training() -> None:
    for training, legal in ((False, True), (True, False)):
        graph_module = graph_of(Mlp())
        act = find(graph_module, aten.gelu.default)
        with graph_module.graph.inserting_after(act):
            call(graph_module, aten.dropout.default, (act, 0.5, training), like=act)
        if legal:
            verify(graph_module)
        else:
            with pytest.raises(VerificationError, match="draws random numbers"):
                verify(graph_module)


def test_attention_with_dropout_is_refused() -> None:
    graph_module = graph_of(FusedAttention())
    node = find(graph_module, aten.scaled_dot_product_attention.default)
    node.kwargs = {**node.kwargs, "dropout_p": 0.1}
    with pytest.raises(UnsupportedOpError, match="draws random numbers") as caught:
        require_supported(graph_module)
    assert "models.py:" in str(caught.value)


def test_a_call_takes_value_layer_and_source() -> None:
    graph_module = graph_of(Mlp())
    act = find(graph_module, aten.gelu.default)
    with graph_module.graph.inserting_after(act):
        made = call(graph_module, aten.sum.dim_IntList, (act, [-1]), like=act, dtype=torch.float64)
    assert made.meta["val"].dtype is torch.float64
    assert made.meta["val"].dim() == 2
    assert {k: made.meta[k] for k in ("layer", "source")} == {
        k: act.meta[k] for k in ("layer", "source")
    }
    verify(graph_module)


def test_buffers_of_one_name_are_numbered() -> None:
    graph_module = graph_of(Mlp())
    act = find(graph_module, aten.gelu.default)
    values = [torch.randn(3), torch.randn(4)]
    made = [
        add_buffer(graph_module, attribute_name("a.b", "scale"), v, like=act, before=act)
        for v in values
    ]
    assert [n.target for n in made] == ["a_b__scale", "a_b__scale_2"]
    for node, value in zip(made, values, strict=True):
        found = constant_of(graph_module, node)
        assert found is not None
        assert torch.equal(found, value)
        assert node.meta["val"].shape == value.shape
    assert constant_of(graph_module, act) is None
    assert constant_of(graph_module, 3) is None
    verify(graph_module)


def test_pruning_drops_dead_nodes_and_the_tensors_they_held() -> None:
    graph_module = graph_of(Mlp())
    act = find(graph_module, aten.gelu.default)
    output = next(n for n in graph_module.graph.nodes if n.op == "output")
    output.args = ((act,),)
    prune(graph_module)
    assert sorted(graph_module.state_dict()) == ["fc1.bias", "fc1.weight"]
    assert "fc2" not in print_graph(graph_module)
    assert not hasattr(graph_module, "fc2")


def test_a_copied_graph_is_apart_and_prints_equally() -> None:
    graph_module = graph_of(PreNormBlock(FusedAttention()))
    before = print_graph(graph_module)
    twin = GraphModule(graph_module, copy_graph(graph_module.graph))
    assert print_graph(twin) == before
    x = tensor(3, TOKENS, DIM)
    assert torch.equal(twin(x), graph_module(x))
    find(twin, aten.gelu.default).target = aten.relu.default
    assert print_graph(graph_module) == before


def test_walking_through_what_only_moves_data() -> None:
    graph_module = graph_of(FusedAttention())
    attention = find(graph_module, aten.scaled_dot_product_attention.default)
    key, value = attention.args[1:3]
    assert isinstance(key, Node)
    assert isinstance(value, Node)
    linear = origin(value)
    assert linear.target is aten.linear.default
    assert origin(key) is linear
    path = moved_through(value)
    assert path[0] is value
    assert path[-1].args[0] is linear
    assert {user.target for user, _ in consumers(linear)} == {
        aten.layer_norm.default,
        aten.scaled_dot_product_attention.default,
    }
    assert origin(linear) is linear
    assert moved_through(linear) == []
    constants = [n for n in graph_module.graph.nodes if n.op == "get_attr"]
    assert not depends_on_input(graph_module.graph) & set(constants)
    assert attention in depends_on_input(graph_module.graph)
