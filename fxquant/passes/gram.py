"""What a product of two activations makes of an error in one of them."""

from __future__ import annotations

import torch
from torch import Tensor


class Gram:
    """``G = sum Y Yᵀ`` of a matmul's other operand, so that ``|e Y|² = e G eᵀ`` for an error row e.

    ``Y`` is ``[..., K, N]`` as a left operand meets it; with ``transposed`` it is given as the
    ``[..., M, K]`` that a right operand's columns meet. With ``heads``, axis 1 has a ``G`` of its
    own, else there is one for all. Errors and ``Y`` are taken as independent: their own image's
    ``Y`` is not kept apart. Float64 sums; memory does not grow with the data.
    """

    def __init__(self, *, heads: bool, transposed: bool) -> None:
        self.heads = heads
        self.transposed = transposed
        self.sum = torch.zeros(())

    def update(self, y: Tensor) -> None:
        """Take in a batch of the other operand."""
        y = y.detach().to(torch.float32)
        if self.transposed:
            y = y.transpose(-1, -2)
        products = (y @ y.transpose(-1, -2)).to(torch.float64)
        leading = [axis for axis in range(products.dim() - 2) if not (self.heads and axis == 1)]
        self.sum = self.sum + (products.sum(leading) if leading else products)

    def weight(self) -> Tensor:
        """A weight ``W`` with ``Wᵀ W = G``: float32 ``[K, K]``, or ``[H, K, K]``."""
        values, vectors = torch.linalg.eigh(self.sum)
        root: Tensor = values.clamp(min=0.0).sqrt().unsqueeze(-1) * vectors.transpose(-1, -2)
        return root.to(torch.float32)
