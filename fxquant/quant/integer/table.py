"""Any pointwise function of 8-bit codes as a table of 256 entries, exact by construction."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fxquant.errors import InputError
from fxquant.quant.library import define


def _lookup(q: Tensor, table: Tensor, low: int) -> Tensor:
    """``table[q - low]``; the dtype is the table's."""
    return table[(q.to(torch.int64) - low).clamp(0, table.shape[0] - 1)]


lookup = define("lookup(Tensor q, Tensor table, int low) -> Tensor", _lookup)


def gelu(x: float) -> float:
    """``x Φ(x)`` in float64."""
    return 0.5 * x * math.erfc(-x / math.sqrt(2.0))


def function_table(
    function: Callable[[float], float],
    *,
    scale: float,
    low: int,
    high: int,
    out_scale: float,
    zero_point: int,
    ends: tuple[int, int],
    dtype: torch.dtype,
) -> Tensor:
    """``clip(round(f(code S) / s_out) + z)`` for every code from ``low`` to ``high``.

    :class:`InputError` for more than 256 codes: a wider table would not stay in the cache.
    """
    if high - low > 255:
        raise InputError(
            f"a table has 256 entries, not {high - low + 1}",
            fix="use 8 bits or fewer for its input",
        )
    codes = [
        min(max(round(function(code * scale) / out_scale) + zero_point, ends[0]), ends[1])
        for code in range(low, high + 1)
    ]
    return torch.tensor(codes, dtype=dtype)
