"""Ridge regression from moments, against least squares on the rows themselves."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import assume, given, settings
from torch import Tensor

from fxquant.quant.ridge import (
    Moments,
    best_bias,
    cross_validated,
    held_out_gain,
    joined,
    penalised,
    ridge_update,
)

F64 = torch.float64


def moments(x: Tensor, x_hat: Tensor) -> Moments:
    """By definition, row by row averages."""
    mean, exact = x_hat.mean(0), x.mean(0)
    centred, shift = x_hat - mean, (x - x_hat) - (exact - mean)
    rows = x.shape[0]
    return Moments(rows, mean, exact, centred.T @ centred / rows, centred.T @ shift / rows)


@st.composite
def layers(draw: st.DrawFn, rows: int = 40) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weight ``[O, C]``, bias, and rows ``[n, C]`` of exact and quantized inputs."""
    size, outputs = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    made = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=made, dtype=F64)

    x = normal(rows, size) @ normal(size, size) + draw(st.floats(-5, 5))
    step = draw(st.sampled_from([0.05, 0.5, 2.0]))
    x_hat = torch.round(x / step) * step + draw(st.floats(-1, 1))
    return normal(outputs, size), normal(outputs), x, x_hat


def error(x: Tensor, x_hat: Tensor, weight: Tensor, bias: Tensor, new: Tensor, at: Tensor) -> float:
    """Mean squared output error of weight ``new`` with bias ``at``."""
    return float((x @ weight.T + bias - x_hat @ new.T - at).square().sum(1).mean())


@given(layers(), st.sampled_from([1e-4, 0.01, 0.3, 10.0]))
def test_the_update_is_the_least_squares_solution_of_the_stacked_system(
    layer: tuple[Tensor, ...], strength: float
) -> None:
    weight, bias, x, x_hat = layer
    found = moments(x, x_hat)
    assume(found.level > 1e-9)  # with a constant input the intercept and δ say the same
    update = ridge_update(weight, found, strength)
    # [x̂ 1; sqrt(nλ) I 0] [δ; c] = [y - x̂ Wᵀ; 0], the intercept c free of the penalty.
    rows, size = x.shape
    penalty = (rows * strength * found.level) ** 0.5
    top = torch.cat([x_hat, torch.ones(rows, 1, dtype=F64)], 1)
    below = torch.cat([penalty * torch.eye(size, dtype=F64), torch.zeros(size, 1, dtype=F64)], 1)
    wanted = torch.cat([(x - x_hat) @ weight.T + bias, torch.zeros(size, len(bias), dtype=F64)])
    solution = torch.linalg.lstsq(torch.cat([top, below]), wanted, driver="gelsd").solution
    torch.testing.assert_close(update, solution[:-1].T, rtol=1e-6, atol=1e-8)
    intercept = best_bias(weight, bias, weight + update, found)
    torch.testing.assert_close(intercept, solution[-1], rtol=1e-6, atol=1e-8)


@given(layers())
def test_no_other_update_has_a_lower_penalised_error(layer: tuple[Tensor, ...]) -> None:
    weight, bias, x, x_hat = layer
    found, strength = moments(x, x_hat), 0.1
    update = ridge_update(weight, found, strength)

    def objective(delta: Tensor) -> float:
        at = best_bias(weight, bias, weight + delta, found)
        least = error(x, x_hat, weight, bias, weight + delta, at)
        return least + strength * found.level * float(delta.square().sum())

    least = objective(update)
    made = torch.Generator().manual_seed(0)
    for size in (1e-3, 0.1, 1.0):
        for _ in range(5):
            other = update + size * torch.randn(update.shape, generator=made, dtype=F64)
            assert objective(other) >= least * (1 - 1e-9)
    assert objective(torch.zeros_like(update)) >= least * (1 - 1e-9)


@given(layers())
def test_a_strong_penalty_leaves_the_weight_alone_and_exact_inputs_need_no_update(
    layer: tuple[Tensor, ...],
) -> None:
    weight, bias, x, x_hat = layer
    sizes = [
        float(ridge_update(weight, moments(x, x_hat), strength).norm())
        for strength in (1e-3, 1e-1, 10.0, 1e12)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] <= 1e-9 * (1 + float(weight.norm()) * 100)
    found = moments(x, x)
    assert float(ridge_update(weight, found, 0.1).abs().max()) == 0.0
    torch.testing.assert_close(best_bias(weight, bias, weight, found), bias)


@given(layers(), layers())
def test_the_best_bias_makes_the_mean_output_right(
    layer: tuple[Tensor, ...], other: tuple[Tensor, ...]
) -> None:
    weight, bias, x, x_hat = layer
    new = weight + other[0].mean()
    at = best_bias(weight, bias, new, moments(x, x_hat))
    drift = (x @ weight.T + bias - x_hat @ new.T - at).mean(0)
    assert float(drift.abs().max()) < 1e-9
    for away in (-0.1, 0.1):
        moved = error(x, x_hat, weight, bias, new, at + away)
        assert moved > error(x, x_hat, weight, bias, new, at)


@given(layers(rows=41), st.lists(st.integers(1, 12), min_size=1, max_size=5))
def test_moments_of_groups_join_to_those_of_all_rows(
    layer: tuple[Tensor, ...], sizes: list[int]
) -> None:
    _, _, x, x_hat = layer
    used = sum(sizes[:3])
    cuts = sizes[:3]
    parts = [
        moments(a, b) for a, b in zip(x[:used].split(cuts), x_hat[:used].split(cuts), strict=True)
    ]
    whole, direct = joined(parts), moments(x[:used], x_hat[:used])
    assert whole.rows == direct.rows
    for key in ("mean", "exact_mean", "covariance", "cross"):
        torch.testing.assert_close(getattr(whole, key), getattr(direct, key))


@given(layers(), layers(rows=17))
def test_the_held_out_gain_is_the_fall_of_the_error_on_other_rows(
    layer: tuple[Tensor, ...], more: tuple[Tensor, ...]
) -> None:
    weight, bias, x, x_hat = layer
    made = torch.Generator().manual_seed(1)
    other = torch.randn(23, x.shape[1], generator=made, dtype=F64) + more[2].mean()
    other_hat = torch.round(other)
    learned, held_out = moments(x, x_hat), moments(other, other_hat)
    update = ridge_update(weight, learned, 0.1)

    def left(new: Tensor) -> float:
        return error(other, other_hat, weight, bias, new, best_bias(weight, bias, new, learned))

    gain = held_out_gain(weight, update, learned, held_out)
    assert gain == pytest.approx(left(weight) - left(weight + update), rel=1e-6, abs=1e-8)


def noisy(images: int, signal: float) -> Iterator[Moments]:
    """Groups of rows with noise on the input: 12 channels of which the data fills one well."""
    made = torch.Generator().manual_seed(5)
    scales = torch.tensor([3.0, *[0.3] * 11], dtype=F64)
    for _ in range(4):
        x = torch.randn(images, 12, generator=made, dtype=F64) * scales
        noise = torch.randn(images, 12, generator=made, dtype=F64)
        yield moments(x, signal * x + 0.3 * noise)


def test_cross_validation_takes_what_helps_rows_it_has_not_seen() -> None:
    weight = torch.randn(3, 12, generator=torch.Generator().manual_seed(0), dtype=F64)
    strengths = (1e-6, 1e-3, 0.1, 1.0, 10.0, 100.0)
    few, many = list(noisy(6, 1.0)), list(noisy(4000, 1.0))
    chosen = cross_validated(weight, few, strengths), cross_validated(weight, many, strengths)
    assert chosen[1] is not None
    assert chosen[0] is None or chosen[0] > chosen[1]  # fewer rows, more caution
    gains = {}
    for strength in strengths:
        gains[strength] = 0.0
        for i, part in enumerate(few):
            learned = joined([p for j, p in enumerate(few) if j != i])
            update = ridge_update(weight, learned, strength)
            gains[strength] += held_out_gain(weight, update, learned, part)
    best = max(gains, key=gains.__getitem__)
    assert chosen[0] == (best if gains[best] > 0 else None)
    assert gains[1e-6] < 0 or chosen[0] == best


def test_cross_validation_declines_where_nothing_helps_or_nothing_can_be_held_out() -> None:
    weight = torch.randn(3, 12, generator=torch.Generator().manual_seed(0), dtype=F64)
    made = torch.Generator().manual_seed(2)
    # Noise that is independent of the quantized input: an update can only fit it by chance.
    parts = []
    for _ in range(4):
        x_hat = torch.randn(8, 12, generator=made, dtype=F64)
        parts.append(moments(x_hat + torch.randn(8, 12, generator=made, dtype=F64), x_hat))
    assert cross_validated(weight, parts, (1e-4, 1e-2)) is None
    assert cross_validated(weight, parts[:1], (0.1,)) is None
    assert cross_validated(weight, parts, ()) is None


@settings(max_examples=20)
@given(st.integers(1, 5), st.sampled_from([0.0, 1e-30, 1.0, 1e20]))
def test_constant_and_degenerate_inputs_have_a_solution(size: int, value: float) -> None:
    x = torch.full((9, size), value, dtype=F64)
    found = moments(x, x + 0.25)
    assert torch.equal(
        ridge_update(torch.ones(2, size, dtype=F64), found, 0.1), torch.zeros(2, size)
    )
    torch.linalg.cholesky(penalised(found.covariance, 0.0))
    column = torch.randn(9, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    same = column.expand(9, size).contiguous()
    torch.linalg.cholesky(penalised(moments(same, same).covariance, 0.0))
