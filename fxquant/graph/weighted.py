"""Softmax and the product behind it, taken apart at the exponentials.

``softmax(s) v`` is ``e v / sum(e)`` with ``e = exp(s - max s)``. Quantizing ``e`` instead of the
shares needs no division before the product: its range is [0, 1] for every row, so codes have the
step 1/255, and dividing by the sum of the same codes keeps every result a weighted mean of values.
"""

from __future__ import annotations

import torch
from torch import Tensor

_library = torch.library.Library("fxquant", "FRAGMENT")
_library.define("row_exponentials(Tensor scores) -> Tensor")
_library.define("weighted_mean(Tensor weights, Tensor values) -> Tensor")


def _row_exponentials(scores: Tensor) -> Tensor:
    """``exp(s - max s)`` along the last axis, in (0, 1]; 1 at the largest score of each row."""
    return torch.exp(scores - scores.amax(-1, keepdim=True))


def _weighted_mean(weights: Tensor, values: Tensor) -> Tensor:
    """``w v / sum(w)``: weights ``[..., n, m]`` and values ``[..., m, d]`` to ``[..., n, d]``."""
    return torch.matmul(weights, values) / weights.sum(-1, keepdim=True)


_library.impl("row_exponentials", _row_exponentials, "CompositeImplicitAutograd")
_library.impl("weighted_mean", _weighted_mean, "CompositeImplicitAutograd")

row_exponentials = torch.ops.fxquant.row_exponentials.default
weighted_mean = torch.ops.fxquant.weighted_mean.default
