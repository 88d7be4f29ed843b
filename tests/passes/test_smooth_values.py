"""A scale from attention's output into V: where it is legal, and that it changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.passes.running import Runner
from tests.passes.smoothing import (
    DIM,
    Attention,
    data,
    difference,
    randomized,
    smoothed,
    tensors_of,
    values,
)

ATTENTION = {True: "sdpa", False: "matmul@2"}


@pytest.mark.parametrize("fused", [True, False])
def test_v_and_proj_change_and_the_function_does_not(*, fused: bool) -> None:
    model, x = randomized(Attention(fused=fused)), data()
    (site,) = values(model).values()
    assert site.declined == ""
    assert site.layer == ATTENTION[fused]
    assert site.source is not None
    assert site.source.layer == "qkv"
    assert site.columns == (tuple(range(2 * DIM, 3 * DIM)),)
    state = smoothed(model, x, value="scale", alpha=0.5)
    assert difference(model, state, x) < 1e-5
    weight, bias = tensors_of(state.graph, "qkv")
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    old = parameters["qkv.weight"]
    assert torch.equal(weight[: 2 * DIM], old[: 2 * DIM])
    assert torch.equal(bias[: 2 * DIM], parameters["qkv.bias"][: 2 * DIM])
    scale = (weight[2 * DIM :] / old[2 * DIM :])[:, 0]
    assert float(scale.std()) > 0.05
    torch.testing.assert_close(weight[2 * DIM :], old[2 * DIM :] * scale[:, None])
    torch.testing.assert_close(
        tensors_of(state.graph, "proj")[0], parameters["proj.weight"] / scale
    )
    assert state.plan.choice("smooth", site.layer)["alpha"] == 0.5  # type: ignore[index]


def test_at_alpha_one_every_channel_before_proj_reaches_one() -> None:
    model, x = randomized(Attention()), data(16)
    state = smoothed(model, x, value="scale", alpha=1.0)
    proj = next(n for n in state.graph.graph.nodes if n.name == "linear_1")
    found: list[Tensor] = []
    Runner(state.graph, inputs={proj.name: found.append})((x,))
    reach = found[0].reshape(-1, DIM).abs().amax(0)
    torch.testing.assert_close(reach, torch.ones(DIM), rtol=1e-4, atol=1e-4)


class Separate(nn.Module):
    """V of its own linear; one head may serve two (``groups``), as in multi-query attention."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.groups = groups
        self.q, self.k = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.v, self.proj = nn.Linear(DIM, DIM // groups), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        q, k = (f(x).unflatten(-1, (2, -1)).transpose(1, 2) for f in (self.q, self.k))
        v = self.v(x).unflatten(-1, (2 // self.groups, -1)).transpose(1, 2).expand(-1, 2, -1, -1)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out: Tensor = self.proj(y)
        return out


def test_heads_that_share_v_share_its_scale() -> None:
    model, x = randomized(Separate(groups=2)), data()
    (site,) = values(model).values()
    assert site.columns == ((*range(DIM // 2), *range(DIM // 2)),)
    assert difference(model, smoothed(model, x, value="scale"), x) < 1e-5


class Twofold(Separate):
    """Two linears read the result, one of them a slice of the channels in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(DIM // 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (2, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return torch.cat([self.proj(y), self.other(y.chunk(2, -1)[1])], -1)


def test_readers_of_other_channel_orders_fold_each_in_its_own() -> None:
    model, x = randomized(Twofold()), data()
    (site,) = values(model).values()
    assert site.columns == (tuple(range(DIM)), tuple(range(DIM // 2, DIM)))
    assert difference(model, smoothed(model, x, value="scale"), x) < 1e-5


def test_talking_heads_mix_rows_of_scores_only() -> None:
    from tests.graph.models import DIM as SMALL
    from tests.graph.models import TOKENS, WrittenAttention

    model = randomized(WrittenAttention(talking=True))
    found = [site for site in values(model, TOKENS, SMALL).values() if not site.declined]
    assert [site.source.layer for site in found if site.source] == ["v"]


def test_off_leaves_v_alone() -> None:
    state = smoothed(randomized(Attention()), data())
    assert not state.plan.choices


DECLINED: dict[str, tuple[dict[str, Any], str]] = {
    "v is normed": ({"mix": lambda q, k, v: (q, k, F.normalize(v, dim=-1))}, "no linear makes V"),
    "v is its own key": ({"mix": lambda q, k, v: (q, v, v)}, "V has another reader"),
    "v is read again": ({"mix": lambda q, k, v: (q + v, k, v)}, "V has another reader"),
    "activation before proj": ({"tail": torch.tanh}, "aten.tanh.default"),
    "tokens and channels mixed": (
        {"tail": lambda y: y.transpose(1, 2).reshape(y.shape)},
        "are no channels of V",
    ),
    "residual before proj": ({"tail": lambda y: y + 1.0}, "aten.add.Tensor"),
    "attention over channels": (
        {"mix": lambda q, k, v: (q.transpose(2, 3), k.transpose(2, 3), v.transpose(2, 3)),
         "tail": None},
        "attention mixes V's channels",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DECLINED)
def test_other_uses_of_v_decline_with_the_reason(name: str) -> None:
    options, reason = DECLINED[name]
    if name == "attention over channels":
        model: nn.Module = OverChannels()
    else:
        model = Attention(**options)
    (site,) = values(model).values()
    assert reason in site.declined
    assert site.readers == ()
    state = smoothed(randomized(model), data(), value="scale")
    choice = state.plan.choice("smooth", site.layer)
    assert choice == {"declined": True, "reason": site.declined}
    assert difference(model, state, data()) == 0.0


class OverChannels(Attention):
    """XCiT's attention: channels attend to channels."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, -1)).permute(0, 2, 3, 1) for t in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v).permute(0, 3, 1, 2).flatten(2)
        out: Tensor = self.proj(y)
        return out
