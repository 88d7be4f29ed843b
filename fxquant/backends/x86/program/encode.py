"""Steps as the bytes that ``kernels/program.cpp`` runs, with all constants in one tensor."""

from __future__ import annotations

import struct
from ctypes import Structure
from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.backends.x86.program.build import Built
from fxquant.backends.x86.program.memory import Arena, plan_memory
from fxquant.backends.x86.program.steps import Pointer
from fxquant.backends.x86.program.values import Buffer

_CONSTANTS, _ARENA, _SCRATCH, _TENSORS = range(4)
_HEADER = struct.Struct("<7q")
_STEP = struct.Struct("<4i2q")
_PLACE = struct.Struct("<2i3q")
_LINE = 64


@dataclass(frozen=True)
class Encoded:
    """``program`` and ``constants``: uint8 tensors, all that a run needs."""

    program: Tensor
    constants: Tensor


class _Constants:
    """Constant tensors one behind another, each on a cache line, equal objects once."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self._places: dict[int, int] = {}
        self._size = 0

    def place(self, tensor: Tensor) -> int:
        """Offset in bytes."""
        key = id(tensor)
        if key not in self._places:
            self._places[key] = self._size
            self._parts.append(tensor.contiguous())
            size = tensor.numel() * tensor.element_size()
            self._size += -(-size // _LINE) * _LINE + _LINE  # kernels may read a line too far
        return self._places[key]

    def tensor(self) -> Tensor:
        """All of them."""
        made = torch.zeros(self._size + _LINE, dtype=torch.uint8)
        for tensor, offset in zip(self._parts, self._places.values(), strict=True):
            flat = tensor.reshape(-1).view(torch.uint8)
            made[offset : offset + flat.numel()] = flat
        return made


def encode(built: Built) -> Encoded:
    """Plan memory and write header, steps, places and argument blocks."""
    arena, constants = plan_memory(built.steps), _Constants()
    places, blocks, steps = bytearray(), bytearray(), bytearray()
    count = 0
    first_place = _HEADER.size + _STEP.size * len(built.steps)
    total = sum(len(step.pointers) for step in built.steps)
    first_block = -(-(first_place + _PLACE.size * total) // 8) * 8
    inputs = len(built.inputs)
    for step in built.steps:
        block = bytes(step.arguments)
        header = (int(step.kernel), 1, count, len(step.pointers))
        steps += _STEP.pack(*header, first_block + len(blocks), len(block))
        for name, pointer in step.pointers.items():
            where = _where(pointer, arena, constants, inputs)
            places += _PLACE.pack(field_offset(type(step.arguments), name), *where)
            count += 1
        blocks += block + b"\0" * (-len(block) % 8)
    scratch = max((step.scratch for step in built.steps), default=0)
    tensors = inputs + len(built.outputs)
    counts = (len(built.steps), _HEADER.size, total, first_place)
    header_bytes = _HEADER.pack(*counts, arena.size, scratch, tensors)
    head = bytearray(header_bytes + steps + places)
    head += b"\0" * (first_block - len(head))
    program = torch.frombuffer(head + blocks, dtype=torch.uint8).clone()
    return Encoded(program, constants.tensor())


def field_offset(form: type[Structure], name: str) -> int:
    """Byte offset of a field, ``epilogue.output`` for a nested one."""
    offset, kind = 0, form
    for part in name.split("."):
        offset += int(getattr(kind, part).offset)
        kind = dict(kind._fields_)[part]  # type: ignore[assignment,arg-type]
    return offset


def _where(
    pointer: Pointer, arena: Arena, constants: _Constants, inputs: int
) -> tuple[int, int, int, int]:
    """Space, place of the buffer in it, place in the buffer, distance between images."""
    target = pointer.target
    if target is None:
        return _SCRATCH, 0, pointer.offset, 0
    if isinstance(target, Buffer) and target.home == "arena":
        return _ARENA, arena.offsets[target], pointer.offset, target.image_bytes
    if isinstance(target, Buffer) and target.home != "constant":
        number = target.tensor + (inputs if target.home == "output" else 0)
        return _TENSORS + number, 0, pointer.offset, target.image_bytes
    held = target.constant if isinstance(target, Buffer) else target
    assert held is not None
    return _CONSTANTS, constants.place(held), pointer.offset, 0
