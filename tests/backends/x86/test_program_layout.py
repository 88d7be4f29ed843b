"""What layout.py says of an index, against brute force over views of small matrices."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxquant.backends.x86.program import layout

SIZES = st.integers(1, 6)


@st.composite
def indices(draw: st.DrawFn) -> tuple[Tensor, int, int]:
    """An index as movement operators leave it, or any other, into a matrix ``[rows, columns]``."""
    rows, columns = draw(SIZES), draw(SIZES)
    whole = torch.arange(rows * columns).reshape(rows, columns)
    kind = draw(
        st.sampled_from(["whole", "turned", "rows", "cut", "rolled", "split", "shifted", "any"])
    )
    if kind == "turned":
        whole = whole.t()
    elif kind == "rows":
        whole = whole[draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=6))]
    elif kind == "cut":
        first = draw(st.integers(0, columns - 1))
        whole = whole[draw(st.integers(0, rows - 1)) :: draw(st.integers(1, 3)), first:]
    elif kind == "rolled":
        whole = whole.roll((draw(SIZES), draw(SIZES)), (0, 1))
    elif kind == "split":
        parts = draw(st.sampled_from([n for n in range(1, rows + 1) if rows % n == 0]))
        whole = whole.reshape(parts, rows // parts, columns).transpose(0, 1)
        whole = whole.reshape(rows // parts, parts * columns)
    elif (
        kind == "shifted"
    ):  # whole rows of elements, but from the middle of one to that of the next
        first = draw(st.integers(0, columns - 1)) if rows > 1 else 0
        whole = whole.reshape(-1)[first : first + (rows - 1 or 1) * columns].reshape(-1, columns)
    elif kind == "any":
        some = st.lists(st.integers(0, rows * columns - 1), min_size=1, max_size=12)
        whole = torch.tensor(draw(some))[None]
    return whole, rows, columns


@given(indices())
def test_strided_rows_are_found_exactly_where_one_offset_and_one_stride_say_it_all(
    given_index: tuple[Tensor, int, int],
) -> None:
    index, _, _ = given_index
    width = index.shape[-1]
    rows = index.reshape(-1, width).tolist()
    distances = {after[0] - before[0] for before, after in pairwise(rows)}
    plain = all(row == list(range(row[0], row[0] + width)) for row in rows)
    found = layout.strided(index, width)
    assert (found is not None) == (plain and len(distances) <= 1)
    if found is not None:
        assert (found.rows, found.width) == (len(rows), width)
        again = [
            [found.offset + row * found.stride + column for column in range(found.width)]
            for row in range(found.rows)
        ]
        assert again == rows


@given(indices())
def test_selected_rows_are_the_rows_of_the_matrix_that_an_index_reads_whole(
    given_index: tuple[Tensor, int, int],
) -> None:
    index, rows, columns = given_index
    matrix = torch.arange(rows * columns).reshape(rows, columns).tolist()
    flat = index.reshape(-1).tolist()
    read = [flat[start : start + columns] for start in range(0, len(flat), columns)]
    found = layout.selected_rows(index, columns)
    assert (found is not None) == all(row in matrix for row in read)
    if found is not None:
        assert [matrix[row] for row in found.tolist()] == read


@given(indices())
def test_an_index_is_transposed_or_whole_where_it_reads_all_elements_in_that_order(
    given_index: tuple[Tensor, int, int],
) -> None:
    index, rows, columns = given_index
    flat = index.reshape(-1).tolist()
    by_column = [row * columns + column for column in range(columns) for row in range(rows)]
    assert layout.is_transposed(index, rows, columns) == (flat == by_column)
    assert layout.is_whole(index, rows * columns) == (flat == list(range(rows * columns)))


@given(SIZES, SIZES)
def test_a_transposed_matrix_is_seen_as_such_in_any_shape(rows: int, columns: int) -> None:
    index = torch.arange(rows * columns).reshape(rows, columns).t()
    assert layout.is_transposed(index, rows, columns)
    assert layout.is_transposed(index[None, :, None], rows, columns)
    assert layout.is_whole(index, rows * columns) == (rows == 1 or columns == 1)


@given(st.lists(st.integers(0, 5), max_size=6), st.integers(0, 6))
def test_permutations_read_each_row_once(rows: list[int], count: int) -> None:
    given_rows = torch.tensor(rows, dtype=torch.int64)
    assert layout.is_permutation(given_rows, count) == (sorted(rows) == list(range(count)))


@given(st.permutations(range(7)))
def test_every_permutation_is_one(rows: list[int]) -> None:
    assert layout.is_permutation(torch.tensor(rows), 7)
    assert not layout.is_permutation(torch.tensor(rows), 8)
    assert not layout.is_permutation(torch.tensor([*rows[:-1], rows[0]]), 7)


def longest_common_run(rows: list[list[int]]) -> int:
    """The longest length that cuts every row into consecutive elements, by trying them all."""
    width = len(rows[0])
    for length in range(width, 0, -1):
        if width % length:
            continue
        pieces = [row[at : at + length] for row in rows for at in range(0, width, length)]
        if all(piece == list(range(piece[0], piece[0] + length)) for piece in pieces):
            return length
    raise AssertionError("single elements always do")


@given(indices())
def test_runs_reconstruct_the_index_and_are_as_few_as_there_can_be(
    given_index: tuple[Tensor, int, int],
) -> None:
    index, _, _ = given_index
    width = index.shape[-1]
    rows = index.reshape(-1, width).tolist()
    length = longest_common_run(rows)
    found = layout.runs(index, width)
    assert (found is None) == (length == 1 and width > 1)
    if found is not None:
        assert found.pieces == width // length
        assert len(found.starts) == found.pieces * len(rows)
        starts = [int(start) * found.unit for start in found.starts]
        again = [place for start in starts for place in range(start, start + length)]
        assert again == index.reshape(-1).tolist()


@given(indices())
def test_the_unit_of_runs_is_the_largest_that_divides_all_starts(
    given_index: tuple[Tensor, int, int],
) -> None:
    index, _, _ = given_index
    found = layout.runs(index, index.shape[-1])
    if found is not None and bool(found.starts.any()):
        assert math.gcd(*found.starts.tolist()) == 1
    elif found is not None:  # all runs start at the front: any unit does, but for none
        assert found.unit > 0


@pytest.mark.parametrize("shift", [0, 1])
def test_windows_of_a_rolled_image_are_rows_read_in_another_order(shift: int) -> None:
    image = torch.arange(4 * 4 * 3).reshape(4, 4, 3).roll((-shift, -shift), (0, 1))
    windows = image.reshape(2, 2, 2, 2, 3).permute(0, 2, 1, 3, 4)
    rows = layout.selected_rows(windows, 3)
    assert rows is not None
    assert layout.is_permutation(rows, 16)
    assert layout.strided(windows, 3) is None
    merged = windows.reshape(2, 2, 4 * 3)
    found = layout.runs(merged, 12)
    assert found is not None
    assert found.pieces == (4 if shift else 2)
    assert found.unit in (3, 6)
