"""Second moments of a layer's inputs, exact and quantized, over a sample of images."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.fx import Node

from fxquant.graph.convolution import CONVOLUTION, Convolution
from fxquant.passes.running import fast_linear
from fxquant.quant.ridge import Moments

aten = torch.ops.aten
_CHUNK = 1024  # rows whose products are summed in float32; sums of chunks are float64


def not_a_linear(node: Node) -> str:
    """Why a weighted node is no linear over the last axis or over patches; empty where it is."""
    if node.target is aten.linear.default:
        return ""
    if node.target is not CONVOLUTION:
        return f"{node.target} is no linear over patches"
    form = Convolution.of(node)
    if form.stride != form.kernel or form.padded or form.dilated or form.groups != 1:
        return "its patches overlap, are padded or are dilated: no linear over patches"
    return ""


def rows_of(node: Node, x: Tensor) -> Tensor:
    """``[n, C]``: what meets each row of the weight ``[O, C]``, flattened, image by image."""
    if node.target is aten.linear.default:
        return x.reshape(-1, x.shape[-1])
    return Convolution.of(node).patches(x).flatten(0, 1)


def moments_of(x: Tensor, x_hat: Tensor, weights: Tensor) -> Moments:
    """Those of rows ``[n, C]`` of a layer's exact and quantized input, weighed by ``[n]``.

    Both are centred before they are multiplied, so that float32 products lose nothing to the mean.
    """
    total = float(weights.sum(dtype=torch.float64))
    mean, exact = ((rows.t() @ weights).to(torch.float64) / total for rows in (x_hat, x))
    size = x.shape[1]
    covariance, cross = (torch.zeros(size, size, dtype=torch.float64) for _ in range(2))
    centre, shift = mean.to(x.dtype), (exact - mean).to(x.dtype)
    roots = weights.sqrt()[:, None]
    chunks = (rows.split(_CHUNK) for rows in (x, x_hat, roots))
    for one, other, root in zip(*chunks, strict=True):
        # Transposed copies, since oneDNN wants the summed axis last in both factors.
        left = ((other - centre) * root).t().contiguous()
        right = ((one - other - shift) * root).t().contiguous()
        covariance += fast_linear(left, left)
        cross += fast_linear(left, right)
    # The product of a matrix with itself need not come out symmetric to the last bit.
    covariance = (covariance + covariance.t()) / (2 * total)
    return Moments(total, mean, exact, covariance, cross / total)


def folds_of(x: Tensor, x_hat: Tensor, weights: Tensor, images: int, folds: int) -> list[Moments]:
    """Moments of ``folds`` groups of whole images, in order; fewer where there are fewer images.

    A layer whose rows do not divide into images is cut into groups of rows.
    """
    unit = x.shape[0] // images if x.shape[0] % images == 0 else 1
    units = x.shape[0] // unit
    count = min(folds, units)
    ends = [units * i // count * unit for i in range(count + 1)]
    return [moments_of(x[a:b], x_hat[a:b], weights[a:b]) for a, b in pairwise(ends)]
