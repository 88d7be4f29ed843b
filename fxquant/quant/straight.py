"""What the fake quantizers of all kinds share: straight-through gradients, scales per head."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

Scale = TypeVar("Scale", int, float, Tensor, float | Tensor, int | Tensor)


def straight_through(x: Tensor, value: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """``value``, exactly, with the gradient of ``clamp(x, low, high)``.

    A number less itself is exactly 0, so nothing is added to the value but a gradient.
    """
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        kept = torch.minimum(torch.maximum(x, torch.as_tensor(low)), torch.as_tensor(high))
    else:
        kept = x.clamp(low, high)
    return value.detach() + (kept - kept.detach())


def per_head(scale: Scale, x: Tensor) -> Scale:
    """``[H]`` scales, shaped for ``x [B, H, ...]``; a number, for all of it, stays one."""
    return scale.reshape(-1, *[1] * (x.dim() - 2)) if isinstance(scale, Tensor) else scale
