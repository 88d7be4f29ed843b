"""Calibration data in every form it comes in, and every way it can be wrong."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fxquant.errors import CalibrationError
from fxquant.quant.calibration import BATCH, Calibration, first_batch

IMAGE = (3, 4)


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, *IMAGE, generator=torch.Generator().manual_seed(seed))


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(images(10))


ALL = images(10)
LABELS = torch.arange(10)
SOURCES: dict[str, Callable[[], Any]] = {
    "tensor": lambda: ALL,
    "list of tensors": lambda: list(ALL.split(4)),
    "tuple of tensors": lambda: ALL.split(4),
    "list of (x, y) tuples": lambda: list(zip(ALL.split(4), LABELS.split(4), strict=True)),
    "list of [x, y] lists": lambda: [
        list(p) for p in zip(ALL.split(4), LABELS.split(4), strict=True)
    ],
    "list of (x, text)": lambda: [(batch, "label") for batch in ALL.split(4)],
    "list of one-tuples": lambda: [(batch,) for batch in ALL.split(4)],
    "dicts by name": lambda: [{"y": 1, "x": batch} for batch in ALL.split(4)],
    "dicts of one tensor": lambda: [{"pixel_values": batch} for batch in ALL.split(4)],
    "generator": lambda: (batch for batch in ALL.split(4)),
    "DataLoader of x": lambda: DataLoader(ALL, batch_size=4),  # type: ignore[arg-type]
    "DataLoader of (x, y)": lambda: DataLoader(TensorDataset(ALL, LABELS), batch_size=4),
    "DataLoader of a stream": lambda: DataLoader(Stream(), batch_size=4),
}


def calibration(source: Any, **options: Any) -> Calibration:
    return Calibration(source, ("x",), (IMAGE,), **options)


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_every_usual_form_gives_the_same_samples(name: str) -> None:
    batches = list(calibration(SOURCES[name]()).batches())
    assert torch.equal(torch.cat([leaves[0] for leaves in batches]), ALL)
    assert all(len(leaves) == 1 for leaves in batches)


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_looking_at_the_first_batch_loses_nothing(name: str) -> None:
    _, source = first_batch(SOURCES[name]())
    made = calibration(source)
    head = made.sample(2)
    assert torch.equal(head[0], ALL[:2])
    assert torch.equal(torch.cat([leaves[0] for leaves in made.batches()]), ALL)
    assert torch.equal(made.sample(3)[0], ALL[:3])


@given(st.integers(1, 40), st.integers(1, 60))
def test_no_more_than_the_limit_is_read(count: int, limit: int) -> None:
    whole = images(count)
    for source in (whole, list(whole.split(7)), iter(whole.split(7))):
        made = calibration(source, limit=limit)
        assert torch.equal(torch.cat([leaves[0] for leaves in made.batches()]), whole[:limit])
        assert torch.equal(made.sample(3)[0], whole[: min(3, limit)])


def test_an_endless_source_stops_at_the_limit() -> None:
    made = calibration((images(4, seed) for seed in itertools.count()), limit=10)
    assert [leaves[0].shape[0] for leaves in made.batches()] == [4, 4, 2]


@given(st.integers(1, 100), st.integers(1, 100))
def test_the_length_is_the_number_of_batches(count: int, limit: int) -> None:
    made = calibration(images(count), limit=limit)
    assert len(made) == len(list(made.batches()))
    assert all(leaves[0].shape[0] <= BATCH for leaves in made.batches())


def test_the_length_is_zero_where_the_source_does_not_know() -> None:
    assert len(calibration(iter([ALL]))) == 0
    assert len(calibration(DataLoader(ALL, batch_size=4))) == 3  # type: ignore[arg-type]


def test_several_inputs_come_in_the_order_of_the_graph() -> None:
    mask = torch.rand(10, 2)
    for batch in (
        (ALL, mask),
        [ALL, mask, LABELS],
        {"mask": mask, "x": ALL},
        {"mask": mask, "label": LABELS, "x": ALL},
        {"image": {"x": ALL, "y": mask}},
    ):
        made = Calibration([batch], ("x", "mask"), (IMAGE, (2,)))
        ((x, m),) = list(made.batches())
        assert torch.equal(x, ALL)
        assert torch.equal(m, mask)


def with_bad(value: float) -> Tensor:
    bad = images(4)
    bad[2, 1, 1] = value
    return bad


@pytest.mark.parametrize(
    ("batch", "message", "place"),
    [
        (images(4).half(), "inputs must be float32, not torch.float16", "input x"),
        (images(4).double(), "inputs must be float32, not torch.float64", "input x"),
        (torch.zeros(4, *IMAGE, dtype=torch.uint8), "float32, not torch.uint8", "input x"),
        (torch.randn(4, 3, 5), r"shape \(4, 3, 5\) does not fit", "input x"),
        (torch.randn(3, 4), r"shape \(3, 4\) does not fit", "input x"),
        (torch.randn(4, 3, 4, 1), r"shape \(4, 3, 4, 1\) does not fit", "input x"),
        (torch.tensor(1.0), r"shape \(\) does not fit", "input x"),
        (torch.zeros(0, *IMAGE), "a batch is empty", "input x"),
        (with_bad(math.nan), "NaN or infinity", "input x"),
        (with_bad(math.inf), "NaN or infinity", "input x"),
        (np.zeros((4, 3, 4), dtype=np.float32), "ndarray is not a tensor", "input x"),
        ("picture", "str is not a tensor", "input x"),
        (5, "int is not a tensor", "input x"),
        ((), "does not fit the model's inputs", ""),
        ({}, "does not fit the model's inputs", ""),
        ({"a": images(4), "b": images(4)}, "does not fit the model's inputs", ""),
    ],
)
def test_a_bad_batch_is_named_with_its_input(batch: Any, message: str, place: str) -> None:
    made = calibration([images(4), images(4), batch])
    with pytest.raises(CalibrationError, match=message) as caught:
        list(made.batches())
    assert "calibration batch 2" in str(caught.value)
    assert place in caught.value.where


def test_a_bad_second_input_is_named() -> None:
    made = Calibration([(ALL, torch.rand(10, 3))], ("x", "mask"), (IMAGE, (2,)))
    with pytest.raises(CalibrationError, match="does not fit") as caught:
        list(made.batches())
    assert "calibration batch 0, input mask" in str(caught.value)


def test_inputs_that_disagree_on_the_batch_size_are_refused() -> None:
    made = Calibration([(images(4), torch.rand(3, 2))], ("x", "mask"), (IMAGE, (2,)))
    with pytest.raises(CalibrationError, match="batch size") as caught:
        list(made.batches())
    assert "calibration batch 0" in str(caught.value)


def test_one_tensor_for_two_inputs_is_refused() -> None:
    made = Calibration([ALL], ("x", "mask"), (IMAGE, (2,)))
    with pytest.raises(CalibrationError, match="1 tensors for 2 inputs"):
        list(made.batches())


@pytest.mark.parametrize("source", [[], iter(()), torch.zeros(0, *IMAGE)])
def test_no_data_is_refused(source: Any) -> None:
    with pytest.raises(CalibrationError, match="empty"):
        list(calibration(source).batches())
    with pytest.raises(CalibrationError, match="empty"):
        first_batch(source)


def test_a_generator_can_be_read_by_several_passes() -> None:
    made = calibration(batch for batch in ALL.split(4))
    first, again = list(made.batches()), list(made.batches())
    assert len(first) == len(again) == 3
    for (one,), (other,) in zip(first, again, strict=True):
        assert torch.equal(one, other)


def test_no_data_is_refused_when_only_a_sample_is_asked_for() -> None:
    with pytest.raises(CalibrationError, match="empty"):
        calibration([]).sample(2)


@pytest.mark.parametrize("source", [5, "folder", b"folder", {"x": ALL}, object(), ALL[0, 0, 0]])
def test_what_is_no_data_at_all_is_refused(source: Any) -> None:
    with pytest.raises(CalibrationError):
        first_batch(source)


def test_batches_carry_no_gradient() -> None:
    x = images(4).requires_grad_()
    ((leaf,),) = list(calibration([x]).batches())
    assert not leaf.requires_grad


def test_a_sample_gathers_single_images_once_the_data_was_read() -> None:
    data = Calibration(DataLoader(images(20), batch_size=1), ("x",), (IMAGE,))
    assert len(list(data.batches())) == 20
    (sample,) = data.sample(8)
    assert torch.equal(sample, images(20)[:8])
    assert data.sample(64)[0].shape[0] == BATCH
