"""Rounding in which later columns make up for earlier ones."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import assume, given
from torch import Tensor

from fxquant.quant.compensate import Grid, halves, refine, round_compensating
from fxquant.quant.ridge import penalised, weighted_error

F64 = torch.float64


@st.composite
def problems(draw: st.DrawFn, most: int = 9) -> tuple[Tensor, Tensor, Grid]:
    """A weight ``[O, C]``, a covariance of correlated inputs, and a grid that may clip."""
    size, outputs = draw(st.integers(1, most)), draw(st.integers(1, 4))
    made = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    weight = torch.randn(outputs, size, generator=made, dtype=F64)
    rows = torch.randn(3 * size, size, generator=made, dtype=F64)
    rows += draw(st.sampled_from([0.0, 1.0, 5.0])) * rows[:, :1]
    bits = draw(st.integers(2, 5))
    top = weight.abs().amax(1, keepdim=True).clamp(min=0.1) * draw(st.sampled_from([1.0, 0.6]))
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    grid = Grid((top / high).expand(weight.shape).contiguous(), low, high)
    return weight, rows.T @ rows / len(rows), grid


def nearest(weight: Tensor, grid: Grid) -> Tensor:
    return grid.nearest(weight, torch.arange(weight.shape[1]))


def loss(weight: Tensor, codes: Tensor, grid: Grid, covariance: Tensor) -> Tensor:
    return weighted_error(codes * grid.step - weight, covariance)


def by_ridge_regressions(
    weight: Tensor, covariance: Tensor, grid: Grid, sizes: tuple[int, ...], damping: float
) -> Tensor:
    """The same, with a ridge regression solved anew for every block."""
    damped = penalised(covariance, damping)
    order = torch.argsort(damped.diagonal(), descending=True, stable=True)
    weight, codes, left = weight.clone(), torch.empty_like(weight), order
    for size in sizes:
        block, left = left[:size], left[size:]
        inside = damped[block][:, block]
        remains = damped[left][:, left]
        meeting = damped[block][:, left]
        make_up = torch.linalg.solve(remains, meeting.T).T  # Σ_sr Σ_rr⁻¹
        local = Grid(grid.step[:, block], grid.low, grid.high)
        found = grid.nearest(weight[:, block], block)
        if size > 1:
            found = refine(weight[:, block], found, inside - make_up @ meeting.T, local)
        codes[:, block] = found
        weight[:, left] += (weight[:, block] - found * local.step) @ make_up
    return codes


@given(problems(), st.sampled_from([0.01, 0.5]), st.sampled_from(["columns", "halves", "pairs"]))
def test_one_factorization_does_what_a_ridge_regression_per_block_does(
    problem: tuple[Tensor, Tensor, Grid], damping: float, mode: str
) -> None:
    weight, covariance, grid = problem
    size = weight.shape[1]
    sizes = {
        "columns": (1,) * size,
        "halves": halves(size),
        "pairs": (2,) * (size // 2) + (1,) * (size % 2),
    }[mode]
    found = round_compensating(weight, covariance, grid, sizes, damping=damping)
    wanted = by_ridge_regressions(weight, covariance, grid, sizes, damping)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("sizes", [(1,) * 300, halves(300), (100, 100, 100), (127, 2, 171)])
def test_many_columns_are_carried_over_in_batches_without_loss(sizes: tuple[int, ...]) -> None:
    made = torch.Generator().manual_seed(0)
    mix = torch.randn(300, 300, generator=made, dtype=F64) / 300**0.5
    rows = torch.randn(1000, 300, generator=made, dtype=F64) @ mix
    covariance = rows.T @ rows / 1000
    weight = torch.randn(3, 300, generator=made, dtype=F64)
    grid = Grid(torch.full_like(weight, 0.4), -8, 7)
    found = round_compensating(weight, covariance, grid, sizes, damping=0.01)
    assert torch.equal(found, by_ridge_regressions(weight, covariance, grid, sizes, 0.01))


@given(problems(), st.sampled_from([1e-3, 0.1, 10.0]), st.sampled_from(["columns", "halves"]))
def test_a_diagonal_covariance_means_rounding_to_nearest_which_is_the_best_there_is(
    problem: tuple[Tensor, Tensor, Grid], damping: float, mode: str
) -> None:
    weight, covariance, grid = problem
    diagonal = torch.diag(covariance.diagonal())
    size = weight.shape[1]
    sizes = halves(size) if mode == "halves" else (1,) * size
    found = round_compensating(weight, diagonal, grid, sizes, damping=damping)
    assert torch.equal(found, nearest(weight, grid))


@given(problems(4))
def test_the_last_column_is_the_best_for_what_came_before(
    problem: tuple[Tensor, Tensor, Grid],
) -> None:
    weight, covariance, grid = problem
    damped = penalised(covariance, 0.01)
    size = weight.shape[1]
    found = round_compensating(weight, covariance, grid, (1,) * size, damping=0.01)
    last = int(torch.argsort(damped.diagonal(), descending=True, stable=True)[-1])
    least = loss(weight, found, grid, damped)
    for code in range(grid.low, grid.high + 1):
        other = found.clone()
        other[:, last] = code
        assert bool((loss(weight, other, grid, damped) >= least * (1 - 1e-9) - 1e-12).all())


@given(problems(3))
def test_brute_force_bounds_the_error_and_a_single_column_reaches_it(
    problem: tuple[Tensor, Tensor, Grid],
) -> None:
    weight, covariance, grid = problem
    size = weight.shape[1]
    damped = penalised(covariance, 0.01)
    codes = range(grid.low, grid.high + 1)
    every = torch.tensor(list(itertools.product(codes, repeat=size)), dtype=F64)
    best = torch.stack(
        [
            loss(row, every, Grid(step, 0, 0), damped).min()
            for row, step in zip(weight, grid.step, strict=True)
        ]
    )
    for sizes in ((1,) * size, halves(size), (size,)):
        found = loss(
            weight, round_compensating(weight, covariance, grid, sizes, damping=0.01), grid, damped
        )
        assert bool((found >= best * (1 - 1e-9) - 1e-12).all())
        if size == 1:
            torch.testing.assert_close(found, best)


@given(problems(), st.sampled_from(["zero", "nearest"]))
def test_refining_never_raises_the_error_of_any_row(
    problem: tuple[Tensor, Tensor, Grid], start_at: str
) -> None:
    weight, covariance, grid = problem
    start = torch.zeros_like(weight) if start_at == "zero" else nearest(weight, grid)
    found = refine(weight, start, covariance, grid)
    before, after = (loss(weight, codes, grid, covariance) for codes in (start, found))
    assert bool((after <= before * (1 + 1e-12)).all())
    assert bool((found >= grid.low).all() and (found <= grid.high).all())
    assert torch.equal(found, found.round())
    # At the end no single move by one code helps (few columns: far fewer moves than the limit).
    for row, column, move in itertools.product(*map(range, weight.shape), (-1, 1)):
        other = found.clone()
        other[row, column] += move
        if grid.low <= other[row, column] <= grid.high:
            moved = loss(weight, other, grid, covariance)[row]
            assert moved >= after[row] * (1 - 1e-9) - 1e-12


@pytest.mark.parametrize("mode", ["columns", "halves"])
@pytest.mark.parametrize("seed", range(5))
def test_correlated_inputs_gain_over_rounding_to_nearest(mode: str, seed: int) -> None:
    made = torch.Generator().manual_seed(seed)
    mix = torch.randn(64, 64, generator=made, dtype=F64) / 8
    rows = torch.randn(2000, 64, generator=made, dtype=F64) @ mix
    covariance = rows.T @ rows / 2000
    weight = torch.randn(8, 64, generator=made, dtype=F64)
    top = weight.abs().amax(1, keepdim=True)
    grid = Grid((top / 7).expand(weight.shape).contiguous(), -8, 7)
    sizes = halves(64) if mode == "halves" else (1,) * 64
    found = round_compensating(weight, covariance, grid, sizes, damping=0.01)
    plain = loss(weight, nearest(weight, grid), grid, covariance).sum()
    assert float(loss(weight, found, grid, covariance).sum()) < 0.75 * float(plain)


@given(st.integers(1, 3000))
def test_halves_are_half_of_what_is_left_down_to_one(columns: int) -> None:
    sizes = halves(columns)
    assert sum(sizes) == columns
    left = columns
    for size in sizes:
        assert size == max(1, left // 2)
        left -= size
    assert sizes[-1] == 1


@given(problems())
def test_weights_on_the_grid_are_left_there(problem: tuple[Tensor, Tensor, Grid]) -> None:
    weight, covariance, grid = problem
    exact = nearest(weight, grid)
    assume(weight.shape[1] > 1)
    for sizes in ((1,) * weight.shape[1], halves(weight.shape[1])):
        found = round_compensating(exact * grid.step, covariance, grid, sizes, damping=0.01)
        assert torch.equal(found, exact)
