"""One layer's weight and bias fitted anew to a sample of its inputs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from fxquant.passes.moments import folds_of
from fxquant.passes.running import fast_linear
from fxquant.quant.compensate import Grid, halves, round_compensating
from fxquant.quant.qparams import QParams
from fxquant.quant.ridge import Moments, best_bias, cross_validated, joined, ridge_update
from fxquant.quant.scheme import Scheme
from fxquant.quant.uniform import dequantize
from fxquant.quant.weight import weight_codes, weight_qparams

FOLDS = 4  # groups of images, each held out once
Rounding = Literal["off", "halves", "columns"]


@dataclass(frozen=True)
class Fit:
    """Codes as stored, their scales, and a float32 bias ``[O]``."""

    codes: Tensor
    qparams: QParams
    bias: Tensor

    @property
    def weight(self) -> Tensor:
        """The float32 weight they stand for."""
        return dequantize(self.codes, self.qparams)


@dataclass(frozen=True)
class LayerSample:
    """A layer's exact weight ``[O, ...]`` and bias ``[O]``, and rows ``[n, C]`` of its inputs.

    ``x`` exact and ``x_hat`` quantized, image by image over ``images`` images; ``weights`` ``[n]``:
    how much the error of each row counts.
    """

    weight: Tensor
    bias: Tensor
    x: Tensor
    x_hat: Tensor
    weights: Tensor
    images: int

    @property
    def rows(self) -> Tensor:
        """The weight as a matrix ``[O, C]``."""
        return self.weight.flatten(1)

    @cached_property
    def parts(self) -> list[Moments]:
        """Moments by groups of images."""
        return folds_of(self.x, self.x_hat, self.weights, self.images, FOLDS)

    @cached_property
    def moments(self) -> Moments:
        """Those of the whole sample."""
        return joined(self.parts)

    def strength(self, candidates: tuple[float, ...]) -> float | None:
        """The one of several that serves held-out images best; one alone is not questioned."""
        if len(candidates) == 1:
            return candidates[0]
        return cross_validated(self.rows, self.parts, candidates)

    def output_db(self, weight: Tensor, bias: Tensor) -> float:
        """Weighed signal to noise ratio in dB of the output with another weight and bias."""
        exact = fast_linear(self.x, self.rows, self.bias)
        noise = fast_linear(self.x_hat, weight.flatten(1), bias).sub_(exact)
        powers = [self.weights.double() @ y.square().sum(1).double() for y in (exact, noise)]
        signal, error = (power.clamp(min=1e-300) for power in powers)
        return float((10 * torch.log10(signal / error)).clamp(-150, 150))

    def fit(
        self, scheme: Scheme, strength: float | None, rounding: Rounding, damping: float, where: str
    ) -> Fit:
        """``Q(W + δ)`` and the best bias for it; no δ where ``strength`` is None."""
        wanted = self.rows.to(torch.float64)
        if strength is not None:
            wanted = wanted + ridge_update(self.rows, self.moments, strength)
        target = wanted.to(torch.float32).reshape(self.weight.shape)
        qparams = weight_qparams(target, scheme, where=where)
        if rounding == "off":
            codes = weight_codes(target, qparams)
        else:
            count = wanted.shape[1]
            grid = Grid(_spread(qparams, wanted), scheme.quant_min, scheme.quant_max)
            sizes = halves(count) if rounding == "halves" else (1,) * count
            found = round_compensating(
                wanted, self.moments.covariance, grid, sizes, damping=damping
            )
            codes = found.to(scheme.dtype).reshape(self.weight.shape)
        weight = dequantize(codes, qparams).flatten(1)
        bias = best_bias(self.rows, self.bias, weight, self.moments)
        return Fit(codes, qparams, bias.to(torch.float32))


def _spread(qparams: QParams, weight: Tensor) -> Tensor:
    """A scalar, ``[O]`` or ``[O, groups]`` scale for each entry of ``weight`` ``[O, C]``."""
    scale = qparams.scale.to(torch.float64)
    if scale.dim() < 2:
        return scale.reshape(-1, 1).expand(weight.shape)
    return scale.repeat_interleave(qparams.scheme.group_size, dim=1)
