"""SQNR against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxquant.quant.metrics import EXACT_DB, sqnr_db, token_sqnr_db

SEEDS = st.integers(0, 2**32 - 1)


@given(SEEDS, st.floats(1e-6, 1e3))
def test_sqnr_is_numpys(seed: int, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randn(3, 5, 7, generator=generator)
    other = reference + size * torch.randn(3, 5, 7, generator=generator)
    r, o = reference.double().numpy(), other.double().numpy()
    assert sqnr_db(reference, other) == pytest.approx(
        10 * np.log10((r**2).sum() / ((r - o) ** 2).sum()), abs=1e-9
    )
    tokens = 10 * np.log10((r**2).sum(-1) / ((r - o) ** 2).sum(-1))
    assert token_sqnr_db(reference, other) == pytest.approx(tokens.mean(), abs=1e-9)


def test_one_bit_is_worth_six_decibels() -> None:
    x = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    coarse, fine = (torch.round(x * 2**bits) / 2**bits for bits in (5, 6))
    assert sqnr_db(x, fine) - sqnr_db(x, coarse) == pytest.approx(6.02, abs=0.1)


def test_token_sqnr_sees_what_an_outlier_token_hides() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 50, 16)
    x[0, 0] *= 1000.0
    noisy = x + torch.randn(1, 50, 16)
    noisy[0, 0] = x[0, 0]
    assert sqnr_db(x, noisy) > 40.0
    assert token_sqnr_db(x, noisy) < 10.0


def test_no_error_and_no_signal_have_finite_answers() -> None:
    x, zeros = torch.ones(2, 3), torch.zeros(2, 3)
    assert sqnr_db(x, x) == EXACT_DB
    assert sqnr_db(zeros, zeros) == EXACT_DB
    assert sqnr_db(zeros, x) == -EXACT_DB
    assert token_sqnr_db(x, x) == EXACT_DB
    assert token_sqnr_db(zeros, x) == EXACT_DB  # no token carries a signal to be lost
    assert sqnr_db(x, x * (1 + 1e-30)) == EXACT_DB
    assert sqnr_db(x * 1e-30, x * 1e30) == -EXACT_DB


def test_tokens_without_signal_do_not_count() -> None:
    x = torch.ones(1, 2, 4)
    x[0, 1] = 0.0
    other = x + 0.1
    assert token_sqnr_db(x, other) == pytest.approx(20.0, abs=1e-3)


def test_half_precision_is_compared_in_double() -> None:
    x = torch.full((4,), 60000.0, dtype=torch.float16)
    assert sqnr_db(x, x / 2) == pytest.approx(6.02, abs=0.01)
