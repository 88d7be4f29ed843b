"""Ranges and codes of weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxquant.errors import CalibrationError, SchemeError
from fxquant.quant.scheme import ALLOWED_BITS, Scheme
from fxquant.quant.uniform import fake_quantize, quantize
from fxquant.quant.weight import weight_codes, weight_qparams

SEEDS = st.integers(0, 2**32 - 1)
SHAPES = st.sampled_from([(40, 12), (33, 3, 2, 2), (1, 8), (64, 4)])


def weight(shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(-2, 1, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return torch.randn(*shape, generator=generator) * scale


@given(SEEDS, SHAPES, st.sampled_from(ALLOWED_BITS), st.sampled_from(["tensor", "channel"]))
def test_minmax_scales_are_numpys(
    seed: int, shape: tuple[int, ...], bits: int, granularity: str
) -> None:
    w = weight(shape, seed)
    scheme = Scheme(bits=bits, symmetric=True, granularity=granularity)  # type: ignore[arg-type]
    qparams = weight_qparams(w, scheme)
    rows = np.abs(w.numpy().reshape(shape[0], -1).astype(np.float64))
    largest = rows.max(1) if granularity == "channel" else rows.max()
    np.testing.assert_array_equal(
        qparams.scale.numpy(), (largest / (2 ** (bits - 1) - 1)).astype(np.float32)
    )
    assert not qparams.zero_point.any()


@given(SEEDS, st.sampled_from(ALLOWED_BITS), st.sampled_from([1, 3, 4, 12]))
def test_group_scales_are_numpys(seed: int, bits: int, size: int) -> None:
    w = weight((40, 12), seed)
    scheme = Scheme(bits=bits, symmetric=True, granularity="group", group_size=size)
    largest = np.abs(w.numpy().reshape(40, -1, size).astype(np.float64)).max(-1)
    np.testing.assert_array_equal(
        weight_qparams(w, scheme).scale.numpy(),
        (largest / (2 ** (bits - 1) - 1)).astype(np.float32),
    )


@given(SEEDS, SHAPES, st.sampled_from(["s8/channel/minmax", "s4/tensor/minmax", "a5/channel/mse"]))
def test_codes_made_in_blocks_equal_codes_made_at_once(
    seed: int, shape: tuple[int, ...], text: str
) -> None:
    w = weight(shape, seed)
    qparams = weight_qparams(w, Scheme.parse(text))
    codes = weight_codes(w, qparams)
    assert torch.equal(codes, quantize(w, qparams))
    assert codes.dtype is qparams.scheme.dtype


@given(SEEDS, st.integers(1, 80))
def test_group_codes_made_in_blocks_equal_codes_made_at_once(seed: int, rows: int) -> None:
    w = weight((rows, 12), seed)
    qparams = weight_qparams(w, Scheme.parse("s4/group4/minmax"))
    assert torch.equal(weight_codes(w, qparams), quantize(w, qparams))


@given(SEEDS, SHAPES, st.sampled_from(["s2", "s3", "s4", "s8", "a4"]))
def test_mse_is_never_worse_than_minmax_in_any_channel(
    seed: int, shape: tuple[int, ...], kind: str
) -> None:
    w = weight(shape, seed)
    for granularity in ("channel", "tensor"):
        errors = []
        for rule in ("mse", "minmax"):
            qparams = weight_qparams(w, Scheme.parse(f"{kind}/{granularity}/{rule}"))
            squared = (w - fake_quantize(w, qparams)).double().square().reshape(shape[0], -1)
            errors.append(squared.sum(1) if granularity == "channel" else squared.sum())
        assert bool((errors[0] <= errors[1] * (1 + 1e-5)).all())


def test_mse_shrinks_a_channel_with_an_outlier_and_leaves_the_others() -> None:
    torch.manual_seed(0)
    w = torch.rand(3, 4096) * 2 - 1  # uniform rows: nothing to gain from clipping
    w[1] = torch.randn(4096) * 0.3
    w[1, 0] = 2.0
    found = weight_qparams(w, Scheme.parse("s4/channel/mse")).scale
    plain = weight_qparams(w, Scheme.parse("s4/channel/minmax")).scale
    assert float(found[1]) < 0.8 * float(plain[1])
    assert float(found[0]) > 0.9 * float(plain[0])


@pytest.mark.parametrize("text", ["s8/channel/minmax", "s8/tensor/minmax", "s8/channel/mse"])
def test_a_channel_of_zeros_stays_zero(text: str) -> None:
    w = weight((4, 8), 0)
    w[2] = 0.0
    qparams = weight_qparams(w, Scheme.parse(text))
    assert not fake_quantize(w, qparams)[2].any()
    assert bool(torch.isfinite(qparams.scale).all())


def test_a_parameter_is_taken_without_its_gradient() -> None:
    parameter = torch.nn.Parameter(weight((4, 8), 0))
    for text in ("s8/channel/minmax", "s8/channel/mse"):
        qparams = weight_qparams(parameter, Scheme.parse(text))
        assert not qparams.scale.requires_grad
        assert not weight_codes(parameter, qparams).requires_grad


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("text", ["s8/channel/minmax", "s8/group4/minmax", "s8/tensor/mse"])
def test_a_weight_that_is_not_finite_is_refused(text: str, bad: float) -> None:
    w = weight((4, 8), 0)
    w[3, 3] = bad
    with pytest.raises(CalibrationError, match="the weight holds NaN or infinity") as caught:
        weight_qparams(w, Scheme.parse(text), where="head:weight")
    assert "head:weight" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "s8/channel/percentile@99",
        "s8/tensor/moving_average",
        "s8/tensor/histogram",
        "s8/group4/mse",
        "s8/token/dynamic",
    ],
)
def test_rules_for_activations_are_refused(text: str) -> None:
    with pytest.raises(SchemeError, match="does not apply to a") as caught:
        weight_qparams(weight((4, 8), 0), Scheme.parse(text), where="head:weight")
    assert "head:weight" in str(caught.value)


@pytest.mark.parametrize("shape", [(4, 10), (4, 2, 2, 2)])
def test_groups_that_do_not_divide_the_weight_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(SchemeError, match="groups of 4 do not divide"):
        weight_qparams(weight(shape, 0), Scheme.parse("s8/group4/minmax"), where="head:weight")
