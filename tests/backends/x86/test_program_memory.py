"""Buffers that live at the same time lie apart in the arena, whatever the steps are."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxquant.backends.x86.arguments import GatherArguments
from fxquant.backends.x86.program.memory import plan_memory
from fxquant.backends.x86.program.steps import Kernel, Pointer, Step
from fxquant.backends.x86.program.values import Buffer

DTYPES = (torch.float32, torch.uint8)


def step(reads: list[Buffer], writes: list[Buffer]) -> Step:
    """A step that computes nothing: memory is planned by what its pointers point to."""
    pointers = {f"read{number}": Pointer(buffer) for number, buffer in enumerate(reads)}
    pointers |= {f"write{number}": Pointer(b, writes=True) for number, b in enumerate(writes)}
    pointers["scratch"] = Pointer(None)
    pointers["constant"] = Pointer(torch.zeros(3))
    return Step(Kernel.GATHER, GatherArguments(), pointers, "layer", "a step")


@st.composite
def programs(draw: st.DrawFn) -> tuple[list[Step], list[Buffer]]:
    """Steps that each write a buffer, or part of an earlier one, and read some of those before."""
    steps: list[Step] = []
    buffers = [Buffer(3, 5, "layer", home="input")]
    for _ in range(draw(st.integers(0, 14))):
        sizes = st.integers(1, 40)
        made = Buffer(
            draw(sizes),
            draw(sizes),
            "layer",
            dtype=draw(st.sampled_from(DTYPES)),
            home=draw(st.sampled_from(["arena"] * 5 + ["output", "constant"])),
            quads=draw(st.booleans()),
        )
        reads = draw(st.lists(st.sampled_from(buffers), max_size=3))
        again = draw(st.lists(st.sampled_from(buffers), max_size=1))
        steps.append(step(reads, [made, *again]))
        buffers.append(made)
    return steps, [buffer for buffer in buffers if buffer.home == "arena"]


def life(steps: list[Step], buffer: Buffer) -> range:
    """From the first step that touches a buffer to the last."""
    touched = [
        number
        for number, each in enumerate(steps)
        if any(pointer.target is buffer for pointer in each.pointers.values())
    ]
    return range(min(touched), max(touched) + 1)


@given(programs())
def test_buffers_that_live_together_lie_apart_within_the_arena(
    program: tuple[list[Step], list[Buffer]],
) -> None:
    steps, buffers = program
    arena = plan_memory(steps)
    assert set(arena.offsets) == set(buffers)
    for buffer, offset in arena.offsets.items():
        assert offset >= 0
        assert offset % 64 == 0
        assert offset + buffer.image_bytes <= arena.size
    for one, other in combinations(buffers, 2):
        if set(life(steps, one)) & set(life(steps, other)):
            first, second = sorted((one, other), key=arena.offsets.__getitem__)
            assert arena.offsets[first] + first.image_bytes <= arena.offsets[second]


@given(programs())
def test_the_arena_lies_between_what_lives_at_once_and_the_sum_of_all(
    program: tuple[list[Step], list[Buffer]],
) -> None:
    steps, buffers = program
    arena = plan_memory(steps)
    assert arena.size <= sum(buffer.image_bytes for buffer in buffers)
    lives = {buffer: life(steps, buffer) for buffer in buffers}
    at_once = [
        sum(buffer.image_bytes for buffer in buffers if number in lives[buffer])
        for number in range(len(steps))
    ]
    assert arena.size >= max(at_once, default=0)


@given(st.integers(2, 12))
def test_a_chain_takes_the_memory_of_two_buffers(length: int) -> None:
    chain = [Buffer(8, 16, "layer") for _ in range(length)]
    steps = [step([before], [after]) for before, after in pairwise(chain)]
    assert plan_memory(steps).size == 2 * chain[0].image_bytes


def test_a_residual_stays_until_it_is_read() -> None:
    stream, inner, result = (Buffer(8, 16, "layer") for _ in range(3))
    steps = [step([], [stream]), step([stream], [inner]), step([inner, stream], [result])]
    arena = plan_memory(steps)
    assert len(set(arena.offsets.values())) == 3
    assert arena.size == 3 * stream.image_bytes


def test_no_steps_take_no_memory() -> None:
    assert plan_memory([]).size == 0
    assert plan_memory([]).offsets == {}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_buffer_ends_with_a_line_that_kernels_may_read_too_far(dtype: torch.dtype) -> None:
    plain = Buffer(3, 5, "layer", dtype=dtype)
    assert plain.image_bytes % 64 == 0
    assert plain.image_bytes >= 15 * dtype.itemsize + 64
    quads = Buffer(3, 5, "layer", dtype=dtype, quads=True)
    assert quads.image_bytes >= 4 * 5 * dtype.itemsize + 64
