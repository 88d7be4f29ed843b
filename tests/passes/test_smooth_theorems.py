"""The fold's theorems on plain tensors: equivalence, centring, limits of alpha, RepQ's codes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxquant.passes.folding.migration import (
    NARROWEST,
    Migration,
    channel_quantizers,
    common_quantizer,
    osplus,
    repq,
    sqb,
    unchanged,
)
from fxquant.passes.folding.rewrite import folded_linear, folded_norm
from fxquant.passes.folding.views import View, joined
from fxquant.quant.qparams import qparams_from_range
from fxquant.quant.scheme import Scheme

SYMMETRIC = Scheme(bits=8, symmetric=True)
seeds = st.integers(0, 2**31 - 1)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uneven(seed: int, rows: int, channels: int) -> Tensor:
    """float64 rows whose channels differ in centre and spread by orders of magnitude."""
    g = generator(seed)
    spread = torch.exp(2 * torch.randn(channels, generator=g, dtype=torch.float64))
    centre = 3 * torch.randn(channels, generator=g, dtype=torch.float64)
    return torch.randn(rows, channels, generator=g, dtype=torch.float64).exp() * spread + centre


def seen(rows: Tensor) -> View:
    return View(rows.amin(0), rows.amax(0), rows.mean(0), rows.float(), rows.shape[0])


def applied(rows: Tensor, migration: Migration) -> Tensor:
    return (rows - migration.shift) * migration.scale


def reach(rows: Tensor) -> Tensor:
    return rows.abs().amax(0)


@given(
    seeds,
    st.integers(1, 24),
    st.integers(0, 1),
    st.integers(0, 1),
    st.integers(1, 3),
    st.sampled_from([torch.float64, torch.float32]),
)
def test_the_function_stays_for_any_shift_and_scale(
    seed: int, channels: int, with_beta: int, with_bias: int, readers: int, dtype: torch.dtype
) -> None:
    g = generator(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    x, gamma = normal(5, channels), normal(channels)
    beta = normal(channels) if with_beta else None
    migration = Migration(3 * normal(channels).double(), (1.5 * normal(channels).double()).exp())
    moved = F.layer_norm(x, (channels,), *folded_norm(gamma, beta, migration))
    y = F.layer_norm(x, (channels,), gamma, beta)
    for _ in range(readers):
        weight, bias = normal(4, channels), normal(4) if with_bias else None
        new_weight, new_bias = folded_linear(weight, bias, migration)
        assert new_bias is not None
        assert new_weight.dtype == new_bias.dtype == dtype
        # relative to what the sums add up, shift included: the values may cancel
        size = y.abs() @ weight.abs().t() + (migration.shift.abs().to(dtype) @ weight.abs().t())
        error = F.linear(moved, new_weight, new_bias) - F.linear(y, weight, bias)
        assert bool((error.abs() <= (1e-13 if dtype is torch.float64 else 1e-5) * (size + 4)).all())


@given(seeds, st.lists(st.integers(-8, 8), min_size=1, max_size=16), st.integers(0, 1))
def test_powers_of_two_scale_bit_for_bit(seed: int, exponents: list[int], with_bias: int) -> None:
    g, channels = generator(seed), len(exponents)
    x, gamma, beta = (torch.randn(3, channels, generator=g), *torch.randn(2, channels, generator=g))
    weight = torch.randn(4, channels, generator=g)
    bias = torch.randn(4, generator=g) if with_bias else None
    scale = torch.tensor([2.0**e for e in exponents], dtype=torch.float64)
    migration = Migration(torch.zeros_like(scale), scale)
    new_gamma, new_beta = folded_norm(gamma, beta, migration)
    new_weight, new_bias = folded_linear(weight, bias, migration)
    assert new_bias is bias
    y = F.layer_norm(x, (channels,), gamma, beta)
    moved = F.layer_norm(x, (channels,), new_gamma, new_beta)
    assert torch.equal(moved, y * scale.float())
    assert torch.equal(F.linear(moved, new_weight, new_bias), F.linear(y, weight, bias))


def test_nothing_is_made_where_nothing_moves() -> None:
    still = unchanged(4)
    gamma, weight = torch.randn(4), torch.randn(2, 4)
    assert folded_norm(gamma, None, still)[1] is None
    assert torch.equal(folded_norm(gamma, None, still)[0], gamma)
    assert folded_linear(weight, None, still)[1] is None
    assert torch.equal(folded_linear(weight, None, still)[0], weight)


@given(seeds, st.integers(2, 40), st.integers(1, 24), st.floats(0.0, 1.0))
def test_mean_centring_leaves_no_mean_and_midrange_balances_the_ends(
    seed: int, rows: int, channels: int, alpha: float
) -> None:
    y = uneven(seed, rows, channels)
    columns = torch.rand(channels, generator=generator(seed), dtype=torch.float64) + 0.01
    centred = applied(y, sqb(seen(y), columns, alpha, "mean"))
    assert bool((centred.mean(0).abs() <= 1e-6 * reach(centred)).all())
    for migration in (sqb(seen(y), columns, alpha, "midrange"), osplus(seen(y), 1.0)):
        even = applied(y, migration)
        assert bool(((even.amax(0) + even.amin(0)).abs() <= 1e-9 * reach(even)).all())
    plain = sqb(seen(y), columns, alpha, "none")
    assert not bool(plain.shift.any())


def symmetric_step(y: Tensor) -> float:
    return float(qparams_from_range(SYMMETRIC, y.amin(), y.amax()).scale)


@given(seeds, st.integers(2, 40), st.integers(1, 24))
def test_midrange_never_widens_a_symmetric_step(seed: int, rows: int, channels: int) -> None:
    y = uneven(seed, rows, channels)
    view = seen(y)
    centred = y - osplus(view, 1.0).shift
    assert symmetric_step(centred) <= symmetric_step(y) * (1 + 1e-6)


def test_the_mean_can_widen_it() -> None:
    """One value far on one side: the mean of the others lies far on the other side of zero."""
    y = torch.tensor([[10.0], [-9.0], [-9.0], [-9.0], [-9.0]], dtype=torch.float64)
    shift = sqb(seen(y), torch.ones(1, dtype=torch.float64), 1.0, "mean").shift
    assert symmetric_step(y - shift) > 1.5 * symmetric_step(y)
    middle = sqb(seen(y), torch.ones(1, dtype=torch.float64), 1.0, "midrange").shift
    assert symmetric_step(y - middle) < symmetric_step(y)


@given(seeds, st.integers(1, 3))
def test_the_limits_of_alpha(seed: int, readers: int) -> None:
    """alpha = 0 evens out the weights' columns over all readers, alpha = 1 the activations."""
    y = uneven(seed, 20, 8)
    weights = [uneven(seed + i + 1, 5, 8) for i in range(readers)]
    columns = torch.stack([reach(w) for w in weights]).amax(0)
    none = sqb(seen(y), columns, 0.0, "none")
    heaviest = torch.stack([reach(w / none.scale) for w in weights]).amax(0)
    torch.testing.assert_close(heaviest, torch.ones_like(heaviest))
    for center in ("mean", "midrange", "none"):
        full = sqb(seen(y), columns, 1.0, center)
        torch.testing.assert_close(reach(applied(y, full)), torch.ones_like(heaviest))


@given(seeds, st.floats(0.0, 1.0))
def test_between_the_limits_both_sides_meet(seed: int, alpha: float) -> None:
    """``max|Y'| = max|Y|^(1-a) max|W|^(1-a)`` and ``max|W'| = max|Y|^a max|W|^a`` per channel."""
    y, weight = uneven(seed, 20, 8), uneven(seed + 1, 5, 8)
    migration = sqb(seen(y), reach(weight), alpha, "none")
    product = reach(y) * reach(weight)
    torch.testing.assert_close(reach(applied(y, migration)), product ** (1 - alpha))
    torch.testing.assert_close(reach(weight / migration.scale), product**alpha)


def test_dead_channels_and_dead_columns_keep_finite_scales() -> None:
    y, columns = torch.zeros(4, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    y[:, 1] = 5.0
    for alpha in (0.0, 0.5, 1.0):
        for center in ("mean", "none"):
            scale = sqb(seen(y), columns, alpha, center).scale
            assert bool(torch.isfinite(scale).all())
            assert bool((scale > 0).all())
            assert float(scale.max()) <= 1e5 * (1 + 1e-12)
    assert bool(torch.isfinite(osplus(seen(y), 1e-3).scale).all())
    step, zero_point = channel_quantizers(y, 8)
    migration = repq(step, zero_point, common_quantizer(step, zero_point, 8))
    assert bool((torch.isfinite(migration.scale) & torch.isfinite(migration.shift)).all())


@given(seeds, st.floats(0.05, 0.95))
def test_osplus_scales_only_what_reaches_beyond_the_threshold(seed: int, share: float) -> None:
    y = uneven(seed, 20, 12)
    half = (y.amax(0) - y.amin(0)) / 2
    threshold = float(half.max()) * share
    migration = osplus(seen(y), threshold)
    beyond = half > threshold
    assert bool((migration.scale[~beyond] == 1).all())
    torch.testing.assert_close(
        reach(applied(y, migration))[beyond], torch.full_like(half, threshold)[beyond]
    )


def codes(y: Tensor, step: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Round, add the zero point, clip: papers, section 0."""
    return (torch.round(y / step + 0) + zero_point).clamp(0, (1 << bits) - 1)


def best_pair(rows: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The same choice one channel at a time, errors and all, from numpy-like quantiles."""
    top, found = (1 << bits) - 1, []
    for channel in rows.t():
        candidates = []
        for p in (0.999, 0.9999, 0.99999):
            ordered = channel.sort().values
            at = [q * (len(ordered) - 1) for q in (1 - p, p)]
            low, high = (
                torch.lerp(ordered[int(a)], ordered[min(int(a) + 1, len(ordered) - 1)], a - int(a))
                for a in at
            )
            s = (high - low) / top
            z = torch.round(-low / s)
            quantized = s * (codes(channel, s, z, bits) - z)
            candidates.append((float((channel - quantized).square().sum()), s, z))
        found.append(min(candidates, key=lambda c: c[0])[1:])
    return torch.stack([s for s, _ in found]), torch.stack([z for _, z in found])


@given(seeds, st.sampled_from([4, 6, 8]))
def test_channel_quantizers_are_those_of_the_best_percentile_pair(seed: int, bits: int) -> None:
    rows = uneven(seed, 64, 6)
    step, zero_point = channel_quantizers(rows, bits)
    best, best_zero_point = best_pair(rows, bits)
    wide = best >= NARROWEST * best.median()
    torch.testing.assert_close(step[wide], best[wide], rtol=1e-9, atol=1e-9)
    assert torch.equal(zero_point[wide], best_zero_point[wide])


def test_a_channel_that_hardly_moves_gets_the_smallest_step_around_its_values() -> None:
    rows = uneven(3, 200, 6)
    rows[:, 2] = 5.0 + 1e-7 * rows[:, 2]
    step, zero_point = channel_quantizers(rows, 4)
    wide = torch.tensor([0, 1, 3, 4, 5])
    assert float(step[2]) == pytest.approx(NARROWEST * float(step.median()))
    assert bool((step[wide] > step[2]).all())
    middle = step[2] * (7.5 - zero_point[2])
    assert abs(float(middle) - 5.0) <= 0.5001 * float(step[2])


def folded_codes(y: Tensor, seed: int, bits: int, *, integral: bool) -> tuple[Tensor, Tensor]:
    """Codes of each channel's own quantizer, and of one quantizer after the fold into a norm."""
    step, zero_point = channel_quantizers(y, bits)
    common = common_quantizer(step, zero_point, bits)
    if not integral:
        common = (step.mean(), zero_point.mean())
    migration = repq(step, zero_point, common)
    g = generator(seed)
    normed = torch.randn(y.shape, generator=g, dtype=torch.float64)
    gamma, beta = torch.ones(y.shape[1], dtype=torch.float64), (y - normed)[0]
    values = normed * gamma + beta
    new_gamma, new_beta = folded_norm(gamma, beta, migration)
    assert new_beta is not None
    own = codes(values, step, zero_point, bits)
    return own, codes(normed * new_gamma + new_beta, common[0], common[1], bits)


@given(seeds, st.sampled_from([4, 6, 8]))
def test_repq_gives_the_same_codes_with_one_quantizer_per_tensor(seed: int, bits: int) -> None:
    own, common = folded_codes(uneven(seed, 200, 16), seed, bits, integral=True)
    assert torch.equal(own, common)


def test_repq_with_the_plain_mean_of_the_zero_points_gives_other_codes() -> None:
    own, common = folded_codes(uneven(1, 200, 16), 1, 8, integral=False)
    assert not torch.equal(common, common.round())  # no codes at all
    assert float((own == common.round()).double().mean()) < 0.99


def test_repq_keeps_the_function_too() -> None:
    y, weight = uneven(3, 50, 8), uneven(4, 5, 8)
    step, zero_point = channel_quantizers(y, 8)
    migration = repq(step, zero_point, common_quantizer(step, zero_point, 8))
    new_weight, new_bias = folded_linear(weight, None, migration)
    assert new_bias is not None
    # the paper's own form: r1 = s / mean s, r2 = z - round(mean z)
    r1, r2 = step / step.mean(), zero_point - zero_point.mean().round().clamp(0, 255)
    torch.testing.assert_close(new_weight, weight * r1)
    torch.testing.assert_close(new_bias, -weight @ (step * r2))
    torch.testing.assert_close(applied(y, migration), (y + step * r2) / r1)
    torch.testing.assert_close(applied(y, migration) @ new_weight.t() + new_bias, y @ weight.t())


def test_views_join_into_what_all_rows_show() -> None:
    parts = [uneven(seed, 10 * (seed + 1), 4) for seed in range(3)]
    whole, together = seen(torch.cat(parts)), joined([seen(p) for p in parts])
    for name in ("low", "high", "mean", "rows", "count"):
        torch.testing.assert_close(getattr(together, name), getattr(whole, name))
    one = seen(parts[0])
    assert joined([one, one]) is one
