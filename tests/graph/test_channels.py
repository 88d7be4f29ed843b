"""Channels followed through views, against values that really went through the model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxquant.graph.channels import PADDED, carries, channels, moved, numbered, route
from fxquant.graph.flow import consumers
from tests.graph.captured import graph_of

SIDE, DIM = 4, 8  # inputs are [batch, SIDE, SIDE, DIM]
aten = torch.ops.aten
Movement = Callable[[Tensor], Tensor]


class Between(nn.Module):
    """``relu``, what is tested, ``gelu``."""

    def __init__(self, movement: Movement) -> None:
        super().__init__()
        self.movement = movement

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.movement(F.relu(x)))


def ends(movement: Movement) -> tuple[GraphModule, Node, Node]:
    """The graph and the nodes before and after the movement."""
    graph = graph_of(Between(movement), SIDE, SIDE, DIM)
    source = next(n for n in graph.graph.nodes if n.target is aten.relu.default)
    gelu = next(n for n in graph.graph.nodes if n.target is aten.gelu.default)
    assert isinstance(gelu.args[0], Node)
    return graph, source, gelu.args[0]


def found(movement: Movement) -> tuple[int, ...] | None:
    _, source, target = ends(movement)
    return channels(source, target)


def by_value(movement: Movement) -> tuple[int, ...] | None:
    """The same from three images whose every value is its channel's number."""
    y = movement(torch.arange(float(DIM)).expand(3, SIDE, SIDE, DIM))
    rows = y.reshape(-1, y.shape[-1])
    if not bool((rows == rows[:1]).all()) or not bool((rows == rows.round()).all()):
        return None
    return tuple(int(c) for c in rows[0].tolist())


def windows(x: Tensor) -> Tensor:
    x = torch.roll(x, (-1, -1), (1, 2)).reshape(x.shape[0], 2, 2, 2, 2, DIM)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, DIM)


def neighbours(x: Tensor) -> Tensor:
    x = x.reshape(x.shape[0], 2, 2, 2, 2, DIM)
    return x.permute(0, 1, 3, 4, 2, 5).flatten(3)


MOVEMENTS: dict[str, Movement] = {
    "tokens flattened": lambda x: x.reshape(x.shape[0], SIDE * SIDE, DIM),
    "shifted windows": windows,
    "one token": lambda x: x.flatten(1, 2)[:, 0],
    "all but one token": lambda x: x.flatten(1, 2)[:, 1:],
    "mean over tokens": lambda x: x.mean((1, 2)),
    "mean over tokens kept": lambda x: x.mean(1, keepdim=True),
    "pooled, channels first": lambda x: F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), 1).flatten(1),
    "four neighbours side by side": neighbours,
    "second half": lambda x: x.chunk(2, dim=-1)[1],
    "every third": lambda x: x[..., ::3],
    "middle of three": lambda x: x.split((2, 4, 2), dim=-1)[1],
    "heads": lambda x: x.flatten(1, 2).unflatten(-1, (2, DIM // 2)).transpose(1, 2)[:, 1],
    "expanded": lambda x: x[:, :1].expand(-1, 3, -1, -1),
    "tokens last": lambda x: x.flatten(1, 2).transpose(1, 2),
    "there and back": lambda x: x.flatten(1, 2).transpose(1, 2).transpose(1, 2),
    "channels and tokens mixed": lambda x: x.reshape(x.shape[0], DIM, -1).transpose(1, 2),
    "rows of two tokens": lambda x: x.reshape(x.shape[0], -1, 2 * DIM),
    "heads last": lambda x: x.unflatten(-1, (2, DIM // 2)).transpose(-2, -1).flatten(3),
    "one channel dropped": lambda x: x[..., 1:],
}


@pytest.mark.parametrize("name", MOVEMENTS)
def test_channels_are_those_that_values_show(name: str) -> None:
    movement = MOVEMENTS[name]
    answer = found(movement)
    assert answer == by_value(movement)
    mixed = {"tokens last", "channels and tokens mixed"}
    assert (answer is None) == (name in mixed)


def test_a_channel_may_be_a_fraction_of_its_rows_only_if_all_agree() -> None:
    assert found(lambda x: x.mean(-1, keepdim=True)) is None
    assert found(lambda x: x.flatten(1).unflatten(1, (-1, 4))) is None


def test_channels_that_mix_with_the_batch_are_found_out() -> None:
    """For one image the two orders of axes cannot be told apart."""

    def movement(x: Tensor) -> Tensor:
        return x[:, 0, 0].t().reshape(-1, DIM)

    x = torch.arange(float(DIM)).expand(1, SIDE, SIDE, DIM)
    assert torch.equal(movement(x)[0], torch.arange(float(DIM)))
    assert found(movement) is None


def test_padded_zeros_belong_to_every_channel_but_make_none() -> None:
    def around(x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 1, 2, 0, 1))

    graph, source, target = ends(around)
    path = route(source, target)
    assert path is not None
    labels = moved(numbered(source), path)
    values = around(torch.arange(1.0, DIM + 1).expand(2, SIDE, SIDE, DIM))
    assert torch.equal(labels == PADDED, values == 0)
    assert channels(source, target) == tuple(range(DIM))
    assert found(lambda x: F.pad(x, (0, 2))) is None
    assert found(lambda x: F.pad(x, (0, 2))[..., :DIM]) == tuple(range(DIM))
    assert found(lambda x: F.pad(x, (0, 0, 1, 1)).mean((1, 2))) == tuple(range(DIM))
    assert [user.target for user, _ in consumers(source, carries)] == [aten.gelu.default]
    del graph


def test_what_computes_or_pads_with_ones_ends_the_route() -> None:
    for movement in (
        lambda x: F.pad(x, (0, 0, 1, 1), value=1.0),
        lambda x: F.pad(x, (0, 0, 1, 1), mode="replicate"),
        torch.neg,
        lambda x: torch.cat([x, x], 1),
        lambda x: x.mean(1, dtype=torch.float64).float(),
    ):
        _, source, target = ends(movement)
        assert route(source, target) is None
        assert channels(source, target) is None
        assert [user.target for user, _ in consumers(source, carries)] != [aten.gelu.default]


def test_a_node_is_its_own_channels_and_no_route_leads_back() -> None:
    _, source, target = ends(lambda x: x.flatten(1, 2))
    assert channels(source, source) == tuple(range(DIM))
    assert channels(target, source) is None
