"""All integer operators, for allow-lists and verifiers."""

from __future__ import annotations

from fxquant.quant.integer import (
    dyadic,
    exponents,
    gelus,
    norms,
    power_norm,
    products,
    roots,
    softmaxes,
    table,
)

LEAVES = frozenset({roots.isqrt})
"""Operators that do not decompose."""

OPERATORS = LEAVES | {
    dyadic.saturate,
    dyadic.requantize,
    dyadic.requantize_channels,
    exponents.i_exp,
    exponents.shift_exp,
    softmaxes.i_softmax,
    softmaxes.shiftmax,
    softmaxes.log_int_softmax,
    softmaxes.exp2_codes,
    softmaxes.table_softmax,
    gelus.i_gelu,
    gelus.shift_gelu,
    norms.i_layer_norm,
    norms.shift_layer_norm,
    power_norm.power_layer_norm,
    table.lookup,
    products.int_linear,
    products.int_matmul,
    products.int_product,
    products.int_sum,
}
"""Operators that take and give integers only."""
