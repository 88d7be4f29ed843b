"""Linears that stay in float inside a program: the kernel, and a small head."""

from __future__ import annotations

import ctypes

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fxquant
from fxquant.backends.x86.arguments import DenseArguments
from fxquant.backends.x86.compiled import levels, library
from fxquant.quant.metrics import sqnr_db
from tests.backends.tiny import images, vit


@pytest.mark.parametrize("level", levels())
@settings(max_examples=20)
@given(
    rows=st.integers(1, 5),
    inner=st.integers(1, 70),
    columns=st.integers(1, 150),
    parts=st.integers(1, 3),
)
def test_the_kernel_is_a_linear(
    level: str, rows: int, inner: int, columns: int, parts: int
) -> None:
    generator = torch.Generator().manual_seed(rows * 1000 + inner * 10 + columns)
    x = torch.randn(rows, inner + 3, generator=generator)
    weight, bias = torch.randn(inner, columns), torch.randn(columns)
    output = torch.full((rows * columns + 16,), 7.0)
    block = DenseArguments(
        x.data_ptr(),
        inner + 3,
        rows,
        inner,
        columns,
        weight.data_ptr(),
        bias.data_ptr(),
        output.data_ptr(),
    )
    for part in range(parts):
        library(level).fxq_dense(ctypes.byref(block), part, parts)
    expected = x[:, :inner].double() @ weight.double() + bias.double()
    found = output[: rows * columns].reshape(rows, columns).double()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert bool((output[rows * columns :] == 7.0).all())


def test_a_head_kept_in_float_is_a_step_of_the_program() -> None:
    model = vit()
    recipe = fxquant.recipe("w8a8").override("float", role="head")
    quantized = fxquant.quantize(model, calibration=images(8), recipe=recipe)
    lowered = fxquant.lower(quantized)
    assert lowered.native is not None, lowered.report.notes
    assert lowered.native.steps[-1].text == "float linear"
    row = next(row for row in lowered.report.rows if row.layer == "head")
    assert not row.int8
    assert row.kernel == "float32"
    assert row.reason
    x = images(5, seed=3)
    with torch.no_grad():
        assert sqnr_db(quantized(x), lowered(x)) > 40.0
