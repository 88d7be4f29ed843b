"""Fake quantizers: the value of quantize-dequantize, the gradient of the clamp."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxquant.quant import ops
from fxquant.quant.fake import fake_quantize, fake_quantize_per_token, fake_quantize_rows
from fxquant.quant.fake import storage_dtype as storage
from fxquant.quant.qparams import qparams_from_range
from fxquant.quant.scheme import ALLOWED_BITS, Scheme
from fxquant.quant.uniform import fake_quantize as reference
from fxquant.quant.weight import weight_qparams

SEEDS = st.integers(0, 2**32 - 1)


def sample(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator) * 3.0 + torch.randn((), generator=generator)


@given(seed=SEEDS, bits=st.sampled_from(ALLOWED_BITS), symmetric=st.booleans())
def test_values_equal_quantize_dequantize_bit_for_bit(
    *, seed: int, bits: int, symmetric: bool
) -> None:
    x = sample(seed, 200)
    scheme = Scheme(bits=bits, symmetric=symmetric)
    qparams = qparams_from_range(scheme, x.min() * 0.8, x.max() * 0.8)
    ends = (scheme.quant_min, scheme.quant_max)
    made = fake_quantize(x, float(qparams.scale), int(qparams.zero_point), *ends)
    assert torch.equal(made, reference(x, qparams))


@given(SEEDS, st.sampled_from(["s8/channel/minmax", "s4/channel/mse", "s4/group4/minmax"]))
def test_weights_equal_quantize_dequantize_bit_for_bit(seed: int, text: str) -> None:
    weight = sample(seed, 6, 12)
    scheme = Scheme.parse(text)
    qparams = weight_qparams(weight, scheme)
    made = fake_quantize_rows(weight, qparams.scale, scheme.quant_min, scheme.quant_max)
    assert torch.equal(made, reference(weight, qparams))


@given(SEEDS, st.sampled_from([15, 127, 255]))
def test_tokens_equal_quantize_dequantize_bit_for_bit(seed: int, largest: int) -> None:
    x = sample(seed, 3, 4, 16)
    codes = ops.quantize_per_token(x, 0, largest, torch.uint8)
    made = fake_quantize_per_token(x, 0, largest)
    assert torch.equal(made, ops.dequantize_per_token(*codes))


def test_the_gradient_is_one_inside_the_range_and_zero_outside() -> None:
    x = torch.tensor([-9.0, -0.3, 0.0, 0.26, 1.1, 9.0], requires_grad=True)
    fake_quantize(x, 0.1, 3, 0, 15).backward(torch.arange(1.0, 7.0))
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([0.0, 2.0, 3.0, 4.0, 5.0, 0.0]))
    weight = torch.tensor([[0.5, -2.0], [3.0, 1.0]], requires_grad=True)
    fake_quantize_rows(weight, torch.tensor([0.1, 1.0]), -8, 7).sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    tokens = sample(0, 2, 8).requires_grad_()
    fake_quantize_per_token(tokens, 0, 255).sum().backward()
    assert tokens.grad is not None
    assert bool((tokens.grad >= 0).all())
    torch.testing.assert_close(tokens.grad.median(), torch.tensor(1.0))


@pytest.mark.parametrize("bits", ALLOWED_BITS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_storage_type_holds_the_codes(*, bits: int, symmetric: bool) -> None:
    scheme = Scheme(bits=bits, symmetric=symmetric)
    assert storage(scheme.quant_min, scheme.quant_max) is scheme.dtype
