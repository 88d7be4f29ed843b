"""The uniform quantizer against plain Python and against torch's own operators."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxquant.errors import CalibrationError, InputError
from fxquant.quant import ops
from fxquant.quant.qparams import QParams, qparams_from_range
from fxquant.quant.scheme import ALLOWED_BITS, Scheme
from fxquant.quant.uniform import dequantize, fake_quantize, quantize

BITS = st.sampled_from(ALLOWED_BITS)
ENDS = st.floats(-1e4, 1e4, width=32)


def schemes(granularity: str = "tensor", group_size: int = 0) -> st.SearchStrategy[Scheme]:
    return st.builds(
        Scheme,
        bits=BITS,
        symmetric=st.booleans(),
        granularity=st.just(granularity),
        group_size=st.just(group_size),
    )


@st.composite
def ranges(draw: st.DrawFn) -> tuple[float, float]:
    """Ends at least a thousandth apart, on either side of zero or on one."""
    low, high = sorted((draw(ENDS), draw(ENDS)))
    return (low, high) if high - low > 1e-3 else (low - 1.0, high + 1.0)


def in_plain_python(scheme: Scheme, low: float, high: float) -> tuple[float, int]:
    """Scale and zero point in double precision, straight from the definition."""
    low, high = min(low, 0.0), max(high, 0.0)
    if scheme.symmetric:
        return max(-low, high) / (2 ** (scheme.bits - 1) - 1), 0
    scale = (high - low) / (2**scheme.bits - 1)
    return scale, round(-low / scale)


def for_range(scheme: Scheme, low: float | Tensor, high: float | Tensor) -> QParams:
    wide = torch.float64
    return qparams_from_range(
        scheme, torch.as_tensor(low, dtype=wide), torch.as_tensor(high, dtype=wide)
    )


def inside(qparams: QParams, count: int = 257) -> Tensor:
    """Values from the smallest representable to the largest."""
    scheme = qparams.scheme
    ends = torch.tensor([scheme.quant_min, scheme.quant_max]) - qparams.zero_point
    low, high = (ends * qparams.scale.double()).tolist()
    return torch.linspace(low, high, count, dtype=torch.float64).to(torch.float32)


@given(schemes(), ranges())
def test_scale_and_zero_point_equal_the_plain_formula(
    scheme: Scheme, ends: tuple[float, float]
) -> None:
    qparams = for_range(scheme, *ends)
    scale, zero_point = in_plain_python(scheme, *ends)
    assert float(qparams.scale) == np.float32(scale)
    assert int(qparams.zero_point) == zero_point
    assert qparams.scale.dtype is torch.float32
    assert scheme.quant_min <= zero_point <= scheme.quant_max


@given(schemes(), ranges())
def test_the_range_is_representable_up_to_half_a_step(
    scheme: Scheme, ends: tuple[float, float]
) -> None:
    qparams = for_range(scheme, *ends)
    x = torch.linspace(min(ends[0], 0.0), max(ends[1], 0.0), 101)
    step = float(qparams.scale)
    assert float((fake_quantize(x, qparams) - x).abs().max()) <= step * (0.5 + 0.01)


@given(schemes(), ranges(), st.floats(0.0, 5.0))
def test_codes_stay_in_range_even_far_outside(
    scheme: Scheme, ends: tuple[float, float], beyond: float
) -> None:
    qparams = for_range(scheme, *ends)
    x = inside(qparams) * (1.0 + beyond)
    codes = quantize(x, qparams)
    assert codes.dtype is scheme.dtype
    assert scheme.quant_min <= int(codes.to(torch.int64).min())
    assert int(codes.to(torch.int64).max()) <= scheme.quant_max
    assert codes.shape == x.shape


@given(schemes(), ranges())
def test_zero_is_exact(scheme: Scheme, ends: tuple[float, float]) -> None:
    qparams = for_range(scheme, *ends)
    assert fake_quantize(torch.zeros(3), qparams).tolist() == [0.0] * 3


@given(schemes(), ranges())
def test_quantizing_twice_is_quantizing_once(scheme: Scheme, ends: tuple[float, float]) -> None:
    qparams = for_range(scheme, *ends)
    codes = quantize(inside(qparams), qparams)
    assert torch.equal(quantize(dequantize(codes, qparams), qparams).int(), codes.int())


@given(schemes(), ranges())
def test_larger_values_never_get_smaller_codes(scheme: Scheme, ends: tuple[float, float]) -> None:
    qparams = for_range(scheme, *ends)
    x = inside(qparams, 1001) * 1.25
    assert bool((quantize(x, qparams).to(torch.int64).diff() >= 0).all())


@given(schemes(), ranges(), st.lists(st.floats(-2.0, 2.0), min_size=1, max_size=20))
def test_codes_equal_a_loop_in_plain_python(
    scheme: Scheme, ends: tuple[float, float], shares: list[float]
) -> None:
    qparams = for_range(scheme, *ends)
    x = (torch.tensor(shares, dtype=torch.float64) * max(map(abs, ends))).to(torch.float32)
    inverse = np.float32(1.0) / np.float32(qparams.scale)
    expected = [
        min(
            max(round(float(np.float32(v) * inverse)) + int(qparams.zero_point), scheme.quant_min),
            scheme.quant_max,
        )
        for v in x.tolist()
    ]
    assert quantize(x, qparams).to(torch.int64).tolist() == expected


@given(schemes(), ranges())
def test_equals_torchs_fake_quantize(scheme: Scheme, ends: tuple[float, float]) -> None:
    qparams = for_range(scheme, *ends)
    x = inside(qparams, 333) * 1.1
    theirs = torch.fake_quantize_per_tensor_affine(
        x, float(qparams.scale), int(qparams.zero_point), scheme.quant_min, scheme.quant_max
    )
    # torch adds the zero point before it rounds: ties, and only ties, may fall the other way
    steps = (fake_quantize(x, qparams) - theirs).abs() / float(qparams.scale)
    assert float(steps.max()) <= 1.01
    fraction = (x * (1.0 / qparams.scale)).frac().abs()
    tie = (fraction - 0.5).abs() <= 2e-3 * max(1.0, 2.0 ** (scheme.bits - 8))
    assert float(steps[~tie].max() if (~tie).any() else 0.0) <= 1e-2


@given(schemes(), ranges())
def test_equals_the_operators_of_a_quantized_graph(
    scheme: Scheme, ends: tuple[float, float]
) -> None:
    qparams = for_range(scheme, *ends)
    x = inside(qparams, 333) * 1.1
    arguments = (float(qparams.scale), int(qparams.zero_point))
    arguments += (scheme.quant_min, scheme.quant_max, scheme.dtype)
    codes = ops.quantize_per_tensor(x, *arguments)
    assert torch.equal(codes.int(), quantize(x, qparams).int())
    back = ops.dequantize_per_tensor(codes, *arguments)
    assert torch.equal(back, fake_quantize(x, qparams))


@given(schemes("channel"), st.integers(0, 2**32 - 1), st.integers(0, 2))
def test_per_channel_is_each_channel_by_itself(scheme: Scheme, seed: int, axis: int) -> None:
    x = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(seed))
    x = x * torch.logspace(-2, 2, x.shape[axis]).reshape([-1 if a == axis else 1 for a in range(3)])
    rows = x.movedim(axis, 0).reshape(x.shape[axis], -1)
    qparams = qparams_from_range(scheme, rows.amin(1), rows.amax(1))
    whole = fake_quantize(x, qparams, axis=axis).movedim(axis, 0)
    for channel, row in enumerate(x.movedim(axis, 0)):
        one = for_range(Scheme(bits=scheme.bits, symmetric=scheme.symmetric), row.min(), row.max())
        assert torch.equal(whole[channel], fake_quantize(row, one))


@given(schemes("group", 4), st.integers(0, 2**32 - 1))
def test_per_group_is_each_group_by_itself(scheme: Scheme, seed: int) -> None:
    x = torch.randn(3, 12, generator=torch.Generator().manual_seed(seed))
    groups = x.reshape(3, 3, 4)
    qparams = qparams_from_range(scheme, groups.amin(-1), groups.amax(-1))
    whole = fake_quantize(x, qparams).reshape(3, 3, 4)
    for row in range(3):
        for group in range(3):
            part = groups[row, group]
            plain = Scheme(bits=scheme.bits, symmetric=scheme.symmetric)
            one = for_range(plain, part.min(), part.max())
            assert torch.equal(whole[row, group], fake_quantize(part, one))


@pytest.mark.parametrize("shape", [(3, 10), (3, 8, 1), (8,)])
def test_groups_that_do_not_divide_a_weight_are_refused(shape: tuple[int, ...]) -> None:
    scheme = Scheme(symmetric=True, granularity="group", group_size=4)
    qparams = qparams_from_range(scheme, torch.zeros(3, 2), torch.ones(3, 2))
    with pytest.raises(InputError, match="groups of 4"):
        quantize(torch.randn(*shape), qparams)


@given(schemes(), st.sampled_from([0.0, -0.0, 1e-40, -1e-40, 1e-37]))
def test_a_constant_tensor_gets_step_one(scheme: Scheme, value: float) -> None:
    qparams = for_range(scheme, value, value)
    assert float(qparams.scale) == 1.0
    assert math.isfinite(float(1.0 / qparams.scale))
    assert float(fake_quantize(torch.tensor([value]), qparams)) == 0.0


@pytest.mark.parametrize(
    ("low", "high"),
    [(-1.0, math.inf), (-math.inf, 1.0), (-math.inf, math.inf), (math.nan, 1.0), (0.0, math.nan)],
)
@pytest.mark.parametrize("text", ["s8/tensor/minmax", "a8/tensor/minmax"])
def test_an_infinite_range_is_refused(text: str, low: float, high: float) -> None:
    scheme = Scheme.parse(text)
    with pytest.raises(CalibrationError, match="not finite") as caught:
        qparams_from_range(scheme, torch.tensor(low), torch.tensor(high), where="a.b:input")
    assert "a.b:input" in str(caught.value)
