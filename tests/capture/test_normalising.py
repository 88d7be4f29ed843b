"""What capture takes out of a graph, what it folds, how it names things."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.utils import parametrizations

from fxquant.capture import capture
from fxquant.capture.symbolic import trace
from fxquant.graph.layers import find_layers
from fxquant.graph.text import print_graph
from tests.capture.models import (
    MODELS,
    Caller,
    Encoder,
    Function,
    Nested,
    TwoInputs,
    batch_of,
    graph_of,
    in_place,
    tensor,
)

Spelling = Callable[[Any, Tensor], Any]


def targets(graph_module: GraphModule) -> list[str]:
    return [str(n.target) for n in graph_module.graph.nodes if n.op == "call_function"]


def linears(graph_module: GraphModule) -> list[str]:
    nodes = [n for n in graph_module.graph.nodes if n.target is torch.ops.aten.linear.default]
    return [str(n.meta["layer"]) for n in nodes]


def same_results(model: nn.Module, graph_module: GraphModule) -> None:
    for batch in (1, 3):
        x = batch_of(batch, seed=batch)
        expected, found = model(x.clone()), graph_module(x)
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_operations_in_place_become_functional() -> None:
    model = Function(in_place)
    graph_module = graph_of(model)
    assert not [t for t in targets(graph_module) if t.split(".")[1].endswith("_")]
    assert "aten.linear.default" in targets(graph_module)
    x = batch_of(2)
    before = x.clone()
    graph_module(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    "spelling",
    [
        lambda m, x: m.drop(m.linear(x)),
        lambda m, x: F.dropout(m.linear(x), 0.5, training=m.training),
        lambda m, x: F.dropout(m.linear(x), 0.0, training=True),
        lambda m, x: m.linear(x).contiguous().clone(),
        lambda m, x: m.linear(x.detach()),
        lambda m, x: m.linear(x)[:, :, :],
        lambda m, x: m.linear(x).to(torch.float32).float(),
        lambda m, x: m.linear(x).reshape(x.shape[0], 3, 4),
        lambda m, x: m.linear(x).expand(-1, 3, -1),
        lambda m, x: F.pad(m.linear(x), (0, 0, 0, 0)),
    ],
)
def test_what_changes_nothing_is_dropped(spelling: Spelling) -> None:
    model = Function(spelling)
    graph_module = graph_of(model)
    assert [t for t in targets(graph_module) if "sym_size" not in t] == ["aten.linear.default"]
    same_results(model, graph_module)


@pytest.mark.parametrize(
    "spelling",
    [
        lambda m, x: m.linear(x)[:, :2],
        lambda m, x: m.linear(x)[:, ::2],
        lambda m, x: F.pad(m.linear(x), (0, 1)),
        lambda m, x: m.linear(x).double(),
        lambda m, x: m.linear(x).reshape(-1, 4),
    ],
)
def test_what_changes_something_stays(spelling: Spelling) -> None:
    model = Function(spelling)
    graph_module = graph_of(model)
    assert len(targets(graph_module)) > 1
    same_results(model, graph_module)


@pytest.mark.parametrize(
    "spelling",
    [
        lambda m, x: x + (m.table @ m.table.t()).sum(0),
        lambda m, x: x + torch.arange(4).float().sin(),
        lambda m, x: x + torch.ones(4).cumsum(0) * m.matrix[0],
        lambda m, x: x + x.new_zeros(3, 4).add(2.0),
        lambda m, x: x + torch.linspace(0, 1, 4)[None],
    ],
)
def test_what_no_input_reaches_is_folded_into_one_tensor(spelling: Spelling) -> None:
    model = Function(spelling)
    graph_module = graph_of(model)
    assert targets(graph_module) == ["aten.add.Tensor"]
    assert len(graph_module.state_dict()) == 1
    same_results(model, graph_module)


@pytest.mark.parametrize(
    "spelling",
    [
        lambda m, x: x @ m.matrix,
        lambda m, x: m.square @ x,
        lambda m, x: torch.einsum("bnd,kd->bnk", x, m.matrix),
        lambda m, x: torch.einsum("mn,bnd->bmd", m.square, x),
        lambda m, x: torch.einsum("bnd,kd->kbn", x, m.matrix),
    ],
)
def test_products_with_a_parameter_become_linears_called_after_it(spelling: Spelling) -> None:
    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Function(spelling)
            self.block.square = nn.Parameter(torch.randn(3, 3))

        def forward(self, x: Tensor) -> Any:
            return self.block(x)

    model = Inside()
    for door in ("export", "traced"):
        graph_module = graph_of(model, door=door)
        assert linears(graph_module) in (["block.matrix"], ["block.square"])
        assert not {"aten.matmul.default", "aten.einsum.default"} & set(targets(graph_module))
        same_results(model, graph_module)


@pytest.mark.parametrize(
    "spelling",
    [
        lambda m, x: m.matrix[None, None, :3, :3] @ x,
        lambda m, x: m.matrix.reshape(1, 1, 4, 4) @ x.transpose(1, 2),
        lambda m, x: m.deep @ x.transpose(1, 2),
        lambda m, x: x @ m.matrix[0],
        lambda m, x: torch.einsum("bnd,nd->bnd", x, m.matrix[:3]),
        lambda m, x: torch.einsum("bnd,nkd->bnk", x, torch.stack([m.matrix] * 3)),
        lambda m, x: torch.einsum("bnd,dk", x, m.matrix),
    ],
)
def test_products_that_are_no_linear_still_compute_the_same(spelling: Spelling) -> None:
    model = Function(spelling)
    model.deep = nn.Parameter(torch.randn(1, 1, 4, 4))
    same_results(model, graph_of(model))


def test_a_module_called_twice_and_tied_weights_share_one_tensor() -> None:
    graph_module = graph_of(Caller())
    assert len(graph_module.state_dict()) == 3  # one weight, two biases
    layers = [layer for layer in find_layers(graph_module) if layer.kind == "linear"]
    assert len({layer.weight for layer in layers}) == 1
    name = layers[0].name
    assert [layer.name for layer in layers] == [name, f"{name}@2", f"{name}@3"]


def test_a_parametrized_weight_is_called_after_its_layer() -> None:
    model = nn.Sequential(nn.ReLU(), parametrizations.weight_norm(nn.Linear(4, 4))).eval()
    texts = [print_graph(capture(door, batch_of(2))) for door in (model, trace(model))]
    assert texts[0] == texts[1]
    assert linears(graph_of(model)) == ["1"]
    same_results(model, graph_of(model))


def test_inputs_come_as_tuple_or_dict_in_the_structure_of_the_example() -> None:
    model = TwoInputs().eval()
    image, mask = batch_of(2), batch_of(2, seed=1)
    texts = set()
    for example in ((image, mask), {"image": image, "mask": mask}):
        graph_module = capture(model, example)
        texts.add(print_graph(graph_module))
        for batch in (1, 2, 7):
            given = (batch_of(batch), batch_of(batch, seed=3))
            expected = model(*given)
            if isinstance(example, tuple):
                assert torch.equal(graph_module(*given), expected)
            else:
                found = graph_module(**dict(zip(("image", "mask"), given, strict=True)))
                assert torch.equal(found, expected)
    assert len(texts) == 1


def test_nested_structures_go_in_and_come_out() -> None:
    model = Nested().eval()
    for door in (model, trace(model)):
        sample = {"image": batch_of(1), "more": (tensor(1, 3, 2), batch_of(1))}
        graph_module = capture(door, (sample,))
        given = {"image": batch_of(5), "more": (tensor(5, 3, 2), batch_of(5))}
        expected, found = model(given), graph_module(given)
        assert found.keys() == expected.keys()
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_callers_model_is_left_as_it_was(name: str) -> None:
    model = MODELS[name]().eval()
    model.register_forward_hook(lambda module, args, result: result)
    for module in (model, trace(model)):
        state = copy.deepcopy(module.state_dict())
        hooks = list(module._forward_hooks)
        graph = str(module.graph) if isinstance(module, GraphModule) else ""
        x = batch_of(2)
        before, expected = x.clone(), module(x.clone())
        capture(module, x)
        assert torch.equal(x, before)
        assert list(module.state_dict()) == list(state)
        assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
        assert list(module._forward_hooks) == hooks
        assert not module.training
        assert torch.equal(module(x.clone()), expected)
        if isinstance(module, GraphModule):
            assert str(module.graph) == graph
            assert module.graph.owning_module is module


def test_hooks_of_the_model_are_part_of_the_graph() -> None:
    model = Encoder().eval()
    model.qkv.register_forward_hook(lambda module, args, result: result * 2.0)
    same_results(model, graph_of(model))


def test_the_graph_shares_the_parameters() -> None:
    model = Encoder().eval()
    graph_module = capture(model, batch_of(2))
    shared = dict(model.named_parameters())
    for name, parameter in graph_module.named_parameters():
        assert parameter is shared[name]
