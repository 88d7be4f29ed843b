"""How much noise is chosen: never worse, and strictly better exactly where the theorem says so."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fxquant import State
from fxquant.errors import PipelineError
from fxquant.passes.importance import by_loss
from fxquant.passes.noise import Noise
from fxquant.passes.noising.rewrite import image_of
from fxquant.passes.noising.search import (
    Amount,
    Found,
    Sample,
    best_offsets,
    drawn,
    noise_of,
    search,
    take_sample,
)
from fxquant.passes.noising.search import Noise as Kind
from fxquant.passes.noising.theory import provable_share
from fxquant.passes.stored import weight_value
from tests.backends.tiny import made, tensor
from tests.passes.noising import choices, noisy, quantized, sample_of, site_of

PLACE = "0:input"
GELU_FLOOR = -0.16997124


def linear(channels: int = 64, outputs: int = 24) -> nn.Module:
    return made(lambda: nn.Sequential(nn.Linear(channels, outputs)))


def state_for(rows: Tensor, scheme: str = "s6/tensor/minmax") -> State:
    """A quantized linear whose quantizer was calibrated on ``rows`` ``[images, rows, C]``."""
    return quantized(linear(rows.shape[-1]), rows, scheme=scheme)


def post_gelu(step: float, spike: float, *, seed: int = 0) -> Tensor:
    """``[8, 40, 64]``: two thirds at one value, the rest spread; symmetric 6 bits give ``step``."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(8, 40, 64, generator=generator) * 31 * step
    x = torch.where(torch.rand(x.shape, generator=generator) < 0.66, spike, x)
    x[0, 0, 0] = 31 * step
    return x


def found_for(
    sample: Sample, noise: Kind = "uniform", *, clips: bool = False, seed: int = 0, steps: int = 20
) -> Found:
    if noise == "searched":
        return search(
            sample, noise, lambda c: best_offsets(sample, c, steps), steps=steps, clips=clips
        )
    direction = drawn(noise, sample.site, seed)
    return search(sample, noise, lambda _: direction, steps=steps, clips=clips)


def whole_error(sample: Sample, noise: Tensor, clip: float = 1.0) -> float:
    return sum(sample.error(noise, clip, held_out=half) for half in (False, True))


@given(st.integers(0, 2**20), st.integers(1, 40), st.integers(1, 30))
def test_noise_cancels_exactly_without_a_quantizer(seed: int, channels: int, width: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, weight = (torch.randn(n, channels, generator=generator).double() for n in (7, width))
    bias, noise = (torch.randn(n, generator=generator).double() for n in (width, channels))
    before = x @ weight.t() + bias
    after = (x + noise) @ weight.t() + (bias - image_of(weight, noise))
    assert (before - after).abs().max() <= 1e-12 * max(1.0, float(before.abs().max()))


def test_the_image_of_a_float_weight_leaves_a_bias() -> None:
    """B' must come from the quantized weight (papers, 3d.1)."""
    torch.manual_seed(0)
    weight, noise = torch.randn(24, 64).double(), torch.rand(64).double() - 0.5
    step = weight.abs().amax(1, keepdim=True) / 7
    stored = torch.round(weight / step) * step
    x = torch.randn(50, 64).double()
    right = (x + noise) @ stored.t() - image_of(stored, noise) - x @ stored.t()
    wrong = (x + noise) @ stored.t() - image_of(weight, noise) - x @ stored.t()
    assert right.abs().max() < 1e-12
    torch.testing.assert_close(wrong.mean(0), (stored - weight) @ noise)
    assert wrong.mean(0).abs().max() > 1e-2


@pytest.mark.parametrize("noise", ["uniform", "gaussian_code", "searched"])
@pytest.mark.parametrize("scheme", ["s4/tensor/minmax", "a6/tensor/minmax", "region_6/tensor/mse"])
def test_the_search_is_never_worse_than_no_noise(noise: Kind, scheme: str) -> None:
    x = torch.nn.functional.gelu(tensor(6, 30, 16) * 2)
    sample = sample_of(state_for(x, scheme), PLACE, x)
    nothing = torch.zeros(16)
    before = whole_error(sample, nothing)
    for seed in range(3):
        found = found_for(sample, noise, clips=noise != "gaussian_code", seed=seed, steps=2)
        assert found.before == pytest.approx(before, rel=1e-12)
        assert found.after <= before
        assert whole_error(sample, found.noise, found.amount.clip) == pytest.approx(found.after)
        for half in (False, True):
            with_noise = sample.error(found.noise, found.amount.clip, held_out=half)
            assert with_noise <= sample.error(nothing, 1.0, held_out=half)


def test_a_spike_near_a_threshold_profits_and_one_on_a_code_does_not() -> None:
    step = abs(GELU_FLOOR) / 3.5  # -0.17 right between two codes
    near = post_gelu(step, GELU_FLOOR)
    sample = sample_of(state_for(near), PLACE, near)
    assert sample.site.step == pytest.approx(step)
    found = found_for(sample)
    assert found.after < 0.75 * found.before
    assert found.amount.n > 0.5 * step
    assert provable_share(sample, 0.75 * step, 1.0) > 0.6
    assert provable_share(sample, found.amount.n, 1.0) > 0.6
    step = abs(GELU_FLOOR) / 3
    on = post_gelu(step, GELU_FLOOR)
    sample = sample_of(state_for(on), PLACE, on)
    found = found_for(sample)
    assert found.amount == Amount()
    assert found.before == found.after
    assert provable_share(sample, step, 1.0) < 0.15


def test_without_structure_classical_dither_neither_helps_nor_hurts() -> None:
    """With n = k step / 2 the expected error is step^2 / 12 whatever the data (papers, 3b)."""
    step = 0.25
    for spike in (0.0, 0.1, 0.125):
        x = torch.full((4, 50, 4096), spike)
        x[0, 0, 0] = 31 * step
        state = state_for(x)
        sample = sample_of(state, PLACE, x)
        direction = drawn("uniform", sample.site, 0)
        for multiple in (1, 2, 4):
            noise = noise_of(Amount(multiple * step / 2), lambda _, d=direction: d)  # type: ignore[misc]
            error = sample.deviation(x[1], noise, 1.0).square().mean()
            assert float(error) == pytest.approx(step**2 / 12, rel=0.06)


def test_a_draw_that_fits_one_half_only_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    x = tensor(8, 30, 64)
    sample = sample_of(state_for(x), PLACE, x)
    inside = Sample.error

    def flattering(self: Sample, noise: Tensor, clip: float, *, held_out: bool) -> float:
        honest = inside(self, torch.zeros_like(noise), 1.0, held_out=held_out)
        worse = 1.1 if held_out else 0.5
        return honest * (worse if bool(noise.any()) else 1.0)

    monkeypatch.setattr(Sample, "error", flattering)
    assert found_for(sample).amount == Amount()


def test_rows_are_held_out_image_by_image() -> None:
    x = torch.arange(6.0)[:, None, None].expand(6, 10, 8) / 6
    sample = sample_of(state_for(x), PLACE, x)
    assert sample.rows[sample.held_out].unique().mul(6).round().tolist() == [1.0, 3.0, 5.0]
    assert sample.rows[~sample.held_out].unique().mul(6).round().tolist() == [0.0, 2.0, 4.0]
    alone = sample_of(state_for(x), PLACE, x[1:2])
    assert int(alone.held_out.sum()) == 5


def test_a_wide_weight_is_replaced_by_a_factor_with_the_same_norms() -> None:
    x = tensor(2, 20, 8)
    state = quantized(made(lambda: nn.Sequential(nn.Linear(8, 40))), x)
    sample = sample_of(state, PLACE, x)
    assert sample.weight.shape == (8, 8)
    weight = weight_value(state.graph, site_of(state, PLACE).readers[0].node)
    assert weight is not None
    direct = (sample.rows.double() @ weight.double().t()).square().sum()
    assert sample.signal == pytest.approx(float(direct), rel=1e-5)


def test_searched_offsets_put_every_channel_where_it_rounds_best() -> None:
    step = 0.25
    spots = torch.linspace(0, step, 17)[:16]
    x = spots.expand(8, 20, 16).clone()
    x[0, 0, 0] = 31 * step
    sample = sample_of(state_for(x), PLACE, x)
    offsets = best_offsets(sample, 1.0, 40) * sample.site.step
    moved = sample.deviation(x[1], offsets, 1.0).abs().amax(0)
    assert moved.max() <= step / 40
    drawn_at_random = found_for(sample)
    chosen = found_for(sample, "searched")
    assert chosen.after < 0.2 * drawn_at_random.after


def test_gaussian_code_searches_an_offset_and_then_a_range() -> None:
    step = abs(GELU_FLOOR) / 3.5
    x = post_gelu(step, GELU_FLOOR)
    sample = sample_of(state_for(x), PLACE, x)
    draw = drawn("gaussian_code", sample.site, 0)
    assert draw.mean() == pytest.approx(-1.0, abs=0.8)
    assert draw.std() == pytest.approx(2.0, abs=0.6)
    found = found_for(sample, "gaussian_code", steps=4)
    assert abs(found.amount.offset) == pytest.approx(step / 2, rel=0.1)
    assert found.after < 0.2 * found.before
    torch.testing.assert_close(found.noise, found.amount.offset + found.amount.n * draw)


def test_draws_depend_on_seed_and_site_alone() -> None:
    x = tensor(4, 10, 64)
    site = site_of(state_for(x), PLACE)
    first = drawn("uniform", site, 0)
    assert torch.equal(first, drawn("uniform", site, 0))
    assert not torch.equal(first, drawn("uniform", site, 1))
    assert first.abs().max() <= 1.0
    assert first.dtype is torch.float32
    two = quantized(made(lambda: nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))), x)
    assert torch.equal(drawn("uniform", site_of(two, PLACE), 0), first)
    assert not torch.equal(drawn("uniform", site_of(two, "2:input"), 0), first)


def test_the_centred_error_forgives_a_constant() -> None:
    x = tensor(4, 30, 16)
    state = state_for(x)
    plain, centred = (sample_of(state, PLACE, x, centred=c) for c in (False, True))
    nothing = torch.zeros(16)
    assert whole_error(centred, nothing) < whole_error(plain, nothing)
    shifted = torch.full_like(x, 0.3) * centred.site.step
    shifted[0, 0, 0] = x.max()
    constant = sample_of(state, PLACE, shifted[1:], centred=True)
    assert whole_error(constant, nothing) < 1e-6
    assert whole_error(sample_of(state, PLACE, shifted[1:]), nothing) > 1e-3


def test_rows_that_the_loss_does_not_hang_on_count_for_nothing() -> None:
    """Only the first token of each image reaches the head: the other rows of fc weigh nothing."""

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.head = nn.Linear(16, 16), nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(torch.tanh(self.fc(x))[:, 0])
            return out

    x = tensor(8, 10, 16)
    state = quantized(made(First), x)
    site = site_of(state, "fc:input")
    found = by_loss(state.float_graph, (x,), [reader.layer for reader in site.readers])
    counts = next(iter(found.values()))
    assert counts.shape == (80,)
    assert (counts.reshape(8, 10)[:, 1:] == 0).all()
    assert (counts.reshape(8, 10)[:, 0] > 0).all()
    kept = take_sample(state.graph, site, x, images=8, rows=8, importance=counts)
    assert torch.equal(kept.rows, x[:, 0])
    assert kept.importance.mean() == pytest.approx(1.0)
    whole = take_sample(state.graph, site, x, images=8, rows=80, importance=counts)
    assert whole.signal / 80 == pytest.approx(kept.signal / 8, rel=1e-3)
    after = noisy(state, objective="fisher", noise="searched")
    for choice in choices(after.plan).values():
        assert choice["error_after"] <= choice["error_before"]
    dead = take_sample(state.graph, site, x, images=8, rows=80, importance=torch.zeros(80))
    assert (dead.importance == 1.0).all()


def test_a_region_quantizer_has_two_widths_to_search_by() -> None:
    x = torch.nn.functional.gelu(tensor(6, 40, 16) * 2)
    state = state_for(x, "region_6/tensor/mse")
    site = site_of(state, PLACE)
    assert site.widths[0] == 1.0
    assert site.widths[1] in {2.0**m for m in range(1, 9)}


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"images": 0}, "images must be at least 1"),
        ({"rows": 0}, "rows must be at least 1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"seed": -1}, "seed must lie"),
        ({"noise": "gaussian_code", "clip": "search"}, "keeps the step"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], what: str) -> None:
    with pytest.raises(PipelineError, match=what):
        Noise(**options)  # type: ignore[arg-type]
