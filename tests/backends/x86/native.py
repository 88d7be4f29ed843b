"""What the tests of the native kernels share: guarded buffers, pointers, references."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fxquant.backends.x86.arguments import Activation, Store

CANARY = 0xA5
SLACK = 64


class Buffer:
    """Memory of exactly ``count`` elements between canary bytes."""

    def __init__(self, count: int, dtype: torch.dtype) -> None:
        self.bytes = count * dtype.itemsize
        self.raw = torch.full((self.bytes + 2 * SLACK,), CANARY, dtype=torch.uint8)
        self.data = self.raw[SLACK : SLACK + self.bytes].view(dtype)

    @property
    def pointer(self) -> int:
        return self.data.data_ptr()

    def check(self) -> None:
        assert (self.raw[:SLACK] == CANARY).all()
        assert (self.raw[SLACK + self.bytes :] == CANARY).all()


def readable(data: Tensor) -> Tensor:
    """A copy with slack behind it, as the kernels may read there."""
    raw = torch.full((data.nbytes + SLACK,), CANARY, dtype=torch.uint8)
    copy = raw[: data.nbytes].view(data.dtype).view(data.shape)
    return copy.copy_(data)


def check_result(
    output: Buffer, expected: Tensor, shape: tuple[int, int], store: Store, tolerance: float
) -> None:
    """Floats as they are, codes by 17 steps a unit and zero point 99 within ``tolerance``."""
    output.check()
    if store == Store.F32_ROWS:
        torch.testing.assert_close(
            output.data.view(*shape).double(), expected, rtol=1e-4, atol=6e-4
        )
        return
    found = from_quads(output.data, *shape) if store == Store.U8_QUADS else output.data
    exact = (expected * 17 + 99).clamp(0, 255)
    assert (found.view(*shape).double() - exact).abs().max() <= tolerance


def activate(x: Tensor, activation: Activation) -> Tensor:
    functions = {
        Activation.NONE: lambda t: t,
        Activation.GELU: functional.gelu,
        Activation.GELU_TANH: lambda t: functional.gelu(t, approximate="tanh"),
        Activation.RELU: torch.relu,
        Activation.SILU: functional.silu,
    }
    return functions[activation](x)


def to_quads(codes: Tensor) -> Tensor:
    """``[rows, columns]`` to ``[ceil(rows / 4), columns, 4]``, zeros beyond the last row."""
    padded = functional.pad(codes, (0, 0, 0, -len(codes) % 4))
    return padded.view(-1, 4, codes.shape[1]).transpose(1, 2).contiguous()


def from_quads(data: Tensor, rows: int, columns: int) -> Tensor:
    return data.view(-1, columns, 4).transpose(1, 2).reshape(-1, columns)[:rows]


def output_of(store: Store, rows: int, columns: int) -> Buffer:
    rows += -rows % 4 if store == Store.U8_QUADS else 0
    return Buffer(rows * columns, torch.float32 if store == Store.F32_ROWS else torch.uint8)


def stride_of(store: Store, columns: int) -> int:
    return 4 * columns if store == Store.U8_QUADS else columns


def codes(generator: torch.Generator, *shape: int, signed: bool, level: str) -> Tensor:
    """Random codes; plain AVX2 adds pairs in 16 bits and takes seven bits of activations."""
    low, high = (-127, 128) if signed else (0, 128 if level == "avx2" else 256)
    dtype = torch.int8 if signed else torch.uint8
    return torch.randint(low, high, shape, generator=generator, dtype=dtype)
