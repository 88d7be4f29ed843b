"""Settings of convolutions, against what the convolution itself computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fxquant.graph.convolution import CONVOLUTION, Convolution
from tests.graph.captured import graph_of, tensor


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"stride": 4},
        {"stride": (2, 1), "padding": (0, 2)},
        {"padding": 1, "dilation": (1, 2)},
    ],
)
def test_patches_times_the_weight_are_the_convolution(settings: dict[str, Any]) -> None:
    model, x = nn.Conv2d(3, 5, (4, 2), **settings), tensor(2, 3, 12, 9)
    graph = graph_of(model, 3, 12, 9)
    form = Convolution.of(next(n for n in graph.graph.nodes if n.target is CONVOLUTION))
    assert (form.kernel, form.groups) == ((4, 2), 1)
    assert form.padded == ("padding" in settings)
    assert form.dilated == ("dilation" in settings)
    made = form.patches(x) @ model.weight.flatten(1).t() + model.bias
    wanted = model(x).flatten(2).transpose(1, 2)
    torch.testing.assert_close(made, wanted)


def test_groups_are_told() -> None:
    graph = graph_of(nn.Conv2d(4, 8, 3, groups=2), 4, 6, 6)
    form = Convolution.of(next(n for n in graph.graph.nodes if n.target is CONVOLUTION))
    assert (form.groups, form.stride, form.padding, form.dilation) == (2, (1, 1), (0, 0), (1, 1))
