"""Rules: applied where they fit, declined with a reason where they do not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxquant.graph.normal_form import verify
from fxquant.graph.pattern import Any_, Op, Pattern
from fxquant.graph.rule import Decline, Declined, Match, RuleSet
from fxquant.graph.tensors import call
from fxquant.graph.text import print_graph
from tests.graph.captured import graph_of, tensor
from tests.graph.models import DIM, TOKENS

aten = torch.ops.aten


@dataclass(frozen=True)
class DoubledNegation:
    """neg(neg(x)) -> x."""

    name: ClassVar[str] = "doubled-negation"
    pattern: ClassVar[Pattern] = Op(
        (aten.neg.default,), (Op((aten.neg.default,), (Any_("x"),), name="inner"),)
    )

    def check(self, graph_module: GraphModule, match: Match) -> Match | Decline:
        if len(match["inner"].users) > 1:
            return Decline("the inner value is read elsewhere")
        return match

    def rewrite(self, graph_module: GraphModule, match: Match) -> None:
        match.root.replace_all_uses_with(match["x"])


@dataclass(frozen=True)
class ReluToClamp:
    """relu(x) -> clamp(x, 0)."""

    name: ClassVar[str] = "relu-to-clamp"
    pattern: ClassVar[Pattern] = Op((aten.relu.default,), (Any_("x"),))

    def check(self, graph_module: GraphModule, match: Match) -> Match | Decline:
        return match

    def rewrite(self, graph_module: GraphModule, match: Match) -> None:
        with graph_module.graph.inserting_before(match.root):
            made = call(graph_module, aten.clamp.default, (match["x"], 0.0), like=match.root)
        match.root.replace_all_uses_with(made)


@dataclass(frozen=True)
class Never:
    """Declines everything."""

    name: ClassVar[str] = "never"
    pattern: ClassVar[Pattern] = Op((aten.relu.default,))

    def check(self, graph_module: GraphModule, match: Match) -> Match | Decline:
        return Decline("never")

    def rewrite(self, graph_module: GraphModule, match: Match) -> None:
        raise AssertionError("a declined rule must not rewrite")


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(DIM, DIM)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        shared = -self.linear(x)
        return self.act(x.neg().neg()) + self.act(-shared) + shared


def test_a_rule_set_rewrites_where_it_applies_and_says_where_not() -> None:
    graph_module = graph_of(Model())
    x = tensor(3, TOKENS, DIM, seed=1)
    before = graph_module(x)
    log = RuleSet((DoubledNegation(), ReluToClamp())).apply(graph_module)
    assert log.applied == {"doubled-negation": 1, "relu-to-clamp": 2}
    assert log.declined == [Declined("doubled-negation", "", "the inner value is read elsewhere")]
    assert torch.equal(graph_module(x), before)
    verify(graph_module, after="the rules")
    text = print_graph(graph_module)
    assert "relu" not in text
    assert text.count("aten.neg") == 2
    assert text.count("aten.clamp.default") == 2


def test_a_declined_rule_leaves_the_graph_as_it_was_and_the_next_one_is_tried() -> None:
    graph_module = graph_of(Model())
    before = print_graph(graph_module)
    log = RuleSet((Never(),)).apply(graph_module)
    assert print_graph(graph_module) == before
    assert [d.reason for d in log.declined] == ["never", "never"]
    assert [d.layer for d in log.declined] == ["act", "act"]
    assert log.applied == {}
    log = (RuleSet((Never(),)) + RuleSet((ReluToClamp(),))).apply(graph_module)
    assert log.applied == {"relu-to-clamp": 2}
    assert len(log.declined) == 2


def test_rule_sets_add_in_order() -> None:
    first, second = RuleSet((Never(),)), RuleSet((ReluToClamp(), DoubledNegation()))
    assert (first + second).rules == (*first.rules, *second.rules)
    assert RuleSet(()).apply(graph_of(Model())).applied == {}


def test_a_node_is_rewritten_by_one_rule_only() -> None:
    log = RuleSet((ReluToClamp(), ReluToClamp(), Never())).apply(graph_of(Model()))
    assert log.applied == {"relu-to-clamp": 2}
    assert log.declined == []


def test_an_optional_binding_that_is_missing_is_none() -> None:
    graph_module = graph_of(Model())
    node = next(n for n in graph_module.graph.nodes if n.op == "call_function")
    found = Match(node, {"x": 1})
    assert found["x"] == found.get("x") == 1
    assert found.get("bias") is None
