"""Mergeable observers: any partition of the data, merged in any order, gives the same bits."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxquant.quant.observers.histogram import HALF, HistogramObserver
from fxquant.quant.observers.minmax import MinMaxObserver
from fxquant.quant.observers.mse import MSEObserver
from fxquant.quant.scheme import Scheme

Mergeable = MinMaxObserver | HistogramObserver | MSEObserver
MAKERS: dict[str, Callable[[], Mergeable]] = {
    "minmax": MinMaxObserver,
    "minmax per channel": lambda: MinMaxObserver(per_channel=True),
    "histogram": HistogramObserver,
    "mse": MSEObserver,
}
NAMES = st.sampled_from(sorted(MAKERS))
AFFINE, SYMMETRIC = Scheme(), Scheme(bits=4, symmetric=True)
# Values of all sizes, repeated values and zeros: coarsening must place them all alike.
VALUES = st.one_of(
    st.floats(-4.0, 4.0, width=32),
    st.floats(-(2.0**100), 2.0**100, width=32),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-30, -1e-30, 3e-20, 2.0**-120, 1024.0, -2048.0]),
)
CHANNELS = 2
BATCHES = st.lists(
    st.lists(VALUES, min_size=CHANNELS, max_size=6 * CHANNELS).map(
        lambda v: torch.tensor(v[: len(v) // CHANNELS * CHANNELS]).reshape(-1, CHANNELS)
    ),
    min_size=1,
    max_size=6,
)


def seen(name: str, *batches: Tensor) -> Mergeable:
    observer = MAKERS[name]()
    for batch in batches:
        observer.update(batch)
    return observer


def bits_of(observer: Mergeable) -> list[Tensor]:
    """Everything that the observer could ever answer from."""
    if isinstance(observer, MinMaxObserver):
        return [observer.low, observer.high]
    histogram = observer.histogram if isinstance(observer, MSEObserver) else observer
    return [
        histogram.counts,
        torch.tensor([histogram.exponent]),
        torch.tensor([histogram.low, histogram.high]),
    ]


def same(one: Mergeable, other: Mergeable) -> None:
    for mine, theirs in zip(bits_of(one), bits_of(other), strict=True):
        assert torch.equal(mine, theirs)
    if isinstance(one, MSEObserver):
        return  # a search over the state that was just compared: slow, and a function of it
    for scheme in (AFFINE, SYMMETRIC):
        mine, theirs = one.qparams(scheme), other.qparams(scheme)
        assert torch.equal(mine.scale, theirs.scale)
        assert torch.equal(mine.zero_point, theirs.zero_point)


@settings(max_examples=60)
@given(NAMES, BATCHES, st.randoms(use_true_random=False))
def test_order_of_the_batches_does_not_matter(name: str, batches: list[Tensor], random) -> None:
    shuffled = list(batches)
    random.shuffle(shuffled)
    same(seen(name, *batches), seen(name, *shuffled))


@settings(max_examples=60)
@given(NAMES, BATCHES)
def test_how_the_data_is_cut_does_not_matter(name: str, batches: list[Tensor]) -> None:
    same(seen(name, *batches), seen(name, torch.cat(batches)))
    rows = [row[None] for batch in batches for row in batch]
    same(seen(name, *rows), seen(name, torch.cat(batches)))


@settings(max_examples=60)
@given(NAMES, BATCHES, st.data())
def test_merging_equals_seeing_both_streams(
    name: str, batches: list[Tensor], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(batches)))
    merged, other = seen(name, *batches[:cut]), seen(name, *batches[cut:])
    before = [b.clone() for b in bits_of(other)]
    merged.merge(other)
    same(merged, seen(name, *batches))
    assert all(torch.equal(a, b) for a, b in zip(before, bits_of(other), strict=True))


@settings(max_examples=60)
@given(NAMES, BATCHES, BATCHES)
def test_merging_commutes(name: str, ours: list[Tensor], theirs: list[Tensor]) -> None:
    one, other = seen(name, *ours), seen(name, *theirs)
    one.merge(seen(name, *theirs))
    other.merge(seen(name, *ours))
    same(one, other)


@settings(max_examples=60)
@given(NAMES, BATCHES, BATCHES, BATCHES)
def test_merging_is_associative(
    name: str, first: list[Tensor], second: list[Tensor], third: list[Tensor]
) -> None:
    left = seen(name, *first)
    left.merge(seen(name, *second))
    left.merge(seen(name, *third))
    tail = seen(name, *second)
    tail.merge(seen(name, *third))
    right = seen(name, *first)
    right.merge(tail)
    same(left, right)


@pytest.mark.parametrize("name", sorted(MAKERS))
@pytest.mark.parametrize("small", [1e-30, 2.0**-120, 7.3e-25])
def test_tiny_batches_land_beside_zero_in_every_order(name: str, small: float) -> None:
    batches = [
        torch.full((3, CHANNELS), small),
        torch.full((2, CHANNELS), -small),
        torch.tensor([[1.0, -3.0], [1000.0, 0.5]]),
        torch.tensor([[2.0, 1e20]]),
    ]
    reference = seen(name, *batches)
    for order in itertools.permutations(batches):
        same(seen(name, *order), reference)


def test_a_coarsened_histogram_equals_one_made_coarse() -> None:
    torch.manual_seed(0)
    x = torch.randn(5000) * torch.logspace(-20, 0, 5000)
    grown = HistogramObserver()
    for chunk in x.split(7):
        grown.update(chunk)
    assert float(grown.edges()[-1]) > float(x.max())
    # numpy-style reference: count each value into the final bins directly
    width = 2.0**grown.exponent
    expected = torch.bincount((x.double() / width).floor().long() + HALF, minlength=2 * HALF)
    assert torch.equal(grown.counts, expected)
    assert int(grown.counts.sum()) == x.numel()


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_merging_an_observer_that_saw_nothing_changes_nothing(name: str) -> None:
    x = torch.tensor([[1.0, 2.0], [-3.0, 4.0]])
    one = seen(name, x)
    one.merge(seen(name))
    same(one, seen(name, x))
    empty = seen(name)
    empty.merge(seen(name, x))
    same(empty, seen(name, x))
    assert seen(name).mergeable
