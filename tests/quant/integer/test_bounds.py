"""Integer kernels against the real functions, within the bounds of papers.md, section 4c."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxquant.quant.integer import dyadic, exponents, gelus, norms, power_norm, softmaxes

UNIFORM = st.integers(0, 2**32 - 1)


def codes(extent: float, scale: float, *, low: float | None = None) -> Tensor:
    ends = (extent if low is None else -low) / scale, extent / scale
    most = min(32767, int(ends[1]))
    return torch.arange(-min(32768, int(ends[0])), most + 1, dtype=torch.int32)


@pytest.mark.parametrize(
    ("scale", "bound"),
    [(2e-5, 0.0185), (1e-3, 0.0185), (0.01, 0.0185), (0.04, 0.0185), (0.08, 0.0235)],
)
def test_i_gelu_keeps_its_bound_at_every_step(scale: float, bound: float) -> None:
    q = codes(6.0, scale)
    made = gelus.i_gelu(q, scale).double() * gelus.i_gelu_scale(scale)
    error = (made - torch.nn.functional.gelu(q.double() * scale)).abs().max()
    assert error <= bound


@pytest.mark.parametrize("scale", [2e-4, 0.001, 0.002, 0.01, 0.05, 0.1])
def test_shift_gelu_keeps_its_bound_at_every_step(scale: float) -> None:
    q = codes(4.0, scale)
    made = gelus.shift_gelu(q, scale, 16).double() * gelus.shift_gelu_scale(scale, 16)
    assert (made - torch.nn.functional.gelu(q.double() * scale)).abs().max() <= 0.0234


@pytest.mark.parametrize("bits", [8, 16])
def test_shift_gelu_with_few_bits_floors_the_gate(bits: int) -> None:
    q = codes(6.0, 0.01)
    made = gelus.shift_gelu(q, 0.01, bits).double() * gelus.shift_gelu_scale(0.01, bits)
    error = (made - torch.nn.functional.gelu(q.double() * 0.01)).abs().max()
    assert (error > 0.04) == (bits == 8)


@pytest.mark.parametrize("scale", [5e-4, 1e-3])
def test_exponentials_keep_their_bounds_and_are_monotonic(scale: float) -> None:
    q = torch.arange(-int(12 / scale), 1, dtype=torch.int32)
    exact = torch.exp(q.double() * scale)
    i_exp = exponents.i_exp(q, scale, 30).double() * exponents.i_exp_scale(scale, 30)
    assert (i_exp - exact).abs().max() <= 0.00195
    shift = exponents.shift_exp(q, scale, 15).double() * scale / 2**15
    assert (shift - exact).abs().max() <= 0.0445
    relative = (shift / exact - 1).abs()
    assert relative[q * scale >= -1].max() <= 0.064


@given(st.floats(3e-4, 1.0))
def test_exponentials_are_monotonic_at_every_step(scale: float) -> None:
    q = torch.arange(-32768, 1, 1 if scale < 0.01 else 7, dtype=torch.int32)
    assert bool((exponents.i_exp(q, scale, 30).diff() >= 0).all())
    assert bool((exponents.shift_exp(q, scale, 15).diff() >= 0).all())


def scores(seed: int, tokens: int, scale: float) -> Tensor:
    x = torch.randn(20, tokens, generator=torch.Generator().manual_seed(seed)) * 2
    return torch.round(x / scale).clamp(-128, 127).to(torch.int8)


@given(UNIFORM, st.sampled_from([17, 197]), st.sampled_from([0.02, 0.05, 0.1, 0.3, 1.0]))
def test_shares_of_a_row_sum_to_one(seed: int, tokens: int, scale: float) -> None:
    q = scores(seed, tokens, scale)
    exact = torch.softmax(q.double() * scale, -1)
    for kernel, step, bound in (
        (softmaxes.i_softmax, 2.0**-16, 2e-3),
        (softmaxes.shiftmax, 2.0**-15, 2e-2),
    ):
        made = kernel(q, scale, 16).double() * step
        assert float(made.sum(-1).min()) > 0.99
        assert float(made.sum(-1).max()) <= 1.0
        assert float((made - exact).abs().max()) <= bound
    table = softmaxes.exp_table(scale, tokens)
    best = softmaxes.table_softmax(q, table, 16).double() * 2.0**-16
    assert float((best - exact).abs().max()) <= 1.5 * 2.0**-16


@given(UNIFORM)
def test_log_codes_are_within_a_factor_of_the_threshold(seed: int) -> None:
    q = scores(seed, 60, 0.05)
    exact = torch.softmax(q.double() * 0.05, -1)
    found = softmaxes.log_int_softmax(q, 0.05, 4)
    kept = found < 255
    ratio = torch.exp2(-found[kept].double()) / exact[kept]
    # t is rounded before its logarithm is: 1.49 counts as 1, 2.5 as 3 and then as 4
    assert float(ratio.max()) <= 1.5 * 1.1
    assert float(ratio.min()) >= 2.5 / 4 * 0.95
    assert bool((exact[~kept] < 2.0**-15.2).all())
    shares = softmaxes.exp2_codes(found, 14)
    assert torch.equal(shares[kept], (2.0**14 * torch.exp2(-found[kept].float())).int())
    assert not bool(shares[~kept].any())


@given(UNIFORM, st.integers(9, 14))
def test_norms_have_mean_zero_and_deviation_one(seed: int, bits: int) -> None:
    x = torch.randn(8, 192, generator=torch.Generator().manual_seed(seed))
    q = torch.round(x * 2.0**bits / 4 + 100).clamp(-(2**15), 2**15 - 1).to(torch.int16)
    for made in (norms.i_layer_norm(q, 0), norms.shift_layer_norm(q, 0)):
        y = made.double() * norms.norm_scale(192)
        assert float(y.mean(-1).abs().max()) <= 0.5 / (2.0**bits / 4) * 1.3
        assert float((y.std(-1, correction=0) - 1).abs().max()) <= 0.01
        exact = torch.nn.functional.layer_norm(q.double(), (192,))
        assert float((y - exact).abs().max()) <= 0.03


def test_ten_newton_steps_ruin_small_deviations_and_the_exact_root_does_not() -> None:
    q = torch.arange(-6, 7, dtype=torch.int16)
    made = [norms.shift_layer_norm(q, n).double() * norms.norm_scale(13) for n in (0, 10)]
    exact = torch.nn.functional.layer_norm(q.double(), (13,))
    assert float((made[0] - exact).abs().max()) < 0.08
    assert float((made[1] - exact).abs().max()) > 1.0


@given(UNIFORM)
def test_the_norm_over_powers_of_two_is_within_a_step(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.exp2(torch.randint(0, 4, (96,), generator=generator).float())
    x = torch.randn(50, 96, generator=generator) * spread
    gamma, beta = torch.rand(96, generator=generator) + 0.5, torch.randn(96, generator=generator)
    factors = power_norm.power_factors(x, 8)
    assert float(factors.alpha.double().mean()) < 3  # narrow channels take finer steps
    step = factors.scale * torch.exp2(factors.alpha.float())
    q = (torch.round(x / step) + factors.zero_point).clamp(0, 255).to(torch.uint8)
    values = (q.double() - factors.zero_point) * step.double()
    exact = torch.nn.functional.layer_norm(values, (96,), gamma.double(), beta.double(), eps=0.0)
    made = power_norm.power_layer_norm(
        q, factors.alpha, factors.zero_point, *power_norm.affine_of(gamma, beta, 0.03)
    )
    error = (made.double() * 0.03 - exact).abs()
    product = (gamma * values / values.std(-1, correction=0, keepdim=True)).abs()
    assert float((error - product * 2.0**-7).max()) <= 0.03 * 0.52  # M has 8 bits


def test_a_gamma_of_zero_does_no_harm() -> None:
    q = torch.randint(-3000, 3000, (4, 16), generator=torch.Generator().manual_seed(1)).int()
    gamma = torch.tensor([0.0, -1.0] * 8).double()
    beta = torch.linspace(-2, 2, 16).double()
    row = dyadic.dyadic_row(gamma * norms.norm_scale(16) / 0.02, beta / 0.02)
    form = (row.multiplier, row.shift, row.addend, 0, -(2**15), 2**15, torch.int32)
    made = dyadic.requantize_channels(norms.shift_layer_norm(q, 0), *form).double() * 0.02
    exact = torch.nn.functional.layer_norm(q.double(), (16,)) * gamma + beta
    assert float((made - exact).abs().max()) <= 0.011
