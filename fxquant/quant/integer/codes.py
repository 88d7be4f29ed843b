"""How codes stand for values: step, zero point, ends and type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from fxquant.quant import ops


@dataclass(frozen=True)
class Codes:
    """``x ~ scale (code - zero_point)``, ``low <= code <= high``, stored as ``dtype``."""

    scale: float
    zero_point: int
    low: int
    high: int
    dtype: torch.dtype

    @staticmethod
    def symmetric(scale: float, bits: int) -> Codes:
        """Signed codes without a zero point, int8 up to 8 bits, else int16."""
        half = 1 << (bits - 1)
        return Codes(scale, 0, -half, half - 1, torch.int8 if bits <= 8 else torch.int16)

    @staticmethod
    def of(arguments: tuple[Any, ...]) -> Codes:
        """From the arguments behind the tensor of a quantize or dequantize call per tensor."""
        scale, zero_point, low, high, dtype = arguments[:5]
        return Codes(float(scale), int(zero_point), int(low), int(high), dtype)

    @property
    def arguments(self) -> tuple[float, int, int, int, torch.dtype]:
        """Arguments of a quantize or dequantize call behind the tensor."""
        return (self.scale, self.zero_point, self.low, self.high, self.dtype)

    @property
    def ends(self) -> tuple[int, int, int, torch.dtype]:
        """Arguments of the operators that saturate."""
        return (self.zero_point, self.low, self.high, self.dtype)

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """Codes of float values."""
        made: torch.Tensor = ops.quantize_per_tensor(x, *self.arguments)
        return made

    def dequantize(self, codes: torch.Tensor) -> torch.Tensor:
        """Float values of codes."""
        made: torch.Tensor = ops.dequantize_per_tensor(codes, *self.arguments)
        return made
