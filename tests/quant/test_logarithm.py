"""Log quantizers against fifty-digit logarithms."""

from __future__ import annotations

from decimal import Decimal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxquant.quant import ops
from fxquant.quant.logarithm import GELU_OFFSET, fake_quantize_log, level_table
from fxquant.quant.qparams import QParams
from fxquant.quant.quantizer import dequantize, fake_quantize, quantize
from fxquant.quant.scheme import Scheme
from tests.quant.references import log_steps, log_value

BITS = st.integers(2, 8)
SCALES = st.floats(2.0**-10, 1024.0, width=32)
EXPONENTS = st.sampled_from([(1, 1), (1, 2)]) | st.tuples(st.integers(1, 150), st.just(37))
SHARES = st.lists(st.floats(0.0, 1.5, width=32), min_size=1, max_size=20)


def parameters(
    kind: str, bits: int, scale: float, *, base: int = 0, offset: float = 0.0
) -> QParams:
    scheme = Scheme(bits=bits, kind=kind, rule="mse")  # type: ignore[arg-type]
    zero = torch.zeros((), dtype=torch.int64)
    return QParams(scheme, torch.tensor(scale), zero, base=base, offset=offset)


def rounded(steps: Decimal, bits: int) -> set[int]:
    """The code; both neighbours where float32 cannot tell on which side of the middle it is."""
    last = 2**bits - 1
    if steps > last:
        return {last}
    slack = Decimal("1e-6") * (1 + abs(steps))
    return {min(max(round(steps + way * slack), 0), last) for way in (-1, 0, 1)}


@given(
    bits=BITS,
    scale=SCALES,
    exponent=EXPONENTS,
    offset=st.sampled_from([0.0, 0.125, GELU_OFFSET]),
    shares=SHARES,
)
def test_codes_and_values_equal_exact_arithmetic(
    *, bits: int, scale: float, exponent: tuple[int, int], offset: float, shares: list[float]
) -> None:
    x = torch.tensor(shares).square() * scale - offset
    codes = ops.quantize_log(x, scale, *exponent, offset, bits)
    assert codes.dtype is torch.uint8
    for value, code in zip(x.tolist(), codes.tolist(), strict=True):
        assert code in rounded(log_steps(value, scale, offset, exponent), bits)
    levels = (2 << bits) - 2 if exponent[1] == 37 else 0
    made = ops.dequantize_log(codes, scale, *exponent, offset, bits, levels)
    expected = [log_value(c, scale, offset, bits, exponent, levels) for c in codes.tolist()]
    torch.testing.assert_close(made, torch.tensor(expected), rtol=3e-7, atol=3e-7 * offset)
    kind = {1: "log2", 2: "log_sqrt2", 37: "adalog"}[exponent[1]]
    qparams = parameters(kind, bits, scale, base=exponent[0] if levels else 0, offset=offset)
    assert torch.equal(quantize(x, qparams), codes)
    assert torch.equal(dequantize(codes, qparams), made)


@given(BITS, SCALES, st.integers(0, 2**32 - 1))
def test_adalog_with_base_37_is_log2(bits: int, scale: float, seed: int) -> None:
    x = torch.rand(300, generator=torch.Generator().manual_seed(seed)).pow(4) * scale
    adalog, log2 = parameters("adalog", bits, scale, base=37), parameters("log2", bits, scale)
    assert torch.equal(quantize(x, adalog), quantize(x, log2))
    assert torch.equal(fake_quantize(x, adalog), fake_quantize(x, log2))


@given(BITS)
def test_log2_levels_are_shifts_and_adalog_ones_have_few_fractions(bits: int) -> None:
    assert level_table(1, 1, bits, 0) == [2.0**-c for c in range(2**bits - 1)] + [0.0]
    count = (2 << bits) - 2
    for base in (1, 18, 37, 74, 149):
        for code, level in enumerate(level_table(base, 37, bits, count)[:-1]):
            fraction = level * 2 ** (code * base // 37) * count
            assert abs(fraction - round(fraction)) < 1e-9
            assert count // 2 <= round(fraction) <= count


@given(EXPONENTS, BITS, SCALES)
def test_zero_and_less_get_the_last_code_which_decodes_to_nothing(
    exponent: tuple[int, int], bits: int, scale: float
) -> None:
    x = torch.tensor([0.0, -0.0, -1.0, -1e-30])
    codes = ops.quantize_log(x, scale, *exponent, 0.0, bits)
    assert codes.tolist() == [2**bits - 1] * 4
    assert ops.dequantize_log(codes, scale, *exponent, 0.0, bits, 0).tolist() == [0.0] * 4


@pytest.mark.parametrize("kind", ["log2", "log_sqrt2", "adalog"])
def test_levels_and_the_largest_value_are_exact(kind: str) -> None:
    qparams = parameters(kind, 4, 0.75, base=74)
    codes = torch.arange(16, dtype=torch.uint8)
    values = dequantize(codes, qparams)
    assert float(values[0]) == 0.75
    assert bool((values.diff() < 0).all())
    if kind != "adalog":  # its table's fractions are rounded, but stay nearest to their code
        assert torch.equal(quantize(values, qparams), codes)
    assert quantize(torch.tensor([0.75, 0.8, 1e9]), qparams).tolist() == [0, 0, 0]


@given(
    kind=st.sampled_from(["log2", "log_sqrt2", "adalog"]),
    bits=BITS,
    offset=st.sampled_from([0.0, GELU_OFFSET]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_fake_quantizer_has_the_value_and_the_gradient_of_the_clamp(
    *, kind: str, bits: int, offset: float, seed: int
) -> None:
    qparams = parameters(kind, bits, 2.0, base=25, offset=offset)
    x = torch.randn(100, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    form = (2.0, *qparams.exponent, offset, bits, qparams.fraction_levels)
    made = fake_quantize_log(x, *form)
    assert torch.equal(made, fake_quantize(x.detach(), qparams))
    made.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, ((x >= -offset) & (x <= 2.0 - offset)).to(torch.float32))
