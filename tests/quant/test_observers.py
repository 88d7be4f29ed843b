"""Observers against numpy, against hand-written loops and against torch's own observers."""

from __future__ import annotations

import math
import pickle
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxquant.errors import CalibrationError, SchemeError
from fxquant.quant.observers import Observer, make_observer
from fxquant.quant.observers.histogram import HistogramObserver
from fxquant.quant.observers.minmax import MinMaxObserver
from fxquant.quant.observers.moving_average import MovingAverageObserver
from fxquant.quant.observers.mse import MSEObserver
from fxquant.quant.observers.percentile import PercentileObserver
from fxquant.quant.qparams import qparams_from_range
from fxquant.quant.scheme import Scheme
from fxquant.quant.uniform import fake_quantize

A8 = Scheme()
MAKERS: dict[str, Callable[[], Observer]] = {
    "minmax": MinMaxObserver,
    "minmax per channel": lambda: MinMaxObserver(per_channel=True),
    "moving average": MovingAverageObserver,
    "moving average per channel": lambda: MovingAverageObserver(per_channel=True),
    "percentile": lambda: PercentileObserver(percentile=99.0),
    "percentile per channel": lambda: PercentileObserver(percentile=99.0, per_channel=True),
    "histogram": HistogramObserver,
    "mse": MSEObserver,
}
SEEDS = st.integers(0, 2**32 - 1)


def data(seed: int, batches: int = 3, channels: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shift = torch.randn(channels, generator=generator)
    return [
        torch.randn(2, 5 + i, channels, generator=generator) * (1 + i) + shift
        for i in range(batches)
    ]


def equal_to_range(observer: Observer, scheme: Scheme, low: object, high: object) -> None:
    ends = (torch.as_tensor(np.float32(end)) for end in (low, high))
    expected, found = qparams_from_range(scheme, *ends), observer.qparams(scheme)
    assert torch.allclose(found.scale, expected.scale, rtol=1e-6)
    assert torch.equal(found.zero_point, expected.zero_point)


@given(SEEDS)
def test_minmax_is_numpys_min_and_max(seed: int) -> None:
    batches = data(seed)
    whole, channels = MinMaxObserver(), MinMaxObserver(per_channel=True)
    for batch in batches:
        whole.update(batch)
        channels.update(batch)
    rows = np.concatenate([b.numpy().reshape(-1, 4) for b in batches])
    equal_to_range(whole, A8, rows.min(), rows.max())
    equal_to_range(channels, Scheme(granularity="channel"), rows.min(0), rows.max(0))


@given(seed=SEEDS, momentum=st.sampled_from([0.0, 0.5, 0.9, 0.99]), per_channel=st.booleans())
def test_moving_average_is_the_hand_written_loop(
    *, seed: int, momentum: float, per_channel: bool
) -> None:
    observer = MovingAverageObserver(momentum=momentum, per_channel=per_channel)
    low = high = None
    for batch in data(seed, batches=6):
        observer.update(batch)
        rows = batch.double().numpy().reshape(-1, 4) if per_channel else batch.double().numpy()
        axis = 0 if per_channel else None
        first, last = rows.min(axis), rows.max(axis)
        low = first if low is None else momentum * low + (1 - momentum) * first
        high = last if high is None else momentum * high + (1 - momentum) * last
    np.testing.assert_allclose(observer.low.numpy(), low, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(observer.high.numpy(), high, rtol=1e-5, atol=1e-6)


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=60), st.floats(50.01, 100.0))
def test_percentile_is_the_kth_value_of_a_partition(values: list[float], percent: float) -> None:
    observer = PercentileObserver(percentile=percent)
    observer.update(torch.tensor(values))
    length = len(values)
    rank = min(max(round(length * percent / 100), length // 2 + 1), length)
    array = np.array(values, dtype=np.float32)
    high = np.partition(array, rank - 1)[rank - 1]
    low = np.partition(array, length - rank)[length - rank]
    assert low <= high
    equal_to_range(observer, A8, low, high)


@given(seed=SEEDS, per_channel=st.booleans())
def test_percentile_averages_the_batches_exponentially(*, seed: int, per_channel: bool) -> None:
    observer = PercentileObserver(percentile=80.0, momentum=0.75, per_channel=per_channel)
    low = high = None
    for batch in data(seed, batches=5):
        observer.update(batch)
        rows = batch.numpy().reshape(-1, 4) if per_channel else batch.numpy().reshape(-1, 1)
        rank = round(rows.shape[0] * 0.8)
        ordered = np.sort(rows, axis=0).astype(np.float64)
        first, last = ordered[rows.shape[0] - rank], ordered[rank - 1]
        low = first if low is None else 0.75 * low + 0.25 * first
        high = last if high is None else 0.75 * high + 0.25 * last
    assert low is not None
    assert high is not None
    scheme = Scheme(granularity="channel") if per_channel else A8
    equal_to_range(observer, scheme, *((low, high) if per_channel else (low[0], high[0])))


@given(SEEDS, st.floats(0.9, 1.0))
def test_histogram_cuts_no_more_than_it_may(seed: int, coverage: float) -> None:
    observer = HistogramObserver(coverage=coverage)
    batches = data(seed)
    for batch in batches:
        observer.update(batch)
    values = torch.cat([b.reshape(-1) for b in batches])
    scheme = Scheme(bits=16)
    found = observer.qparams(scheme)
    low = -int(found.zero_point) * float(found.scale)
    high = (scheme.quant_max - int(found.zero_point)) * float(found.scale)
    slack = 2 * float(found.scale)
    outside = int((values < low - slack).sum()), int((values > high + slack).sum())
    assert max(outside) <= (1 - coverage) / 2 * values.numel()
    assert low >= min(float(values.min()), 0.0) - slack
    assert high <= max(float(values.max()), 0.0) + slack


@settings(max_examples=20)
@given(SEEDS, st.sampled_from(["a8", "a4", "s4", "s3"]), st.floats(1.0, 50.0))
def test_mse_is_never_worse_than_minmax_on_its_data(seed: int, kind: str, outlier: float) -> None:
    scheme = Scheme.parse(f"{kind}/tensor/mse")
    x = torch.randn(2000, generator=torch.Generator().manual_seed(seed))
    x[0] = outlier
    # on bin centres the histogram knows the data exactly
    step = 2.0 ** (math.ceil(math.log2(float(x.abs().max()))) - 11)
    x = (torch.floor(x / step) + 0.5) * step
    best, plain = MSEObserver(), MinMaxObserver()
    best.update(x)
    plain.update(x)
    errors = [(fake_quantize(x, o.qparams(scheme)) - x).square().sum() for o in (best, plain)]
    assert float(errors[0]) <= float(errors[1]) * (1 + 1e-5)


def test_mse_clips_an_outlier_that_minmax_keeps() -> None:
    torch.manual_seed(0)
    x = torch.cat([torch.randn(10000), torch.tensor([12.0])])
    scheme = Scheme.parse("s4/tensor/mse")
    best, plain = MSEObserver(), MinMaxObserver()
    best.update(x)
    plain.update(x)
    errors = [(fake_quantize(x, o.qparams(scheme)) - x).square().mean() for o in (best, plain)]
    assert float(errors[0]) < 0.5 * float(errors[1])


@pytest.mark.parametrize("name", sorted(MAKERS))
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_and_leaves_no_trace(name: str, bad: float) -> None:
    observer = MAKERS[name]()
    clean = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    observer.update(clean)
    before = observer.qparams(A8)
    dirty = clean.clone()
    dirty[1, 0] = bad
    with pytest.raises(CalibrationError, match="NaN or infinity"):
        observer.update(dirty)
    assert torch.equal(observer.qparams(A8).scale, before.scale)


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_an_observer_that_saw_nothing_refuses_to_answer(name: str) -> None:
    observer = MAKERS[name]()
    for _ in range(2):
        with pytest.raises(CalibrationError, match="no calibration data") as caught:
            observer.qparams(A8, where="a.b:input")
        assert "a.b:input" in str(caught.value)
        observer.update(torch.zeros(0, 4))


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_memory_does_not_grow_with_the_data(name: str) -> None:
    observer = MAKERS[name]()
    sizes = []
    for batch in [*data(0, batches=20), torch.randn(64, 32, 4)]:
        observer.update(batch)
        sizes.append(len(pickle.dumps(observer)))
    assert max(sizes) <= sizes[0] + 64  # counters print longer


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_observers_that_depend_on_order_refuse_to_merge(name: str) -> None:
    one, other = MAKERS[name](), MAKERS[name]()
    other.update(torch.randn(3, 4))
    if one.mergeable:
        one.merge(other)
        return
    with pytest.raises(CalibrationError, match="cannot be merged"):
        one.merge(other)


@pytest.mark.parametrize("seed", [0, 1])
def test_ranges_agree_with_torchs_observers(seed: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.quantization import observer as theirs

        known = {
            MinMaxObserver: theirs.MinMaxObserver(dtype=torch.quint8),
            HistogramObserver: theirs.HistogramObserver(dtype=torch.quint8),
        }
        for kind, oracle in known.items():
            ours = kind()
            for batch in data(seed, batches=4):
                ours.update(batch)
                oracle(batch)
            scale, zero_point = oracle.calculate_qparams()
            loose = 1e-5 if kind is MinMaxObserver else 0.25
            found = ours.qparams(A8)
            assert float(found.scale) == pytest.approx(float(scale), rel=loose)
            assert int(found.zero_point) == pytest.approx(int(zero_point), abs=200 * loose)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("a8/tensor/minmax", MinMaxObserver),
        ("a8/channel/minmax", MinMaxObserver),
        ("a8/tensor/moving_average", MovingAverageObserver),
        ("a8/tensor/percentile@99.9", PercentileObserver),
        ("a8/tensor/histogram", HistogramObserver),
        ("a8/tensor/mse", MSEObserver),
    ],
)
def test_the_scheme_names_its_observer(text: str, kind: type) -> None:
    assert isinstance(make_observer(Scheme.parse(text)), kind)


@pytest.mark.parametrize("text", ["a8/token/dynamic", "a8/channel/mse", "a8/channel/histogram"])
def test_a_scheme_without_an_observer_is_refused(text: str) -> None:
    with pytest.raises(SchemeError) as caught:
        make_observer(Scheme.parse(text))
    assert text in str(caught.value)
