"""Single steps on the reference's own values: does each leave in memory what the graph computes?"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.backends.x86.program.build import Built
from fxquant.backends.x86.program.encode import field_offset
from fxquant.backends.x86.program.steps import Kernel, Pointer, Step
from fxquant.backends.x86.program.values import Buffer

_SLACK = 64  # readable bytes behind a buffer


@dataclass(frozen=True)
class Difference:
    """``ours`` and ``reference``: the elements of one node that a step wrote, in one order."""

    step: Step
    node: str
    ours: Tensor
    reference: Tensor


def differences(
    built: Built, library: ctypes.CDLL, values: dict[str, Tensor], inputs: tuple[Tensor, ...]
) -> Iterator[Difference]:
    """Run every step alone on one image, its inputs filled from the reference's ``values``."""
    memory = _Memory(built, values, inputs)
    last = {
        pointer.target: step
        for step in built.steps
        for pointer in step.pointers.values()
        if pointer.writes
    }
    for step in built.steps:
        read = [p for p in step.pointers.values() if not p.writes and isinstance(p.target, Buffer)]
        for pointer in read:
            assert isinstance(pointer.target, Buffer)
            memory.fill(pointer.target)
        memory.call(step, library)
        for pointer in step.pointers.values():
            if isinstance(pointer.target, Buffer) and last.get(pointer.target) is step:
                yield from memory.written(step, pointer.target)


class _Memory:
    """Real tensors for buffers: what steps wrote, overwritten by the reference's values."""

    def __init__(self, built: Built, values: dict[str, Tensor], inputs: tuple[Tensor, ...]) -> None:
        self._built, self._values = built, values
        self._bytes: dict[Buffer, Tensor] = {}
        for buffer, given in zip(built.inputs, inputs, strict=True):
            self._bytes[buffer] = given.contiguous().reshape(-1).view(torch.uint8)

    def bytes_of(self, buffer: Buffer) -> Tensor:
        """The memory of a buffer, made on first sight."""
        if buffer not in self._bytes:
            if buffer.constant is not None:
                flat = buffer.constant.contiguous().reshape(-1).view(torch.uint8)
                self._bytes[buffer] = torch.cat([flat, flat.new_zeros(_SLACK)])
            else:
                size = buffer.image_bytes + _SLACK
                self._bytes[buffer] = torch.zeros(size, dtype=torch.uint8)
        return self._bytes[buffer]

    def fill(self, buffer: Buffer) -> None:
        """Put the reference's values where nodes are known to lie."""
        elements = self.bytes_of(buffer)
        if buffer.home != "arena":
            return
        typed = elements[: elements.numel() // 4 * 4].view(buffer.dtype)
        for name, view in self._built.values.items():
            if view.source is buffer and name in self._values:
                places = _places(buffer, view.index)
                typed[places] = _plain(self._values[name]).reshape(-1).to(buffer.dtype)

    def written(self, step: Step, buffer: Buffer) -> Iterator[Difference]:
        """What a step left there, for every node that lies in it."""
        elements = self.bytes_of(buffer)
        typed = elements[: elements.numel() // 4 * 4].view(buffer.dtype)
        for name, view in self._built.values.items():
            if view.source is buffer and name in self._values:
                ours = typed[_places(buffer, view.index)].clone()
                yield Difference(step, name, ours, _plain(self._values[name]).reshape(-1))

    def call(self, step: Step, library: ctypes.CDLL) -> None:
        """One call of the step's kernel, by one part."""
        form = type(step.arguments)
        block = form.from_buffer_copy(bytes(step.arguments))
        scratch = torch.zeros(step.scratch + _SLACK, dtype=torch.uint8)
        for name, pointer in step.pointers.items():
            at = ctypes.addressof(block) + field_offset(form, name)
            ctypes.c_void_p.from_address(at).value = self._address(pointer, scratch)
        kernel = getattr(library, f"fxq_{Kernel(step.kernel).name.lower()}")
        kernel(ctypes.byref(block), ctypes.c_int32(0), ctypes.c_int32(1))

    def _address(self, pointer: Pointer, scratch: Tensor) -> int:
        target = pointer.target
        if target is None:
            return scratch.data_ptr() + pointer.offset
        held = self.bytes_of(target) if isinstance(target, Buffer) else target
        return held.data_ptr() + pointer.offset


def _places(buffer: Buffer, index: Tensor) -> Tensor:
    """Where the elements of a view lie in memory, in elements."""
    flat = index.reshape(-1)
    if not buffer.quads:
        return flat
    rows, columns = flat // buffer.columns, flat % buffer.columns
    return (rows // 4 * buffer.columns + columns) * 4 + rows % 4


def _plain(value: Tensor) -> Tensor:
    """Codes as u8, everything else as it is."""
    return value.to(torch.int16) + 128 if value.dtype is torch.int8 else value
