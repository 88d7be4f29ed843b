"""Searches against exhaustive ones written from the definition."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxquant.errors import CalibrationError, FxquantError, InputError, SchemeError
from fxquant.quant.logarithm import GELU_OFFSET
from fxquant.quant.qparams import qparams_from_range
from fxquant.quant.quantizer import fake_quantize
from fxquant.quant.scheme import Scheme
from fxquant.quant.search import Found, find, search_qparams

SEEDS = st.integers(0, 2**32 - 1)
GRID = np.linspace(0.01, 1.2, 100)
# The explain phase traces every line: a search takes a hundred times as long under it.
few = settings(max_examples=8, phases=(Phase.explicit, Phase.generate, Phase.shrink))


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def after_gelu(seed: int, rows: int = 90, channels: int = 8) -> Tensor:
    return F.gelu(normal(seed, rows, channels) * torch.linspace(0.5, 4.0, channels))


def after_softmax(seed: int, *shape: int) -> Tensor:
    return torch.softmax(3 * normal(seed, *shape), -1)


def searched(text: str, x: Tensor, **consumer: Tensor) -> Found:
    return find(Scheme.parse(text), x, low=x.min(), high=x.max(), **consumer)


def mean_error(x: Tensor, made: Tensor, weight: Tensor | None, importance: Tensor | None) -> float:
    error = (x - made).numpy().astype(np.float64)
    if weight is not None:
        error = error @ weight.numpy().astype(np.float64).T
    squares = error**2 if importance is None else error**2 * importance.numpy()
    return float(squares.mean())


def consumer_of(rule: str, seed: int, x: Tensor, outputs: int) -> dict[str, Tensor]:
    made = {}
    if rule != "mse":
        made["output"] = normal(seed + 1, outputs, x.shape[1])
    if rule == "fisher":
        made["importance"] = normal(seed + 2, x.shape[0], outputs).square()
    return made


@few
@given(
    seed=SEEDS,
    kind=st.sampled_from(["s4", "a4", "a8", "region_4", "log2_4", "log_sqrt2_4", "adalog_3"]),
    rule=st.sampled_from(["mse", "output", "fisher"]),
    outputs=st.sampled_from([5, 20]),
)
def test_the_errors_are_what_the_rule_says_and_never_above_the_plain_one(
    *, seed: int, kind: str, rule: str, outputs: int
) -> None:
    x = after_gelu(seed)
    consumer = consumer_of(rule, seed, x, outputs)
    found = searched(f"{kind}/tensor/{rule}", x, **consumer)
    made = fake_quantize(x, found.qparams)
    truth = mean_error(x, made, consumer.get("output"), consumer.get("importance"))
    assert found.error == pytest.approx(truth, rel=1e-3)
    assert found.error <= found.plain_error
    plain = searched(f"{kind}/tensor/minmax", x)
    truth = mean_error(
        x, fake_quantize(x, plain.qparams), consumer.get("output"), consumer.get("importance")
    )
    assert found.plain_error == pytest.approx(truth, rel=1e-3)


@few
@given(SEEDS, st.sampled_from(["s3", "s4", "a3", "a4"]), st.sampled_from(["mse", "output"]))
def test_uniform_is_never_worse_than_any_share_of_the_range(
    seed: int, kind: str, rule: str
) -> None:
    x = after_gelu(seed) + 0.3 * normal(seed + 9, 90, 8)
    consumer = consumer_of(rule, seed, x, 5)
    found = searched(f"{kind}/tensor/{rule}", x, **consumer)
    scheme = found.qparams.scheme
    for share in [1.0, *GRID.tolist()]:
        qparams = qparams_from_range(scheme, share * x.min(), share * x.max())
        error = mean_error(x, fake_quantize(x, qparams), consumer.get("output"), None)
        assert found.error <= error * (1 + 1e-5)


def test_an_affine_search_moves_each_end_by_itself() -> None:
    x = torch.cat((torch.rand(4000) * 2 - 1, torch.tensor([30.0]))).reshape(-1, 1)
    qparams = searched("a4/tensor/mse", x).qparams
    low = -float(qparams.zero_point) * float(qparams.scale)
    high = low + 15 * float(qparams.scale)
    assert low == pytest.approx(-1.0, abs=0.25)
    assert 1.0 < high < 12.0


def region_errors(
    x: Tensor, bits: int, split: str, consumer: dict[str, Tensor]
) -> dict[int, dict[float, float]]:
    """Mean errors by m and Δ2, over the whole grid, in numpy."""
    values = x.numpy().astype(np.float64)
    half = 2 ** (bits - 1)
    found: dict[int, dict[float, float]] = {}
    for shift in range(9):
        found[shift] = {}
        for share in GRID:
            large = np.float32(share * np.abs(values).max() / (half - 1))
            small = large / 2**shift
            if split == "sign":
                made = np.where(
                    values < 0,
                    np.clip(np.round(values / small), -half, 0) * small,
                    np.clip(np.round(values / large), 0, half - 1) * large,
                )
            else:
                fine = np.clip(np.round(values / small), 0, half - 1) * small
                coarse = np.clip(np.round(values / large), 0, half - 1) * large
                fits = np.round(values / small) < half
                gap = (2**shift > half) & (abs(values - fine) < abs(values - coarse))
                made = np.where(fits | gap, fine, coarse)
            error = mean_error(
                x,
                torch.from_numpy(made.astype(np.float32)),
                consumer.get("output"),
                consumer.get("importance"),
            )
            found[shift][float(large)] = error
    return found


@few
@given(
    seed=SEEDS,
    bits=st.sampled_from([3, 4, 6]),
    split=st.sampled_from(["sign", "magnitude"]),
    rule=st.sampled_from(["mse", "output", "fisher"]),
)
def test_region_is_never_worse_than_any_fixed_shift_and_clipping(
    *, seed: int, bits: int, split: str, rule: str
) -> None:
    x = after_gelu(seed) if split == "sign" else after_softmax(seed, 60, 8)
    consumer = consumer_of(rule, seed, x, 5)
    found = searched(f"region_{bits}/tensor/{rule}", x, **consumer)
    assert found.qparams.split == split
    every = region_errors(x, bits, split, consumer)
    least = {shift: min(errors.values()) for shift, errors in every.items()}
    for error in least.values():
        assert found.error <= error * (1 + 1e-4)
    chosen = every[found.qparams.shift]
    if found.error < found.plain_error:
        large = float(found.qparams.scale) * 2**found.qparams.shift
        near = min(chosen, key=lambda step: abs(step - large))
        assert large == pytest.approx(near, rel=1e-5)
        assert found.error == pytest.approx(chosen[near], rel=1e-3)


def test_ties_go_to_the_larger_shift() -> None:
    x = torch.tensor([[-1.0], [1.0], [2.0], [7.0]])  # integers: Δ1 = 1 and m = 0 are exact
    found = searched("region_4/tensor/mse", x)
    assert found.error == 0.0
    assert found.qparams.shift == 0  # no larger m is exact: region 2 would skip 1
    zeros = searched("region_4/tensor/mse", torch.zeros(4, 1))
    assert zeros.error == 0.0
    assert zeros.qparams.shift == 8


def test_region_finds_the_shift_that_the_data_was_made_with() -> None:
    codes = torch.randint(-8, 8, (400, 4), generator=torch.Generator().manual_seed(0))
    codes[0, :2] = torch.tensor([7, -8])
    true_step, shift = 0.5, 4
    x = torch.where(codes < 0, codes * true_step / 2**shift, codes * true_step).to(torch.float32)
    found = searched("region_4/tensor/mse", x)
    assert found.qparams.shift == shift
    assert float(found.qparams.scale) * 2**shift == pytest.approx(true_step, rel=0.02)
    assert found.error < 0.02 * found.plain_error


@few
@given(SEEDS, st.sampled_from([3, 4, 6]), st.sampled_from(["mse", "output"]))
def test_adalog_is_never_worse_than_log2(seed: int, bits: int, rule: str) -> None:
    x = after_softmax(seed, 60, 8)
    consumer = consumer_of(rule, seed, x, 5)
    adalog = searched(f"adalog_{bits}/tensor/{rule}", x, **consumer)
    log2 = searched(f"log2_{bits}/tensor/{rule}", x, **consumer)
    assert adalog.error <= log2.error
    assert adalog.plain_error == log2.plain_error
    assert 1 <= adalog.qparams.base <= 150


def test_adalog_finds_a_base_close_to_the_best_of_all() -> None:
    x = after_softmax(4, 200, 16)
    found = searched("adalog_4/tensor/mse", x)
    least = min(
        mean_error(x, fake_quantize(x, replace(found.qparams, base=base, scale=scale)), None, None)
        for base in range(1, 151, 2)
        for scale in x.max() * 2.0 ** (torch.arange(-12, 3) / 8)
    )
    assert found.error <= least * 1.01


@pytest.mark.parametrize("kind", ["log2", "log_sqrt2", "adalog"])
@pytest.mark.parametrize(
    ("low", "offset"), [(0.0, 0.0), (-0.1699, GELU_OFFSET), (-0.02, 0.02), (-0.5, 0.5)]
)
def test_the_offset_makes_values_non_negative(kind: str, low: float, offset: float) -> None:
    x = torch.linspace(low, 3.0, 200).reshape(-1, 1)
    found = find(Scheme.parse(f"{kind}_4/tensor/mse"), x, low=low, high=3.0)
    assert found.qparams.offset == pytest.approx(offset)
    assert float((x + found.qparams.offset).min()) >= -1e-6
    plain = find(Scheme.parse(f"{kind}_4/tensor/minmax"), x, low=low, high=3.0).qparams
    assert float(plain.scale) == pytest.approx(3.0 + offset)
    assert plain.base == (37 if kind == "adalog" else 0)


@few
@given(SEEDS, st.sampled_from(["s4", "a4", "log2_4", "log_sqrt2_4"]))
def test_heads_are_searched_one_by_one(seed: int, kind: str) -> None:
    x = after_softmax(seed, 3, 40, 8) * torch.tensor([1.0, 0.1, 3.0])[:, None, None]
    high = x.amax((1, 2))
    whole = find(Scheme.parse(f"{kind}/head/mse"), x, low=0.0, high=high)
    assert whole.qparams.scale.shape == whole.qparams.zero_point.shape == (3,)
    errors = []
    for head in range(3):
        one = find(Scheme.parse(f"{kind}/tensor/mse"), x[head], low=0.0, high=high[head])
        assert torch.equal(whole.qparams.scale[head], one.qparams.scale)
        assert torch.equal(whole.qparams.zero_point[head], one.qparams.zero_point)
        errors.append(one.error)
    assert whole.error == pytest.approx(sum(errors) / 3)


@few
@given(SEEDS, st.sampled_from(["region_4", "adalog_4"]))
def test_heads_share_a_shift_and_a_base_and_no_other_shift_is_better(seed: int, kind: str) -> None:
    x = after_softmax(seed, 2, 40, 8) * torch.tensor([1.0, 0.2])[:, None, None]
    high = x.amax((1, 2))
    weight = normal(seed, 2, 3, 8)
    whole = find(Scheme.parse(f"{kind}/head/output"), x, low=0.0, high=high, output=weight)
    made = fake_quantize(x[None], whole.qparams)[0]
    truth = [mean_error(x[h], made[h], weight[h], None) for h in range(2)]
    assert whole.error == pytest.approx(sum(truth) / 2, rel=1e-3)
    if kind == "region_4":
        tables = [region_errors(x[h], 4, "magnitude", {"output": weight[h]}) for h in range(2)]
        for shift in range(9):
            fixed = sum(min(table[shift].values()) for table in tables) / 2
            assert whole.error <= fixed * (1 + 1e-4)
    shared = find(Scheme.parse(f"{kind}/head/output"), x, low=0.0, high=high, output=weight[0])
    same = find(
        Scheme.parse(f"{kind}/head/output"),
        x,
        low=0.0,
        high=high,
        output=weight[:1].expand(2, 3, 8),
    )
    assert torch.equal(shared.qparams.scale, same.qparams.scale)


def test_heads_are_signed_as_soon_as_one_is() -> None:
    x = torch.stack((after_softmax(0, 40, 4), normal(0, 40, 4)))
    low, high = x.amin((1, 2)), x.amax((1, 2))
    found = find(Scheme.parse("region_6/head/mse"), x, low=low, high=high)
    assert found.qparams.split == "sign"
    assert found.error <= found.plain_error


def test_importance_of_the_tensor_itself_needs_no_consumer() -> None:
    x = after_gelu(0)
    importance = torch.zeros(90, 8)
    importance[:, 0] = 1.0
    found = searched("s4/tensor/fisher", x, importance=importance)
    alone = find(Scheme.parse("s4/tensor/mse"), x[:, :1], low=x.min(), high=x.max())
    assert torch.equal(found.qparams.scale, alone.qparams.scale)


@pytest.mark.parametrize("kind", ["s8", "a4", "region_6", "log2_4", "log_sqrt2_4", "adalog_4"])
def test_zeros_stay_zeros(kind: str) -> None:
    found = searched(f"{kind}/tensor/mse", torch.zeros(5, 3))
    assert torch.isfinite(found.qparams.scale).all()
    assert found.error == 0.0
    assert torch.equal(fake_quantize(torch.zeros(3), found.qparams), torch.zeros(3))


def test_the_short_door_returns_the_parameters() -> None:
    x = after_gelu(3)
    scheme = Scheme.parse("region_6/tensor/mse")
    made = search_qparams(scheme, x, low=x.min(), high=x.max())
    assert torch.equal(made.scale, searched("region_6/tensor/mse", x).qparams.scale)


BAD: list[tuple[str, dict[str, Any], type[FxquantError], str]] = [
    ("a8/channel/minmax", {}, SchemeError, "not found by a search"),
    ("a8/tensor/percentile@99", {}, SchemeError, "not found by a search"),
    ("a8/token/dynamic", {}, SchemeError, "not found by a search"),
    ("a8/tensor/output", {}, InputError, "needs the weight"),
    ("a8/tensor/fisher", {"output": torch.ones(2, 4)}, InputError, "squared gradients"),
    ("a8/tensor/output", {"output": torch.ones(2, 5)}, InputError, "does not read 4 channels"),
    ("a8/tensor/fisher", {"importance": torch.ones(5, 4)}, InputError, "does not fit"),
    ("a8/tensor/mse", {"rows": torch.ones(4)}, InputError, "argument rows"),
    ("a8/tensor/mse", {"rows": torch.ones(0, 4)}, InputError, "argument rows"),
    ("a8/head/mse", {"rows": torch.ones(6, 4)}, InputError, "argument rows"),
    ("a8/tensor/mse", {"rows": torch.full((2, 4), torch.nan)}, InputError, "NaN"),
    ("a8/tensor/mse", {"high": torch.inf}, CalibrationError, "not finite"),
    ("a8/tensor/mse", {"high": torch.ones(3)}, InputError, "3 values for 1 heads"),
]


@pytest.mark.parametrize(("text", "changes", "error", "message"), BAD)
def test_arguments_that_do_not_fit_are_refused(
    text: str, changes: dict[str, Any], error: type[FxquantError], message: str
) -> None:
    arguments: dict[str, Any] = {"rows": torch.ones(6, 4), "low": 0.0, "high": 1.0} | changes
    with pytest.raises(error, match=message):
        find(Scheme.parse(text), **arguments)
