"""Where the buffers of one image lie: those that live at different times share memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fxquant.backends.x86.program.steps import Step
from fxquant.backends.x86.program.values import Buffer


@dataclass(frozen=True)
class Arena:
    """``offsets``: bytes per buffer; ``size``: bytes for one image."""

    offsets: dict[Buffer, int]
    size: int


@dataclass(frozen=True)
class _Life:
    buffer: Buffer
    first: int
    last: int


def plan_memory(steps: Sequence[Step]) -> Arena:
    """Place every buffer of the arena: largest first, each at the lowest free place.

    A buffer lives from the step that writes it to the last that reads it.
    """
    lives = _lives(steps)
    offsets: dict[Buffer, int] = {}
    placed: list[_Life] = []
    for life in sorted(lives, key=lambda life: -life.buffer.image_bytes):
        together = [o for o in placed if o.first <= life.last and life.first <= o.last]
        offset = 0
        for other in sorted(together, key=lambda other: offsets[other.buffer]):
            if offset + life.buffer.image_bytes <= offsets[other.buffer]:
                break
            offset = max(offset, offsets[other.buffer] + other.buffer.image_bytes)
        offsets[life.buffer] = offset
        placed.append(life)
    size = max((offsets[life.buffer] + life.buffer.image_bytes for life in lives), default=0)
    return Arena(offsets, size)


def _lives(steps: Sequence[Step]) -> list[_Life]:
    first: dict[Buffer, int] = {}
    last: dict[Buffer, int] = {}
    for number, step in enumerate(steps):
        for pointer in step.pointers.values():
            target = pointer.target
            if isinstance(target, Buffer) and target.home == "arena":
                first.setdefault(target, number)
                last[target] = number
    return [_Life(buffer, first[buffer], last[buffer]) for buffer in first]
