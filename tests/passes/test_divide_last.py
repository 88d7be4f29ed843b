"""The division put behind the second product: the same function, roles that stay, known codes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

from fxquant import Pipeline, Scheme, State
from fxquant.graph.rule import RuleSet
from fxquant.graph.tensors import tensor_at
from fxquant.graph.text import print_graph
from fxquant.graph.weighted import row_exponentials, weighted_mean
from fxquant.passes import Annotate, Apply, Assign, Calibrate, OpenAttention
from fxquant.passes.open_attention import DivideLast
from fxquant.quant import ops
from tests.backends.tiny import Attention, Vit, images, made, tensor
from tests.graph.captured import graph_of
from tests.graph.models import DIM, TOKENS, Classifier, WrittenAttention
from tests.graph.test_golden import compare, rounded
from tests.passes.running import calls, start

EXPONENTIALS = OpenAttention(form="exponentials")


def divided(
    model: nn.Module, x: Tensor, *more: Any, step: Any = EXPONENTIALS, **facts: Any
) -> State:
    return Pipeline((Annotate(), step, *more)).run(start(model, x, **facts))


def targets(graph_module: Any) -> list[Any]:
    return [node.target for node in graph_module.graph.nodes]


KINDS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "fused": (lambda: Attention(16, 2), (5, 16)),
    "written out": (WrittenAttention, (TOKENS, DIM)),
    "written out, masked": (lambda: WrittenAttention("mask"), (TOKENS, DIM)),
    "written out, biased": (lambda: WrittenAttention("table"), (TOKENS, DIM)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_rewritten_attention_is_the_same_function(kind: str) -> None:
    build, shape = KINDS[kind]
    model, x = made(build), tensor(4, *shape)
    state = divided(model, x)
    found = targets(state.graph)
    assert (found.count(row_exponentials), found.count(weighted_mean)) == (1, 1)
    assert not calls(state.graph, "softmax")
    assert not calls(state.graph, "scaled_dot_product")
    assert state.graph is state.float_graph
    assert state.log == ()
    for batch in (1, 4):
        y = tensor(batch, *shape, seed=batch)
        with torch.no_grad():
            torch.testing.assert_close(state.graph(y), model(y), rtol=1e-5, atol=1e-6)


def test_the_rule_changes_nothing_but_the_last_bits_of_float64() -> None:
    graph = graph_of(WrittenAttention("mask")).to(torch.float64)
    x = tensor(3, TOKENS, DIM).double()
    with torch.no_grad():
        before = graph(x)
        log = RuleSet((DivideLast(),)).apply(graph)
        after = graph(x)
    assert log.declined == []
    assert targets(graph).count(weighted_mean) == 1
    assert float((after - before).abs().max()) <= 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_keep_their_roles(kind: str) -> None:
    build, shape = KINDS[kind]
    state = divided(made(build), tensor(4, *shape))
    roles = {layer.name: layer.role for layer in state.layers}
    wanted = {"attention_qk", "softmax", "attention_av", "proj"}
    assert sorted(role for role in roles.values() if role in wanted) == sorted(wanted)
    assert "qkv" in roles.values()
    node = {n.target: n for n in state.graph.graph.nodes}
    assert roles[node[weighted_mean].meta["layer"]] == "attention_av"
    assert roles[node[row_exponentials].meta["layer"]] == "softmax"


class OverQueries(nn.Module):
    """A softmax over the queries: a weighted mean of keys it is not."""

    def __init__(self, axis: int, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.axis, self.dtype, self.q = axis, dtype, nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.q(x) @ x.transpose(1, 2)
        return scores.softmax(self.axis, dtype=self.dtype).to(x.dtype) @ x


@pytest.mark.parametrize(("axis", "declines"), [(1, True), (-2, True), (2, False), (-1, False)])
def test_a_softmax_over_another_axis_stays(axis: int, declines: bool) -> None:  # noqa: FBT001
    graph, x = graph_of(OverQueries(axis)), tensor(3, TOKENS, DIM)
    before = graph(x)
    text = print_graph(graph)
    log = RuleSet((DivideLast(),)).apply(graph)
    assert [d.reason for d in log.declined] == (
        ["its softmax is over another axis than the keys, or casts"] if declines else []
    )
    assert (print_graph(graph) == text) is declines
    torch.testing.assert_close(graph(x), before, rtol=1e-5, atol=1e-5)


def test_shares_that_something_else_reads_stay() -> None:
    class Read(WrittenAttention):
        def forward(self, x: Tensor) -> Any:
            shares = (self.q(x) @ self.k(x).transpose(1, 2)).softmax(-1)
            return shares @ self.v(x), shares

    graph = graph_of(Read())
    text = print_graph(graph)
    assert RuleSet((DivideLast(),)).apply(graph).declined == []
    assert print_graph(graph) == text


def test_only_the_layers_asked_for_are_divided_last() -> None:
    model, x = made(lambda: Vit(32, 2)), images(2)
    state = divided(model, x, step=OpenAttention(only="blocks.1.*", form="exponentials"))
    found = [node for node in state.graph.graph.nodes if node.target is weighted_mean]
    assert [node.meta["layer"] for node in found] == ["blocks.1.attn.av"]
    assert len(calls(state.graph, "scaled_dot_product")) == 1
    assert state.log == ()
    with torch.no_grad():
        torch.testing.assert_close(state.graph(x), model(x), rtol=1e-4, atol=1e-5)


def test_one_fused_layer_may_be_named_in_full() -> None:
    step = OpenAttention(only="blocks.1.attn.sdpa", form="exponentials")
    state = divided(made(lambda: Vit(32, 2)), images(2), step=step)
    assert targets(state.graph).count(weighted_mean) == 1


def test_a_target_without_products_keeps_the_softmax() -> None:
    state = divided(made(WrittenAttention), tensor(4, TOKENS, DIM), matmul=False)
    assert weighted_mean not in targets(state.graph)
    asked = OpenAttention(form="exponentials", simulate="ask")
    state = divided(made(WrittenAttention), tensor(4, TOKENS, DIM), step=asked, matmul=False)
    assert weighted_mean in targets(state.graph)


def _value(graph_module: Any, given: Any) -> Any:
    return tensor_at(graph_module, str(given.target)) if isinstance(given, Node) else given


@pytest.mark.parametrize("scheme", ["a8/head/minmax", "a8/tensor/minmax"])
@pytest.mark.parametrize("kind", KINDS)
def test_exponentials_have_codes_of_steps_of_one_255th(kind: str, scheme: str) -> None:
    build, shape = KINDS[kind]
    model, x = made(build), tensor(8, *shape)
    assign = Assign(matmul=Scheme.parse(scheme))
    state = divided(model, x, assign, Calibrate(rows=32), Apply())
    (product,) = (n for n in state.graph.graph.nodes if n.target is weighted_mean)
    quantize = product.args[0].args[0]
    values = [_value(state.graph, given) for given in quantize.args[1:]]
    scale, zero_point = (torch.as_tensor(value).double() for value in values[:2])
    per_head = quantize.target is ops.quantize_per_channel
    assert per_head == (scheme == "a8/head/minmax")
    assert scale.numel() == (2 if per_head else 1)
    torch.testing.assert_close(scale, torch.full_like(scale, 1 / 255), rtol=1e-6, atol=0.0)
    assert (zero_point == 0).all()
    assert values[-3:] == [0, 255, torch.uint8]
    with torch.no_grad():
        torch.testing.assert_close(state.graph(x), model(x), rtol=0.0, atol=0.05)


def test_the_graph_prints_as_stored(*, update_golden: bool) -> None:
    torch.manual_seed(0)
    state = divided(Classifier().eval(), tensor(2, 3, 8, 8))
    compare("vit-divide-last", rounded(print_graph(state.graph)), update=update_golden)
