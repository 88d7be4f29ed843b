"""``fxquant::isqrt``: the integer square root, the one operator that does not decompose."""

from __future__ import annotations

import torch
from torch import Tensor

from fxquant.quant.library import library

NEWTON_START = 1 << 16
NEWTON_STEPS = 10  # of I-ViT; not converged for sums below about 3.2e4 (papers, section 4c)


def _isqrt(v: Tensor, newton_steps: int) -> Tensor:
    """``floor(sqrt(v))`` for ``0 <= v < 2^62``, or a fixed number of Newton steps from 2^16.

    int64, any shape. ``newton_steps = 0``: ``x <- floor((x + floor(v / x)) / 2)`` from a power of
    two that is at least the largest root, until nothing shrinks; from above this descends to the
    exact root (I-BERT, papers, section 4c). Else as many steps as asked, exact or not (I-ViT).
    """
    v = v.to(torch.int64)
    if newton_steps:
        x = torch.full_like(v, NEWTON_START)
        for _ in range(newton_steps):
            x = (x + torch.div(v, x.clamp(min=1), rounding_mode="floor")) >> 1
        return x
    largest = int(v.max()) if v.numel() else 0
    x = torch.full_like(v, 1 << (largest.bit_length() + 1) // 2)
    while True:
        smaller = (x + torch.div(v, x.clamp(min=1), rounding_mode="floor")) >> 1
        if not bool((smaller < x).any()):
            return x
        x = torch.minimum(x, smaller)


def _isqrt_fake(v: Tensor, newton_steps: int) -> Tensor:
    return v.new_empty(v.shape, dtype=torch.int64)


library.define("isqrt(Tensor v, int newton_steps) -> Tensor")
for _key in ("CPU", "CUDA"):
    library.impl("isqrt", _isqrt, _key)
torch.library.register_fake("fxquant::isqrt", _isqrt_fake, lib=library)
isqrt = torch.ops.fxquant.isqrt.default
