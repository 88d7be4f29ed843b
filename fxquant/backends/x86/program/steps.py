"""Calls of kernels with symbolic pointers, before memory is planned."""

from __future__ import annotations

from ctypes import Structure
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

import torch
from torch import Tensor

from fxquant.backends.x86.arguments import Epilogue
from fxquant.backends.x86.program.values import Buffer, Codes, View


class Kernel(IntEnum):
    """The kernels of a program, numbered as ``kernels/program.h`` does."""

    LINEAR = 0
    MIX = 1
    NORM = 2
    ATTENTION = 3
    FLOAT_ATTENTION = 4
    PATCHES = 5
    GATHER = 6
    MEAN = 7
    ADD = 8
    DENSE = 9


@dataclass(frozen=True, eq=False)
class Pointer:
    """Into a buffer, a constant tensor or (None) the thread's scratch; ``offset`` in bytes."""

    target: Buffer | Tensor | None
    offset: int = 0
    writes: bool = False


@dataclass(eq=False)
class Step:
    """One call. ``pointers``: field of the argument block to where it points, ``epilogue.output``
    for a nested one. ``text``: what it computes, for reports. ``int8``: whether it is a product of
    codes. ``also``: other layers that it computes."""

    kernel: Kernel
    arguments: Structure
    pointers: dict[str, Pointer]
    layer: str
    text: str
    int8: bool = False
    scratch: int = 0
    also: tuple[str, ...] = ()


class Emitting(Protocol):
    """What the emitters of single sources may ask of the whole."""

    steps: list[Step]

    def floats(self, view: View) -> View:
        """The view on memory that holds its elements in float32."""

    def codes(self, codes: Codes) -> View:
        """The view on memory that holds the codes."""

    def known(self, name: str, view: View) -> None:
        """Say where the value of a node lies."""

    def packed(self, codes: Tensor) -> Tensor:
        """Weights ``[out, in]`` as the linear kernel takes them."""

    def attention_scratch(self, shape: tuple[int, int, int], width: int, *, codes: bool) -> int:
        """Bytes of scratch of an attention call."""


@dataclass
class EpilogueParts:
    """An epilogue block and its pointers, filled in step by step."""

    block: Epilogue = field(default_factory=Epilogue)
    pointers: dict[str, Pointer] = field(default_factory=dict)

    def point(self, name: str, pointer: Pointer) -> None:
        """Set a pointer of the epilogue."""
        self.pointers[f"epilogue.{name}"] = pointer


def constant(values: Tensor, dtype: torch.dtype = torch.float32) -> Pointer:
    """A pointer to a constant of the given dtype."""
    return Pointer(values.to(dtype).contiguous())
