"""The native linear against float64 arithmetic: shapes, stores, epilogues, shares."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxquant.backends.x86.arguments import Activation, Epilogue, LinearArguments, Store
from fxquant.backends.x86.compiled import levels, library
from tests.backends.x86 import native

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 70), st.integers(1, 150))


def run_linear(
    level: str,
    shape: tuple[int, int, int],
    activation: Activation,
    store: Store,
    parts: int,
    extras: set[str],
    seed: int,
) -> None:
    """One call in ``parts`` shares, against the formula."""
    rows, inner, columns = shape
    made = library(level)
    random = torch.Generator().manual_seed(seed)
    panel = made.fxq_panel()
    padded = -(-columns // panel) * panel

    def floats(*size: int) -> torch.Tensor:
        return native.readable(torch.randn(*size, generator=random))

    def padded_floats() -> torch.Tensor:
        return native.readable(torch.cat([floats(columns), torch.zeros(padded - columns)]))

    x = native.readable(native.codes(random, rows, inner, signed=False, level=level))
    weight = native.readable(native.codes(random, columns, inner, signed=True, level=level))
    size = made.fxq_packed_bytes(ctypes.c_int64(columns), ctypes.c_int64(inner))
    packed = native.Buffer(size, torch.int8)
    made.fxq_pack_weight(
        ctypes.c_void_p(weight.data_ptr()),
        ctypes.c_int64(columns),
        ctypes.c_int64(inner),
        ctypes.c_void_p(packed.pointer),
    )
    packed.check()
    start = torch.zeros(padded, dtype=torch.int32)
    integers = (x.double() @ weight.double().T).to(torch.float64)
    keep: list[Any] = []
    arguments = LinearArguments(
        input=x.data_ptr(), input_stride=inner, rows=rows, inner=inner, columns=columns
    )
    if "row_scale" in extras:
        start[:columns] = -weight.sum(1, dtype=torch.int32)
        row_scale, zero = floats(rows).abs(), native.readable(torch.arange(rows).float())
        integers = (integers + zero[:, None] * start[:columns]) * row_scale[:, None].double()
        keep += [row_scale, zero]
        arguments.row_scale, arguments.row_zero_point = row_scale.data_ptr(), zero.data_ptr()
    else:
        start[:columns] = torch.randint(-999, 999, (columns,), generator=random)
        integers = integers + start[:columns]
    start = native.readable(start)
    scale, bias = padded_floats() * (1e-4 / inner**0.5), padded_floats()
    scale, bias = native.readable(scale), native.readable(bias)
    expected = native.activate(integers * scale[:columns] + bias[:columns], activation)
    output = native.output_of(store, rows, columns)
    epilogue = Epilogue(
        scale=scale.data_ptr(),
        bias=bias.data_ptr(),
        output=output.pointer,
        output_stride=native.stride_of(store, columns),
        inverse_step=17.0,
        zero_point=99.0,
        activation=activation,
        store=store,
    )
    rows_to = torch.arange(rows)
    if "row_map" in extras:
        rows_to = torch.randperm(rows, generator=random)
        keep.append(native.readable(rows_to.int()))
        epilogue.row_map = keep[-1].data_ptr()
    expected = torch.empty_like(expected).index_copy(0, rows_to, expected)
    for name in ("column_scale", "multiplicand", "residual"):
        if name not in extras:
            continue
        keep.append(floats(columns) if name == "column_scale" else floats(rows, columns))
        setattr(epilogue, name, keep[-1].data_ptr())
        expected = expected + keep[-1] if name == "residual" else expected * keep[-1]
    epilogue.multiplicand_stride = epilogue.residual_stride = columns
    arguments.weight, arguments.start = packed.pointer, start.data_ptr()
    arguments.epilogue = epilogue
    for part in range(parts):
        made.fxq_linear(ctypes.byref(arguments), part, parts)
    tolerance = 0.5 + (4e-4 * 17 * 5 if activation != Activation.NONE else 3e-3)
    native.check_result(output, expected, (rows, columns), store, tolerance)


@pytest.mark.parametrize("store", list(Store))
@pytest.mark.parametrize("level", levels())
@settings(max_examples=12, deadline=None)
@given(
    shape=SHAPES,
    activation=st.sampled_from(Activation),
    parts=st.integers(1, 3),
    extras=st.sets(
        st.sampled_from(["row_scale", "row_map", "column_scale", "multiplicand", "residual"])
    ),
    seed=st.integers(0, 99),
)
def test_shapes_and_epilogues(
    level: str,
    store: Store,
    shape: tuple[int, int, int],
    activation: Activation,
    parts: int,
    extras: set[str],
    seed: int,
) -> None:
    run_linear(level, shape, activation, store, parts, extras, seed)


@pytest.mark.parametrize("shape", [(197, 192, 96), (1, 96, 1000), (99, 100, 10), (13, 7, 1)])
@pytest.mark.parametrize("level", levels())
def test_shapes_of_models(level: str, shape: tuple[int, int, int]) -> None:
    for parts in (1, 2):
        run_linear(level, shape, Activation.NONE, Store.F32_ROWS, parts, {"residual"}, 1)
        run_linear(level, shape, Activation.GELU, Store.U8_ROWS, parts, set(), 2)
