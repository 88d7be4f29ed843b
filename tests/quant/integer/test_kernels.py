"""Integer kernels against unbounded integers: every 8-bit code, random 16-bit ones."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxquant.errors import InputError
from fxquant.quant.integer import (
    division,
    dyadic,
    exponents,
    gelus,
    norms,
    power_norm,
    roots,
    softmaxes,
    table,
)
from tests.quant.integer import references as ref

BYTES = torch.arange(-128, 128, dtype=torch.int32)
SCALES = st.floats(3e-4, 1.5)
SEEDS = st.integers(0, 2**32 - 1)


def words(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = 2 ** int(torch.randint(4, 16, (1,), generator=generator))
    return torch.randint(-spread, spread, (count,), generator=generator, dtype=torch.int32)


@given(SCALES, SEEDS)
def test_exponentials_equal_unbounded_arithmetic(scale: float, seed: int) -> None:
    for q in (BYTES - 127, -words(50, seed).abs()):
        made = exponents.i_exp(q, scale, 30)
        assert made.tolist() == [ref.i_exp(v, scale, 30) for v in q.tolist()]
        for bits in (15, 23):
            made = exponents.shift_exp(q, scale, bits)
            assert made.tolist() == [ref.shift_exp(v, scale, bits) for v in q.tolist()]


@given(SCALES, SEEDS)
def test_softmaxes_equal_unbounded_arithmetic(scale: float, seed: int) -> None:
    for q in (BYTES, words(60, seed)):
        row = q.tolist()
        assert softmaxes.i_softmax(q, scale, 16).tolist() == ref.i_softmax(row, scale, 16)
        assert softmaxes.shiftmax(q, scale, 16).tolist() == ref.shiftmax(row, scale, 16)
        for bits in (4, 6):
            made = softmaxes.log_int_softmax(q, scale, bits)
            assert made.tolist() == ref.log_int_softmax(row, scale, bits)
            assert made.dtype is torch.uint8


@given(SCALES, SEEDS)
def test_gelus_equal_unbounded_arithmetic(scale: float, seed: int) -> None:
    for q in (BYTES, words(60, seed)):
        row = q.tolist()
        assert gelus.i_gelu(q, scale).tolist() == [ref.i_gelu(v, scale) for v in row]
        for bits in (8, 16):
            assert gelus.shift_gelu(q, scale, bits).tolist() == ref.shift_gelu(row, scale, bits)


@given(SEEDS, st.integers(0, 3))
def test_norms_equal_unbounded_arithmetic(seed: int, shift: int) -> None:
    for q in (BYTES, words(64, seed), torch.full((8,), 5, dtype=torch.int32)):
        row = q.tolist()
        assert norms.i_layer_norm(q, shift).tolist() == ref.i_layer_norm(row, shift)
        for steps in (0, 10):
            assert norms.shift_layer_norm(q, steps).tolist() == ref.shift_layer_norm(row, steps)


@given(SEEDS)
def test_the_norm_over_powers_of_two_equals_unbounded_arithmetic(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    count = 64
    q = torch.randint(0, 256, (count,), generator=generator, dtype=torch.int32)
    alpha = torch.randint(0, 4, (count,), generator=generator)
    gamma, beta = torch.randn(2, count, generator=generator).unbind()
    gain, offset = power_norm.affine_of(gamma * 3, beta, 0.02)
    for zero in (0, 117):
        made = power_norm.power_layer_norm(q, alpha, zero, gain, offset)
        form = (q.tolist(), alpha.tolist(), zero, gain.tolist(), offset.tolist())
        assert made.tolist() == ref.power_layer_norm(*form)


@given(SEEDS, st.floats(1e-12, 1e6), st.integers(-200, 200))
def test_requantization_rounds_the_exact_product_half_up(seed: int, ratio: float, z: int) -> None:
    d = dyadic.dyadic(ratio)
    assert ratio > 1e-9 or d.shift == 62
    assert ratio < 1e-9 or abs(d.value / ratio - 1) <= 2.0**-31
    ends = (-(2**31), 2**31 - 1)
    extremes = torch.tensor([-(2**31), 2**31 - 1, 0, 1, -1], dtype=torch.int32)
    q = torch.cat([extremes, words(40, seed)])
    for low, high in ((-128, 127), ends):
        kind = torch.int8 if high == 127 else torch.int64
        made = dyadic.requantize(q, d.multiplier, d.shift, z, low, high, kind)
        wanted = [ref.requantize(v, d.multiplier, d.shift, z, low, high) for v in q.tolist()]
        assert made.tolist() == wanted


@given(SEEDS)
def test_rows_of_dyadic_numbers_have_their_own_ratio_and_addend(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    ratios = torch.randn(10, generator=generator).double() * 1e-3
    ratios[-1] = 0.0
    addends = torch.randn(10, generator=generator).double() * 300
    form = dyadic.dyadic_row(ratios, addends)
    plain = [dyadic.dyadic(float(ratio)) for ratio in ratios]
    alone = dyadic.dyadic_row(ratios.reshape(2, 5))
    assert alone.multiplier.flatten().tolist() == [d.multiplier for d in plain]
    assert alone.shift.flatten().tolist() == [d.shift for d in plain]
    q = torch.randint(-(2**30), 2**30, (50, 10), generator=generator, dtype=torch.int32)
    ends = (0, -(2**40), 2**40, torch.int64)
    made = dyadic.requantize_channels(q, form.multiplier, form.shift, form.addend, *ends)
    exact = q.double() * ratios + addends
    assert float((made - exact).abs().max()) <= 0.5 + 2.0**-3


@pytest.mark.parametrize("ratio", [math.inf, math.nan, 2.0**30])
def test_what_is_no_ratio_of_steps_is_refused(ratio: float) -> None:
    with pytest.raises(InputError, match="no ratio"):
        dyadic.dyadic(ratio)
    with pytest.raises(InputError, match="no ratio"):
        dyadic.dyadic_row(torch.tensor([1.0, ratio], dtype=torch.float64))


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_what_is_no_step_is_refused(scale: float) -> None:
    for kernel in (gelus.i_gelu, lambda q, s: gelus.shift_gelu(q, s, 8)):
        with pytest.raises(InputError, match="step"):
            kernel(BYTES, scale)
    for kernel in (exponents.i_exp, exponents.shift_exp):
        with pytest.raises(InputError, match="step"):
            kernel(BYTES, scale, 15)


@given(st.lists(st.integers(0, 2**62 - 1), min_size=1, max_size=30))
def test_the_root_equals_that_of_python(values: list[int]) -> None:
    near = [max(0, math.isqrt(v) ** 2 + way) for v in values for way in (-1, 0, 1)]
    v = torch.tensor([n for n in values + near if n < 2**62])
    assert roots.isqrt(v, 0).tolist() == [math.isqrt(n) for n in v.tolist()]
    assert roots.isqrt(v, 10).tolist() == [ref.newton(n, 10) for n in v.tolist()]


def test_the_root_of_every_small_number_is_exact_and_ten_steps_are_not() -> None:
    v = torch.arange(200_000)
    assert roots.isqrt(v, 0).tolist() == [math.isqrt(n) for n in range(200_000)]
    ten = roots.isqrt(v, 10)
    assert 0.07 < float(ten[10_000]) / 100 - 1 < 0.09  # papers, section 4c
    assert bool((ten[40_000:] <= roots.isqrt(v, 0)[40_000:] + 1).all())
    assert roots.isqrt(torch.zeros(0, dtype=torch.int64), 0).numel() == 0


@given(st.integers(1, 2**20), st.integers(0, 2**31 - 1), st.integers(0, 2**32 - 1))
def test_division_by_a_constant_is_exact(divisor: int, largest: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    p = torch.randint(0, largest + 1, (200,), generator=generator)
    p = torch.cat([p, torch.tensor([0, largest, max(0, largest // divisor * divisor - 1)])])
    for kind in (torch.int32, torch.int64):
        made = division.divided(p.to(kind), divisor, largest)
        assert made.dtype is kind
        assert made.tolist() == [v // divisor for v in p.tolist()]


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1))
def test_bit_lengths_equal_those_of_python(values: list[int]) -> None:
    assert division.bit_length(torch.tensor(values)).tolist() == [v.bit_length() for v in values]


def test_a_table_holds_the_function_exactly() -> None:
    form = {"scale": 0.05, "low": -128, "high": 127, "out_scale": 0.03, "zero_point": -120}
    ends = {"ends": (-128, 127), "dtype": torch.int8}
    made = table.function_table(table.gelu, **form, **ends)  # type: ignore[arg-type]
    wanted = torch.nn.functional.gelu(BYTES.double() * 0.05) / 0.03
    wanted = (torch.round(wanted) - 120).clamp(-128, 127).to(torch.int8)
    assert torch.equal(table.lookup(BYTES.to(torch.int8), made, -128), wanted)
    with pytest.raises(InputError, match="256 entries"):
        table.function_table(table.gelu, **{**form, "low": -129}, **ends)  # type: ignore[arg-type]
