"""A range per head: each head's own observer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxquant.errors import CalibrationError, SchemeError
from fxquant.quant.observers import make_observer
from fxquant.quant.scheme import Scheme

TEXTS = [
    "a8/head/minmax",
    "s6/head/minmax",
    "a4/head/mse",
    "a8/head/histogram",
    "a8/head/moving_average",
    "a8/head/percentile@99",
]


def batches(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(2, 3, 4, 5, generator=generator) * torch.tensor([1.0, 10.0, 0.1])[:, None, None]
        for _ in range(3)
    ]


@given(st.sampled_from(TEXTS), st.integers(0, 2**32 - 1))
def test_each_head_is_calibrated_by_itself(text: str, seed: int) -> None:
    scheme = Scheme.parse(text)
    observer = make_observer(scheme)
    for x in batches(seed):
        observer.update(x)
    made = observer.qparams(scheme)
    assert made.scheme == scheme
    for head in range(3):
        single = replace(scheme, granularity="tensor")
        alone = make_observer(single)
        for x in batches(seed):
            alone.update(x[:, head])
        expected = alone.qparams(single)
        assert torch.equal(made.scale[head], expected.scale)
        assert torch.equal(made.zero_point[head], expected.zero_point)


@pytest.mark.parametrize("text", TEXTS[:4])
def test_heads_merge_as_their_observers_do(text: str) -> None:
    scheme = Scheme.parse(text)
    whole, first, second = (make_observer(scheme) for _ in range(3))
    assert whole.mergeable
    for index, x in enumerate(batches(7)):
        whole.update(x)
        (first, second)[index % 2].update(x)
    empty = make_observer(scheme)
    for other in (second, empty):
        first.merge(other)
    empty.merge(first)
    for one in (first, empty):
        assert torch.equal(one.qparams(scheme).scale, whole.qparams(scheme).scale)


def test_what_has_no_heads_is_refused() -> None:
    scheme = Scheme.parse("a8/head/minmax")
    observer = make_observer(scheme)
    with pytest.raises(CalibrationError, match="no calibration data"):
        observer.qparams(scheme)
    with pytest.raises(CalibrationError, match="per head needs"):
        observer.update(torch.ones(2, 3, 4))
    observer.update(torch.ones(1, 2, 3, 4))
    with pytest.raises(CalibrationError, match="3 heads after 2"):
        observer.update(torch.ones(1, 3, 3, 4))


@pytest.mark.parametrize("text", ["region_6/tensor/mse", "a8/tensor/output", "log2_4/head/minmax"])
def test_searched_schemes_have_no_observer(text: str) -> None:
    with pytest.raises(SchemeError, match="no observer") as caught:
        make_observer(Scheme.parse(text))
    assert "fxquant.quant.search" in str(caught.value)
