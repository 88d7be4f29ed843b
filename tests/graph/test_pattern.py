"""Pattern combinators on graphs built node by node."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.fx import Graph, Node

from fxquant.graph.pattern import Any_, Either, Op, inner, match, op

aten = torch.ops.aten
ADD, MUL, RELU, NEG = aten.add.Tensor, aten.mul.Tensor, aten.relu.default, aten.neg.default


class Built:
    """``relu(a) + a * 2``, and the same sum once more."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.a, self.b = self.graph.placeholder("a"), self.graph.placeholder("b")
        self.relu = self.call(RELU, self.a)
        self.product = self.call(MUL, self.a, 2.0)
        self.total = self.call(ADD, self.relu, self.product)
        self.twice = self.call(ADD, self.total, self.total)
        self.graph.output(self.twice)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        return self.graph.call_function(target, args, kwargs)


@pytest.fixture
def built() -> Built:
    return Built()


def test_a_wildcard_binds_what_it_matches(built: Built) -> None:
    assert match(Any_("x"), built.a) == {"x": built.a}
    assert match(Any_("x"), 3) == {"x": 3}
    assert match(Any_(), built.a) == {}


def test_a_wildcard_may_refuse(built: Built) -> None:
    placeholder = Any_("x", when=lambda v: isinstance(v, Node) and v.op == "placeholder")
    assert match(placeholder, built.a) == {"x": built.a}
    assert match(placeholder, built.relu) is None


def test_a_call_matches_by_target_and_leading_arguments(built: Built) -> None:
    assert match(Op((RELU,)), built.relu) == {}
    assert match(Op((RELU, NEG)), built.relu) == {}
    assert match(Op((NEG,)), built.relu) is None
    assert match(Op((RELU,)), built.a) is None
    assert match(Op((RELU,)), 3) is None
    assert match(Op((ADD,), (Any_("l"),)), built.total) == {"l": built.relu}
    assert match(Op((RELU,), (Any_(), Any_())), built.relu) is None


def test_nested_calls_bind_at_every_depth(built: Built) -> None:
    pattern = Op(
        (ADD,), (Op((RELU,), (Any_("x"),), name="r"), Op((MUL,), (Any_("x"), 2.0))), name="sum"
    )
    assert match(pattern, built.total) == {"sum": built.total, "r": built.relu, "x": built.a}


def test_one_name_means_one_value(built: Built) -> None:
    same = Op((ADD,), (Any_("x"), Any_("x")))
    assert match(same, built.twice) == {"x": built.total}
    assert match(same, built.total) is None


def test_only_a_commutative_call_matches_in_either_order(built: Built) -> None:
    swapped = (Op((MUL,), name="m"), Op((RELU,), name="r"))
    assert match(Op((ADD,), swapped), built.total) is None
    assert match(Op((ADD,), swapped, commutative=True), built.total) == {
        "m": built.product,
        "r": built.relu,
    }


def test_a_failed_order_leaves_no_bindings_behind(built: Built) -> None:
    pattern = Op((ADD,), (Any_("x"), Op((RELU,), name="r")), commutative=True)
    assert match(pattern, built.total) == {"x": built.product, "r": built.relu}


def test_the_first_alternative_that_matches_wins(built: Built) -> None:
    either = Either((Op((NEG,), name="n"), Op((RELU,), name="r"), Any_("rest")))
    assert match(either, built.relu) == {"r": built.relu}
    assert match(either, built.a) == {"rest": built.a}
    assert match(Either(()), built.a) is None


def test_an_inner_call_must_have_one_reader(built: Built) -> None:
    assert match(Op((ADD,), (inner(RELU), Any_())), built.total) == {}
    built.call(NEG, built.relu)
    assert match(Op((ADD,), (inner(RELU), Any_())), built.total) is None
    assert match(Op((ADD,), (op(RELU), Any_())), built.total) == {}


def test_a_value_read_twice_by_one_node_has_one_reader(built: Built) -> None:
    assert match(Op((ADD,), (inner(ADD), Any_())), built.twice) == {}


def test_a_value_that_nothing_reads_is_not_inner(built: Built) -> None:
    assert match(inner(NEG), built.call(NEG, built.a)) is None


@pytest.mark.parametrize(
    ("literal", "value", "matches"),
    [
        (2.0, 2.0, True),
        (2.0, 2, True),
        (1.702, 1.70201, True),
        (1.702, 1.71, False),
        (0.0, 1e-5, True),
        (0.0, 1e-3, False),
        (1e6, 1e6 + 50, True),
        (2, 2, True),
        (2, 3, False),
        ("tanh", "tanh", True),
        ("tanh", "none", False),
        (2.0, "2.0", False),
        (2.0, None, False),
        (None, None, True),
        (torch.float32, torch.float32, True),
        (torch.float32, torch.bfloat16, False),
        ([1, 2], [1, 2], True),
    ],
)
def test_literals_match_by_equality_and_floats_closely(
    *, literal: Any, value: Any, matches: bool
) -> None:
    assert (match(literal, value) is not None) == matches


def test_arguments_beyond_the_pattern_are_not_looked_at(built: Built) -> None:
    node = built.call(aten.softmax.int, built.a, -1, None)
    assert match(Op((aten.softmax.int,), (Any_("x"),)), node) == {"x": built.a}
    assert match(Op((aten.softmax.int,), (Any_("x"), -1)), node) == {"x": built.a}
    assert match(Op((aten.softmax.int,), (Any_("x"), 1)), node) is None
