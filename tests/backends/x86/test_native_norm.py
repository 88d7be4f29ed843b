"""The native norm against torch's: stores, pieces, ranges per token."""

from __future__ import annotations

import ctypes

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from fxquant.backends.x86.arguments import NormArguments, NormKind, Store
from fxquant.backends.x86.compiled import levels, library
from fxquant.quant import ops
from tests.backends.x86 import native


@pytest.mark.parametrize("store", list(Store))
@pytest.mark.parametrize("level", levels())
@settings(max_examples=15, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 13), st.integers(1, 60), st.sampled_from([1, 4])),
    kind=st.sampled_from(NormKind),
    mapped=st.booleans(),
    affine=st.booleans(),
    ranged=st.booleans(),
    parts=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_norm(
    level: str,
    store: Store,
    shape: tuple[int, int, int],
    kind: NormKind,
    *,
    mapped: bool,
    affine: bool,
    ranged: bool,
    parts: int,
    seed: int,
) -> None:
    rows, run, pieces = shape
    columns = run * pieces
    random = torch.Generator().manual_seed(seed)
    flat = native.readable(torch.randn(rows * pieces, run, generator=random) * 3 + 5)
    order = torch.randperm(rows * pieces, generator=random)
    weight = native.readable(torch.randn(columns, generator=random))
    bias = native.readable(torch.randn(columns, generator=random))
    piece_map = native.readable(order.int())
    x = (flat[order] if mapped else flat).reshape(rows, columns)
    expected = x
    if kind == NormKind.LAYER_NORM:
        expected = functional.layer_norm(x.double(), (columns,), eps=1e-5)
    if affine:
        expected = expected * weight + bias
    expected = expected.float()
    output = native.output_of(store, rows, columns)
    scales, zeros = native.Buffer(rows, torch.float32), native.Buffer(rows, torch.float32)
    arguments = NormArguments(
        input=flat.data_ptr(),
        rows=rows,
        columns=columns,
        pieces=pieces,
        piece_stride=run,
        piece_map=piece_map.data_ptr() if mapped else None,
        weight=weight.data_ptr() if affine else None,
        bias=bias.data_ptr() if affine else None,
        epsilon=1e-5,
        kind=kind,
        output=output.pointer,
        output_stride=native.stride_of(store, columns),
        inverse_step=17.0,
        zero_point=99.0,
        store=store,
    )
    ranged = ranged and store != Store.F32_ROWS
    if ranged:
        arguments.row_scale, arguments.row_zero_point = scales.pointer, zeros.pointer
    for part in range(parts):
        library(level).fxq_norm(ctypes.byref(arguments), part, parts)
    for buffer in (output, scales, zeros):
        buffer.check()
    if store == Store.F32_ROWS:
        found = output.data.view(rows, columns)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)
        return
    found = output.data
    if store == Store.U8_QUADS:
        found = native.from_quads(found, rows, columns)
    exact = (expected * 17 + 99).clamp(0, 255)
    if ranged:
        _, scale, zero = ops.quantize_per_token(expected, 0, 255, torch.uint8)
        torch.testing.assert_close(scales.data, scale.flatten(), rtol=1e-4, atol=1e-7)
        exact = (expected / scale + zeros.data[:, None]).clamp(0, 255)
        assert (zeros.data - zero.flatten()).abs().max() <= 1
    assert (found.view(rows, columns).double() - exact).abs().max() <= 0.51
