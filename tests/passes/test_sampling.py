"""Samples of rows: the same whatever the batches, spread over everything, of constant size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxquant.errors import CalibrationError
from fxquant.passes.gram import Gram
from fxquant.passes.sampling import RowSample
from tests.backends.tiny import tensor

CUTS = st.lists(st.integers(0, 40), max_size=5).map(sorted)


def sampled(parts: tuple[Tensor, ...], count: int, *, heads: bool = False) -> RowSample:
    sample = RowSample(count, heads=heads)
    for part in parts:
        sample.update(part)
    return sample


@given(cuts=CUTS, count=st.integers(1, 300), heads=st.booleans())
def test_the_sample_does_not_depend_on_the_batches(
    cuts: list[int], count: int, *, heads: bool
) -> None:
    x = tensor(40, 3, 7, 5)
    whole = sampled((x,), count, heads=heads)
    parts = sampled(x.tensor_split(cuts), count, heads=heads)
    assert torch.equal(parts.rows(), whole.rows())
    assert torch.equal(parts.low, whole.low)
    assert torch.equal(parts.high, whole.high)
    total = 40 * 7 if heads else 40 * 3 * 7
    assert parts.seen == total
    assert whole.rows().shape == ((3,) if heads else ()) + (min(count, total), 5)


@given(count=st.integers(1, 50))
def test_rows_are_rows_of_the_tensor_in_order_and_the_same_for_every_head(count: int) -> None:
    number = torch.arange(6 * 5).reshape(6, 1, 5, 1).expand(6, 3, 5, 2)
    head = torch.arange(3).reshape(1, 3, 1, 1) * 1000
    rows = sampled(((number + head).float(),), count, heads=True).rows()
    assert (rows[0, :, 0].diff() > 0).all()
    for one in range(3):
        assert torch.equal(rows[one], rows[0] + 1000 * one)
    flat = sampled((number[:, 0].float(),), count).rows()
    assert torch.equal(flat, rows[0])  # samples of as many rows hold the same ones


def test_few_rows_are_all_kept() -> None:
    x = tensor(3, 4, 5)
    assert torch.equal(sampled((x,), 12).rows(), x.reshape(12, 5))
    assert torch.equal(sampled((x,), 1000).rows(), x.reshape(12, 5))


@pytest.mark.parametrize("tokens", [16, 49, 64, 128, 196, 197, 256])
@pytest.mark.parametrize("images", [16, 128])
def test_every_image_and_every_token_position_gets_its_share(tokens: int, images: int) -> None:
    number = torch.arange(images * tokens, dtype=torch.float32).unsqueeze(1)
    rows = sampled(number.split(16 * tokens), 1024).rows().flatten().long()
    share = rows.numel() / images
    per_image = torch.bincount(rows // tokens, minlength=images)
    assert (per_image - share).abs().max() <= 3
    quarters = torch.bincount(rows % tokens * 4 // tokens, minlength=4) / rows.numel()
    assert (quarters - 0.25).abs().max() < 0.03


def test_the_range_is_that_of_all_rows() -> None:
    x = tensor(6, 2, 9, 4)
    flat, heads = sampled(x.split(1), 3), sampled(x.split(1), 3, heads=True)
    assert (flat.low, flat.high) == (x.min(), x.max())
    assert torch.equal(heads.low, x.amin((0, 2, 3)))
    assert torch.equal(heads.high, x.amax((0, 2, 3)))


def test_what_is_not_finite_or_empty_is_refused() -> None:
    with pytest.raises(CalibrationError, match="NaN or infinity"):
        sampled((torch.tensor([[1.0, float("nan")]]),), 3)
    with pytest.raises(CalibrationError, match="per head needs"):
        sampled((tensor(3, 4, 5),), 3, heads=True)
    empty = sampled((torch.empty(0, 4),), 3)
    with pytest.raises(CalibrationError, match="no calibration data"):
        empty.rows(where="fc1:input")


def test_memory_does_not_grow_with_the_data() -> None:
    few, many = (sampled(tensor(n, 50, 8).split(4), 64).rows().numel() for n in (8, 200))
    assert few == many == 64 * 8


@given(seed=st.integers(0, 99), heads=st.booleans(), transposed=st.booleans())
def test_a_gram_matrix_measures_what_products_make_of_errors(
    seed: int, *, heads: bool, transposed: bool
) -> None:
    """``|e W^T|^2`` is the squared error of all products of ``e`` with what was seen."""
    y = tensor(6, 3, 4, 5, seed=seed)
    gram = Gram(heads=heads, transposed=transposed)
    for part in y.split(2):
        gram.update(part)
    other = y.transpose(-1, -2) if transposed else y
    errors = tensor(7, other.shape[2], seed=seed + 1)
    weight = gram.weight()
    for head in range(3):
        of_head = other[:, head] if heads else other.flatten(0, 1)
        expected = (errors @ of_head).square().sum()
        found = (errors @ (weight[head] if heads else weight).t()).square().sum()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
