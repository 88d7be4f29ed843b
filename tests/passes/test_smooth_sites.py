"""Where the fold is legal, and the reasons where it is not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.models import Merging, MixerBlock, ResMlpBlock
from tests.passes.smoothing import DIM, TOKENS, Normed, PostNorm, Through, sites


def linear() -> nn.Linear:
    return nn.Linear(DIM, 5)


def one(*readers: nn.Module, norm: nn.Module | None = None) -> nn.Module:
    return Normed(norm, **{f"reader{i}": reader for i, reader in enumerate(readers)})


def pooled(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x.unflatten(1, (2, 3)).permute(0, 3, 1, 2), 1).flatten(1)


LEGAL: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda x: x,
    "class token": lambda x: x[:, 0],
    "all but the class token": lambda x: x[:, 1:],
    "mean over tokens": lambda x: x.mean(1),
    "mean over some tokens": lambda x: x[:, 1:].mean(1, keepdim=True),
    "pooled as an image": pooled,
    "windows": lambda x: x.unflatten(1, (2, 3)).transpose(1, 2).reshape(-1, 2, DIM),
    "rolled": lambda x: torch.roll(x, 2, 1),
    "there and back": lambda x: x.transpose(1, 2).transpose(1, 2),
    "expanded": lambda x: x[:, :1].expand(-1, 4, -1),
}


@pytest.mark.parametrize("name", LEGAL)
def test_movement_and_averages_over_tokens_let_the_fold_pass(name: str) -> None:
    site = sites(one(Through(LEGAL[name])))["norm"]
    assert (site.declined, site.no_shift) == ("", "")
    assert [reader.layer for reader in site.readers] == ["reader0.fc"]


DECLINED: dict[str, tuple[Callable[[Tensor], Tensor], nn.Module | None, str]] = {
    "token mixing": (lambda x: x.transpose(1, 2), nn.Linear(TOKENS, 3), "mixes tokens"),
    "half of the channels": (lambda x: x.chunk(2, -1)[0], nn.Linear(DIM // 2, 3), "regrouped"),
    "heads swapped": (
        lambda x: x.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(2),
        None,
        "regrouped",
    ),
    "two tokens at once": (lambda x: x.reshape(-1, 3, 2 * DIM), nn.Linear(2 * DIM, 3), "regrouped"),
    "mean over channels": (
        lambda x: x.mean(-1, keepdim=True).expand(-1, -1, DIM),
        None,
        "regrouped",
    ),
    "activation": (torch.tanh, None, "aten.tanh.default at reader0 reads it"),
    "mask": (lambda x: x.masked_fill(x > 0, 0.0), None, "reads it"),
    "padding with ones": (
        lambda x: F.pad(x, (0, 0, 0, 2), value=1.0),
        None,
        "pads it with a constant",
    ),
    "gather of tokens with others": (
        lambda x: torch.cat([x, torch.zeros_like(x)], 1),
        None,
        "aten.cat.default at reader0 reads it",
    ),
    "convolution": (
        lambda x: x.transpose(1, 2),
        nn.Conv1d(DIM, 4, 1),
        "the convolution reader0.fc reads it",
    ),
    "softmax": (partial(torch.softmax, dim=-1), None, "aten.softmax.int"),
}


class Split(nn.Module):
    """A norm read by a linear as it lies and by something else."""

    def __init__(self, function: Callable[[Tensor], Tensor], last: nn.Module | None) -> None:
        super().__init__()
        self.norm, self.fine = nn.LayerNorm(DIM), linear()
        self.reader0 = Through(function, last)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.norm(x)
        return self.fine(y), self.reader0(y)


@pytest.mark.parametrize("name", DECLINED)
def test_other_readers_decline_with_the_reason(name: str) -> None:
    function, last, reason = DECLINED[name]
    declined = sites(Split(function, last))["norm"]
    assert reason in declined.declined
    assert declined.readers == ()


def test_padding_with_zeros_takes_a_scale_and_no_shift() -> None:
    for function in (
        lambda x: F.pad(x, (0, 0, 0, 2)),
        lambda x: F.pad(x.unflatten(1, (2, 3)), (0, 0, 0, 1, 0, 2)).mean((1, 2)),
    ):
        site = sites(one(Through(function), Through(lambda x: x[:, 0])))["norm"]
        assert site.declined == ""
        assert len(site.readers) == 2
        assert "zeros are padded in after the norm" in site.no_shift
        assert "center none" in site.no_shift


def test_an_output_of_the_model_stays_what_it_is() -> None:
    class Shown(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.fc = nn.LayerNorm(DIM), linear()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.norm(x)
            return self.fc(y), y[:, 0]

    assert sites(Shown())["norm"].declined == "it is an output of the model"


def test_post_norm_declines_where_the_residual_reads_and_folds_before_the_head() -> None:
    found = sites(PostNorm())
    for name in ("norm0", "norm1"):
        assert "the residual stream reads it" in found[name].declined
        assert "post-norm" in found[name].declined
    assert found["norm2"].declined == ""
    assert [reader.layer for reader in found["norm2"].readers] == ["head"]


def test_token_mixing_declines_and_channel_mixing_folds() -> None:
    for block in (MixerBlock(), ResMlpBlock(), ResMlpBlock(fused=False)):
        found = sites(block, 6, 8)
        assert "mixes tokens" in found["norm1"].declined
        assert found["norm2"].declined == ""
        assert len(found["norm2"].readers) == 1


def test_patch_merging_folds_through_its_own_norm() -> None:
    for by_slices in (True, False):
        found = sites(Merging(by_slices=by_slices), 4, 4, 8)
        assert [reader.layer for reader in found["norm"].readers] == ["reduction"]


def test_a_norm_over_several_axes_or_with_a_computed_weight_declines() -> None:
    assert (
        "more than the channels"
        in sites(one(linear(), norm=nn.LayerNorm((TOKENS, DIM))))["norm"].declined
    )

    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.fc = nn.Linear(DIM, DIM), linear()

        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight(x).mean((0, 1))
            out: Tensor = self.fc(F.layer_norm(x, (DIM,), weight))
            return out

    (found,) = sites(Computed()).values()
    assert found.declined == "its weight is computed while the model runs"


def test_a_linear_whose_weight_is_computed_or_is_the_norm_declines() -> None:
    class Odd(nn.Module):
        def __init__(self, *, role: str) -> None:
            super().__init__()
            self.norm, self.fc, self.role = nn.LayerNorm(DIM), linear(), role

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            if self.role == "weight":
                return F.linear(x, y[0])
            return F.linear(y, self.fc(x)[0].t() @ x[0])

    assert "for a weight" in sites(Odd(role="weight"))["norm"].declined
    assert "computed while the model runs" in sites(Odd(role="input"))["norm"].declined


def test_a_weight_that_another_layer_holds_declines_and_one_held_twice_here_folds() -> None:
    class Tied(nn.Module):
        def __init__(self, *, inside: bool) -> None:
            super().__init__()
            self.norm, self.inside = nn.LayerNorm(DIM), inside
            self.a, self.b = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            out: Tensor = self.a(y) * self.b(y if self.inside else torch.tanh(x))
            return out

    assert "read at" in sites(Tied(inside=False))["norm"].declined
    assert len(sites(Tied(inside=True))["norm"].readers) == 2


def test_a_module_that_runs_twice_declines() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.fc = nn.LayerNorm(DIM), nn.Linear(DIM, DIM)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(2):
                x = x + self.fc(self.norm(x))
            return x

    found = sites(Twice())
    assert len(found) == 2
    assert all("is read at" in site.declined for site in found.values())
