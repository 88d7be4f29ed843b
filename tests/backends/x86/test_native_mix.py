"""The native linear over tokens against float64 arithmetic."""

from __future__ import annotations

import ctypes

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from fxquant.backends.x86.arguments import Activation, Epilogue, MixArguments, Store
from fxquant.backends.x86.compiled import levels, library
from tests.backends.x86 import native


@pytest.mark.parametrize("store", list(Store))
@pytest.mark.parametrize("level", levels())
@settings(max_examples=15, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 50), st.integers(1, 40), st.integers(1, 150)),
    activation=st.sampled_from(Activation),
    parts=st.integers(1, 3),
    extra=st.booleans(),
    seed=st.integers(0, 99),
)
def test_mix(
    level: str,
    store: Store,
    shape: tuple[int, int, int],
    activation: Activation,
    parts: int,
    *,
    extra: bool,
    seed: int,
) -> None:
    tokens, outputs, columns = shape
    random = torch.Generator().manual_seed(seed)
    made = library(level)
    x = native.codes(random, tokens, columns, signed=False, level=level)
    weight = native.codes(random, outputs, tokens, signed=True, level=level)
    start = native.readable(
        torch.randint(-999, 999, (outputs,), generator=random, dtype=torch.int32)
    )
    scale = native.readable(torch.randn(outputs, generator=random) * (1e-4 / tokens**0.5))
    bias = native.readable(torch.randn(outputs, generator=random))
    quads = native.readable(native.to_quads(x))
    padded = native.readable(functional.pad(weight, (0, -tokens % 4)))
    integers = weight.double() @ x.double() + start[:, None]
    expected = native.activate(integers * scale[:, None] + bias[:, None], activation)
    output = native.output_of(store, outputs, columns)
    arguments = MixArguments(
        input=quads.data_ptr(),
        tokens=tokens,
        outputs=outputs,
        columns=columns,
        input_stride=4 * columns,
        weight=padded.data_ptr(),
        start=start.data_ptr(),
        epilogue=Epilogue(
            scale=scale.data_ptr(),
            bias=bias.data_ptr(),
            output=output.pointer,
            output_stride=native.stride_of(store, columns),
            inverse_step=17.0,
            zero_point=99.0,
            activation=activation,
            store=store,
        ),
    )
    column_scale = native.readable(torch.randn(columns, generator=random))
    residual = native.readable(torch.randn(outputs, columns, generator=random))
    if extra:
        arguments.epilogue.column_scale = column_scale.data_ptr()
        arguments.epilogue.residual = residual.data_ptr()
        arguments.epilogue.residual_stride = columns
        expected = expected * column_scale + residual
    for part in range(parts):
        made.fxq_mix(ctypes.byref(arguments), part, parts)
    native.check_result(output, expected, (outputs, columns), store, 0.51)
