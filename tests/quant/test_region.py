"""Two-region quantizers against exact arithmetic, and the uniform quantizer within them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxquant.quant import ops
from fxquant.quant.qparams import QParams, qparams_from_range
from fxquant.quant.quantizer import dequantize, fake_quantize, quantize
from fxquant.quant.region import fake_quantize_region
from fxquant.quant.scheme import Scheme
from fxquant.quant.uniform import quantize as quantize_uniform
from tests.quant.references import region_code, region_value

BITS = st.integers(2, 8)
SHIFTS = st.integers(0, 8)
SPLITS = st.sampled_from(["sign", "magnitude"])
SCALES = st.floats(2.0**-13, 1024.0, width=32)
MULTIPLES = st.lists(st.floats(-2e3, 7e4, width=32), min_size=1, max_size=20)


def parameters(scale: float, shift: int, bits: int, split: str) -> QParams:
    scheme = Scheme(bits=bits, kind="region", rule="mse")
    zero = torch.zeros((), dtype=torch.int64)
    return QParams(scheme, torch.tensor(scale), zero, shift=shift, split=split)  # type: ignore[arg-type]


@given(scale=SCALES, shift=SHIFTS, bits=BITS, split=SPLITS, multiples=MULTIPLES)
def test_codes_and_values_equal_exact_arithmetic(
    *, scale: float, shift: int, bits: int, split: str, multiples: list[float]
) -> None:
    x = torch.tensor(multiples) * scale
    form = (scale, shift, bits, split)
    codes = ops.quantize_region(x, *form)
    assert codes.dtype is (torch.int8 if split == "sign" else torch.uint8)
    assert codes.tolist() == [region_code(value, *form) for value in x.tolist()]
    values = ops.dequantize_region(codes, *form)
    assert values.tolist() == [region_value(code, *form) for code in codes.tolist()]
    qparams = parameters(*form)
    assert torch.equal(quantize(x, qparams), codes)
    assert torch.equal(dequantize(codes, qparams), values)


@given(scale=SCALES, shift=SHIFTS, bits=BITS, split=SPLITS)
def test_every_code_decodes_by_a_shift_and_encodes_to_its_value_again(
    *, scale: float, shift: int, bits: int, split: str
) -> None:
    half = 1 << (bits - 1)
    first = -half if split == "sign" else 0
    codes = torch.arange(first, first + 2 * half)
    flag = (codes >= 0).int() if split == "sign" else codes // half
    level = codes if split == "sign" else codes % half
    kept = codes.to(torch.int8 if split == "sign" else torch.uint8)
    values = ops.dequantize_region(kept, scale, shift, bits, split)
    aligned = level.to(torch.int32) << (shift * flag).to(torch.int32)
    assert torch.equal(values, aligned.to(torch.float32) * scale)
    again = ops.quantize_region(values, scale, shift, bits, split)
    assert torch.equal(ops.dequantize_region(again, scale, shift, bits, split), values)


@given(st.integers(0, 2**32 - 1), BITS, st.floats(-50.0, 0.0), st.floats(0.001, 50.0))
def test_without_a_shift_it_is_the_symmetric_uniform_quantizer(
    seed: int, bits: int, low: float, high: float
) -> None:
    uniform = qparams_from_range(
        Scheme(bits=bits, symmetric=True), torch.tensor(low), torch.tensor(high)
    )
    x = torch.randn(300, generator=torch.Generator().manual_seed(seed)) * high
    region = parameters(float(uniform.scale), 0, bits, "sign")
    assert torch.equal(quantize(x, region), quantize_uniform(x, uniform))
    assert torch.equal(fake_quantize(x, region), fake_quantize(x, uniform))
    form = (float(uniform.scale), 0, -(1 << (bits - 1)), (1 << (bits - 1)) - 1, torch.int8)
    assert torch.equal(quantize(x, region), ops.quantize_per_tensor(x, *form))
    # of non-negative data the magnitude split makes the same values
    magnitude = parameters(float(uniform.scale), 0, bits, "magnitude")
    assert torch.equal(fake_quantize(x.abs(), magnitude), fake_quantize(x.abs(), uniform))


@given(scale=SCALES, shift=SHIFTS, bits=BITS, split=SPLITS, seed=st.integers(0, 2**32 - 1))
def test_larger_values_never_get_smaller_values(
    *, scale: float, shift: int, bits: int, split: str, seed: int
) -> None:
    x = torch.randn(500, generator=torch.Generator().manual_seed(seed)).sort().values
    x = x * scale * 2.0 ** (bits + shift - 1)
    made = fake_quantize(x, parameters(scale, shift, bits, split))
    assert bool((made.diff() >= 0).all())


@given(scale=SCALES, shift=SHIFTS, bits=BITS, split=SPLITS, multiples=MULTIPLES)
def test_the_fake_quantizer_has_the_value_and_the_gradient_of_the_clamp(
    *, scale: float, shift: int, bits: int, split: str, multiples: list[float]
) -> None:
    x = (torch.tensor(multiples) * scale).requires_grad_()
    made = fake_quantize_region(x, scale, shift, bits, split)
    assert torch.equal(made, fake_quantize(x.detach(), parameters(scale, shift, bits, split)))
    made.sum().backward()
    half = 1 << (bits - 1)
    low = -half * scale if split == "sign" else 0.0
    inside = (x >= low) & (x <= ((half - 1) << shift) * scale)
    assert x.grad is not None
    assert torch.equal(x.grad, inside.to(torch.float32))


@pytest.mark.parametrize("split", ["sign", "magnitude"])
def test_small_values_keep_the_fine_step(split: str) -> None:
    sign = -1.0 if split == "sign" else 1.0
    x = sign * torch.tensor([0.1, 0.2, 0.7])
    made = fake_quantize(x, parameters(0.1, 5, 4, split))
    torch.testing.assert_close(made, x, rtol=0, atol=1e-6)
