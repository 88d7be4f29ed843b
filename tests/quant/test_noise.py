"""NoisyQuant's theorem: closed form, sign, and dither, by Monte Carlo and by quadrature."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxquant.quant.noise import (
    added_error,
    expected_error,
    gaussian_code_noise,
    provable_share,
    provably_helped,
    reach,
    threshold_distance,
    uniform_noise,
)

B = 0.5  # half a step
DRAWS = 200_000
PINNED = [-0.5712418556213379, -0.7302861213684082]
SHARES = st.floats(0.0, 1.0)


def squared_error(values: torch.Tensor, step: float = 2 * B) -> torch.Tensor:
    """Of rounding to multiples of the step, from scratch."""
    return (values - torch.round(values / step) * step).square()


def at(distance: float) -> torch.Tensor:
    """A value that far from the nearest threshold, which here is ``3b`` off zero."""
    return torch.tensor(3 * B + distance, dtype=torch.float64)


@pytest.mark.parametrize("n", [0.05, 0.2, 0.5, 0.8, 1.3, 2.5])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 0.7, 1.0])
def test_the_expected_error_is_that_of_many_draws(n: float, share: float) -> None:
    x = share * B
    generator = torch.Generator().manual_seed(round(1000 * n + share * 10))
    noise = (torch.rand(DRAWS, generator=generator, dtype=torch.float64) * 2 - 1) * n
    drawn = squared_error(at(x) + noise)
    expected = float(expected_error(torch.tensor(x), n, B))
    deviation = float(drawn.std()) / math.sqrt(DRAWS)
    assert abs(float(drawn.mean()) - expected) <= 5 * deviation
    if x <= n <= 2 * B - x:
        added = float(drawn.mean()) - (B - x) ** 2
        assert abs(added - float(added_error(torch.tensor(x), n, B))) <= 5 * deviation


@given(SHARES, st.floats(0.01, 8.0), st.floats(0.1, 3.0))
def test_the_expected_error_is_an_integral(share: float, ratio: float, b: float) -> None:
    x, n = share * b, ratio * b

    def error(u: float) -> float:
        distance = abs((x + u + b) % (2 * b) - b)
        return (b - distance) ** 2

    # quadratic between multiples of b, where Simpson's rule is exact
    edges = [k * b - x for k in range(-10, 11) if -n < k * b - x < n]
    integral = sum(
        (high - low) / 6 * (error(low) + 4 * error((low + high) / 2) + error(high))
        for low, high in zip([-n, *edges], [*edges, n], strict=True)
    )
    found = float(expected_error(torch.tensor(x, dtype=torch.float64), n, b))
    assert found == pytest.approx(integral / (2 * n), rel=1e-6, abs=1e-9 * b * b)


@given(SHARES, SHARES, st.floats(0.1, 3.0))
def test_the_closed_form_is_the_exact_error_where_it_applies(
    share: float, place: float, b: float
) -> None:
    x = share * b
    n = max(x, 1e-3) + place * (2 * b - x - max(x, 1e-3))
    if n <= 1e-3:
        return
    wide = torch.tensor(x, dtype=torch.float64)
    added = float(expected_error(wide, n, b) - expected_error(wide, 0.0, b))
    assert added == pytest.approx(float(added_error(wide, n, b)), rel=1e-6, abs=1e-9 * b * b)


@given(st.floats(0.01, 1.33), st.floats(0.1, 3.0))
def test_the_sign_changes_at_the_reach(share: float, b: float) -> None:
    n = share * b
    edge = reach(n, b)
    assert edge == pytest.approx(n * (1 - math.sqrt(n / (3 * b))))
    sides = torch.tensor([edge - 1e-6 * b, edge + 1e-6 * b], dtype=torch.float64)
    below, above = added_error(sides, n, b).tolist()
    assert below < 0 < above
    applies = (sides >= 0) & (sides <= n) & (n <= 2 * b - sides)
    expected = applies & torch.tensor([True, False])
    assert provably_helped(sides, n, b).tolist() == expected.tolist()


def test_the_best_reach_is_four_ninths_of_b() -> None:
    reaches = [reach(share / 1000, 1.0) for share in range(1, 3000)]
    assert max(reaches) == pytest.approx(4 / 9, abs=1e-6)
    assert reaches.index(max(reaches)) + 1 == pytest.approx(4000 / 3, abs=1)
    x = torch.linspace(4 / 9 + 1e-3, 1.0, 50, dtype=torch.float64)
    for share in range(1, 300):
        gain = expected_error(x, share / 100, 1.0) - expected_error(x, 0.0, 1.0)
        assert float(gain.min()) > -1e-12


@given(SHARES, st.integers(1, 6), st.floats(0.1, 3.0))
def test_dither_of_whole_half_steps_has_the_error_of_a_uniform_one(
    share: float, k: int, b: float
) -> None:
    found = float(expected_error(torch.tensor(share * b, dtype=torch.float64), k * b, b))
    assert found == pytest.approx((2 * b) ** 2 / 12, rel=1e-9)


@given(st.floats(0.01, 3.0))
def test_over_values_spread_evenly_nothing_is_gained(n: float) -> None:
    x = (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096
    assert float(expected_error(x, n, 1.0).mean()) == pytest.approx(1 / 3, rel=1e-4)


def test_distances_and_shares() -> None:
    x = torch.tensor([0.0, 0.5, 0.7, -0.5, 1.25, 2.0])
    found = threshold_distance(x, 1.0)
    torch.testing.assert_close(found, torch.tensor([0.5, 0.0, 0.2, 0.0, 0.25, 0.5]))
    # reach(0.5, 0.5) = 0.211: both ties and 0.7
    assert provable_share(found, 0.5, 0.5) == pytest.approx(3 / 6)
    assert provable_share(found, 0.5, torch.full((6,), 0.5)) == pytest.approx(3 / 6)
    assert provable_share(found, 0.0, 0.5) == 0.0


def test_noise_is_the_same_for_one_seed_and_site_and_in_its_range() -> None:
    first = uniform_noise(4096, 0.3, 0, "blocks.0.mlp.fc2:input")
    assert first.dtype is torch.float32
    assert torch.equal(first, uniform_noise(4096, 0.3, 0, "blocks.0.mlp.fc2:input"))
    torch.testing.assert_close(
        first * 2, uniform_noise(4096, 0.6, 0, "blocks.0.mlp.fc2:input"), rtol=1e-6, atol=0
    )
    for other in (uniform_noise(4096, 0.3, 1, "blocks.0.mlp.fc2:input"), first.roll(1)):
        assert not torch.equal(first, other)
    assert not torch.equal(first, uniform_noise(4096, 0.3, 0, "blocks.1.mlp.fc2:input"))
    assert float(first.abs().max()) <= 0.3
    assert abs(float(first.mean())) <= 5 * 0.3 / math.sqrt(3 * 4096)
    assert float(first.var()) == pytest.approx(0.03, rel=0.1)
    # a value written down: the same in every process, on every day
    assert uniform_noise(2, 1.0, 0, "a:input").tolist() == pytest.approx(PINNED)


def test_the_authors_code_draws_a_gaussian_off_centre() -> None:
    made = gaussian_code_noise(20_000, 0.1, 3, "fc1:input")
    assert torch.equal(made, gaussian_code_noise(20_000, 0.1, 3, "fc1:input"))
    assert float(made.mean()) == pytest.approx(-0.1, abs=5 * 0.2 / math.sqrt(20_000))
    assert float(made.std()) == pytest.approx(0.2, rel=0.03)
    moved = gaussian_code_noise(20_000, 0.1, 3, "fc1:input", offset=0.25)
    torch.testing.assert_close(moved, made + 0.25)
