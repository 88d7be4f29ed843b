"""Hermite's identity for rounding, and what a split tensor is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxquant.quant.splitting import Split, range_of, widest

COPIES = st.lists(st.integers(1, 40), min_size=1, max_size=5)


def values(channels: int, seed: int, *, spread: float = 300.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(64, channels, generator=generator, dtype=torch.float64) - 0.5) * spread


@given(COPIES, st.integers(0, 99), st.sampled_from([0.25, 1.0, 3.0]))
def test_the_rounded_copies_of_a_channel_add_up_to_the_rounded_channel(
    copies: list[int], seed: int, step: float
) -> None:
    """sum_i round(x / (k s) + (2i - k + 1) / 2k) = round(x / s), but for ties."""
    split = Split(torch.tensor(copies), step)
    x = values(len(copies), seed)
    distance = (x / step - (x / step).floor() - 0.5).abs()  # from the nearest tie
    codes = torch.round(split.spread(x) / step)
    total = torch.zeros_like(x).index_add(1, split.index, codes)
    clear = distance > 1e-4  # float32 shares and offsets may decide a tie either way
    assert torch.equal(total[clear], torch.round(x / step)[clear])


@given(COPIES, st.integers(0, 99))
def test_without_offsets_the_copies_would_round_all_alike(copies: list[int], seed: int) -> None:
    """The offsets are what makes the sum fine: equal copies leave an error k times as large."""
    split = Split(torch.tensor(copies), 1.0)
    x = values(len(copies), seed)
    plain = torch.round(x / split.copies) * split.copies
    codes = torch.round(split.spread(x))
    total = torch.zeros_like(x).index_add(1, split.index, codes)
    assert (total - x).abs().max() <= 0.5 + 1e-4
    for channel, k in enumerate(copies):
        if k >= 8:
            assert (plain - x)[:, channel].abs().max() > 1.5


@given(COPIES, st.integers(0, 99), st.floats(0.01, 4.0))
def test_the_copies_add_up_to_the_channel_before_rounding(
    copies: list[int], seed: int, step: float
) -> None:
    split = Split(torch.tensor(copies), step)
    x = values(len(copies), seed)
    total = torch.zeros_like(x).index_add(1, split.index, split.spread(x))
    torch.testing.assert_close(total, x, rtol=1e-5, atol=1e-4)
    # Exactly zero: the offsets of a channel cancel in pairs.
    zero = torch.zeros(len(copies), dtype=torch.float64)
    assert torch.equal(zero.index_add(0, split.index, split.shift.to(torch.float64)), zero)


@given(COPIES, st.integers(0, 99), st.sampled_from([15, 127, 255]))
def test_the_range_holds_every_copy_and_no_more(copies: list[int], seed: int, levels: int) -> None:
    k, x = torch.tensor(copies), values(len(copies), seed)
    low, high = x.aminmax(dim=0)
    bottom, top = range_of(k, low, high, levels)
    spread = Split(k, (top - bottom) / levels).spread(x)
    assert float(spread.min()) >= bottom - 1e-4
    assert float(spread.max()) <= top + 1e-4
    assert bottom == pytest.approx(min(0.0, float(spread.min())), abs=1e-3)
    assert top == pytest.approx(max(0.0, float(spread.max())), abs=1e-3)


def test_the_widest_channel_is_the_one_whose_copies_reach_furthest() -> None:
    low, high = torch.tensor([-1.0, -9.0, 0.0]), torch.tensor([5.0, 0.0, 8.0])
    assert widest(torch.tensor([1, 1, 1]), low, high) == 1
    assert widest(torch.tensor([1, 2, 1]), low, high) == 2
    assert widest(torch.tensor([1, 2, 2]), low, high) == 0


def test_columns_are_all_channels_in_order_and_then_the_further_copies() -> None:
    split = Split(torch.tensor([1, 3, 2]), 2.0)
    assert split.index.tolist() == [0, 1, 2, 1, 1, 2]
    assert split.share.tolist() == pytest.approx([1, 1 / 3, 1 / 2, 1 / 3, 1 / 3, 1 / 2])
    offsets = (split.shift * split.share).tolist()
    assert offsets == pytest.approx([0, -2 / 3, -0.5, 0, 2 / 3, 0.5])
