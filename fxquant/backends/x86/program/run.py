"""``fxquant::run_program``: a whole encoded program as one operator.

The program and its constants are tensors, so the operator has no state: a graph that calls it can
be printed, compiled around, copied and traced like any other.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.backends.x86.compiled import library
from fxquant.errors import BackendError
from fxquant.quant.library import library as operators

operators.define(
    "run_program(Tensor program, Tensor constants, Tensor[] inputs, int[] output_shapes,"
    " str level, int micro) -> Tensor[]"
)
run_program = torch.ops.fxquant.run_program.default


@dataclass(frozen=True)
class Call:
    """What a run takes besides the batch. ``inputs``: shape for one image and dtype of each.

    ``output_shapes``: for each output its number of axes, then its shape for one image.
    """

    program: Tensor
    constants: Tensor
    inputs: tuple[tuple[tuple[int, ...], torch.dtype], ...]
    output_shapes: tuple[int, ...]
    level: str


def execute(
    program: Tensor,
    constants: Tensor,
    inputs: Sequence[Tensor],
    output_shapes: Sequence[int],
    level: str,
    micro: int,
    profile: Tensor | None = None,
) -> list[Tensor]:
    """Run a program on a batch.

    ``output_shapes``: for each output its number of axes, then its shape for one image.
    ``profile``: int64 per step, to which nanoseconds are added. Threads are torch's own number.
    """
    kernels = library(level)
    held = [x.contiguous() for x in inputs]
    images, threads = int(held[0].shape[0]), torch.get_num_threads()
    outputs = [held[0].new_empty(s, dtype=torch.float32) for s in _shapes(output_shapes, images)]
    if not images:
        return outputs
    tensors = [*held, *outputs]
    pointers = (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
    sizes = (ctypes.c_int64(images), ctypes.c_int32(threads), ctypes.c_int32(micro))
    bytes_of = ctypes.c_void_p(program.data_ptr())
    space = torch.empty(kernels.fxq_workspace(bytes_of, *sizes), dtype=torch.uint8)
    failed = kernels.fxq_run(
        bytes_of,
        ctypes.c_void_p(constants.data_ptr()),
        pointers,
        ctypes.c_void_p(space.data_ptr()),
        *sizes,
        ctypes.c_void_p(None if profile is None else profile.data_ptr()),
    )
    if failed:
        raise BackendError(f"step {failed - 1} of a program has a kernel this build does not know")
    return outputs


def _shapes(flat: Sequence[int], images: int) -> list[tuple[int, ...]]:
    found, rest = [], list(flat)
    while rest:
        axes = rest.pop(0)
        shape, rest = rest[:axes], rest[axes:]
        found.append((images * shape[0], *shape[1:]))
    return found


def _fake(
    program: Tensor,
    constants: Tensor,
    inputs: Sequence[Tensor],
    output_shapes: Sequence[int],
    level: str,
    micro: int,
) -> list[Tensor]:
    batch = inputs[0].shape[0]
    return [
        inputs[0].new_empty((batch * s[0], *s[1:]), dtype=torch.float32)
        for s in _shapes(output_shapes, 1)
    ]


operators.impl("run_program", execute, "CPU")
torch.library.register_fake("fxquant::run_program", _fake, lib=operators)
