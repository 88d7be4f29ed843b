"""What an index says of the matrix it reads: rows, strides, runs, a transposition.

An index is an int64 tensor of a value's shape for one image; each element is the place it comes
from in a row-major matrix ``[rows, columns]``. Movement operators are run on indices, so that no
view, permutation, roll or window partition has to be known by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Strided:
    """Rows of consecutive elements, a constant distance apart. All in elements."""

    offset: int
    stride: int
    rows: int
    width: int


@dataclass(frozen=True)
class Runs:
    """Rows made of ``pieces`` runs each; run ``i`` starts at ``starts[i] * unit``."""

    starts: Tensor
    pieces: int
    unit: int


def strided(index: Tensor, width: int) -> Strided | None:
    """``index`` in rows of ``width`` as one offset and one stride, or None."""
    rows = index.reshape(-1, width)
    offset = int(rows[0, 0])
    stride = int(rows[1, 0]) - offset if len(rows) > 1 else width
    expected = offset + torch.arange(len(rows))[:, None] * stride + torch.arange(width)
    return Strided(offset, stride, len(rows), width) if torch.equal(rows, expected) else None


def selected_rows(index: Tensor, columns: int) -> Tensor | None:
    """``[n]``: the row of the matrix that each row of ``index`` is, where each is a whole one."""
    if index.numel() % columns:
        return None
    rows = index.reshape(-1, columns)
    first = rows[:, 0]
    if bool((first % columns).any()):
        return None
    whole = torch.equal(rows, first[:, None] + torch.arange(columns))
    return first // columns if whole else None


def is_transposed(index: Tensor, rows: int, columns: int) -> bool:
    """Whether ``index`` reads the whole matrix column by column."""
    if index.numel() != rows * columns:
        return False
    expected = torch.arange(rows * columns).reshape(rows, columns).t()
    return torch.equal(index.reshape(columns, rows), expected)


def is_whole(index: Tensor, size: int) -> bool:
    """Whether ``index`` reads the whole matrix in order."""
    return index.numel() == size and torch.equal(index.reshape(-1), torch.arange(size))


def is_permutation(rows: Tensor, count: int) -> bool:
    """Whether each of ``count`` rows is read once."""
    return rows.numel() == count and torch.equal(rows.sort().values, torch.arange(count))


def runs(index: Tensor, width: int) -> Runs | None:
    """Rows of ``width`` in as few equally long runs as there are; None for single elements."""
    rows = index.reshape(-1, width)
    breaks = (rows[:, 1:] - rows[:, :-1] != 1).any(0).nonzero().reshape(-1) + 1
    length = math.gcd(width, *breaks.tolist())
    if length == 1 and width > 1:
        return None
    starts = rows[:, ::length].reshape(-1)
    unit = math.gcd(*starts.tolist()) or length
    return Runs(starts // unit, width // length, unit)
