"""Weights fitted to quantized inputs by ridge regression, in closed form.

Source: ERQ's update for quantized activations, Aqer (papers, section 5.3). The data comes in
through second moments only. They are taken about the mean, which is the same as an intercept that
is free to move and not penalised; ERQ's code penalises it like a weight [I].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Means and centred second moments of a layer's inputs over ``rows`` tokens, all float64.

    ``mean`` and ``exact_mean`` ``[C]``: of the quantized input x̂ and of the exact input x.
    ``covariance`` ``[C, C]``: of x̂. ``cross`` ``[C, C]``: of x̂ (axis 0) with ``x - x̂`` (axis 1).
    """

    rows: float
    mean: Tensor
    exact_mean: Tensor
    covariance: Tensor
    cross: Tensor

    @property
    def level(self) -> float:
        """Mean diagonal of the covariance: what the strength of a penalty is relative to."""
        return float(self.covariance.diagonal().mean())


def joined(parts: Sequence[Moments]) -> Moments:
    """Moments of several groups of rows taken together."""
    rows = sum(part.rows for part in parts)
    mean = sum((p.mean * (p.rows / rows) for p in parts), torch.zeros(()))
    exact = sum((p.exact_mean * (p.rows / rows) for p in parts), torch.zeros(()))
    covariance, cross = torch.zeros(()), torch.zeros(())
    for part in parts:
        away, share = part.mean - mean, part.rows / rows
        shift = part.exact_mean - exact - away
        covariance = covariance + share * (part.covariance + torch.outer(away, away))
        cross = cross + share * (part.cross + torch.outer(away, shift))
    return Moments(rows, mean, exact, covariance, cross)


def penalised(covariance: Tensor, strength: float) -> Tensor:
    """``covariance + strength * mean(diag(covariance)) * I``, invertible in any case.

    A penalty relative to the mean diagonal does not depend on the number of rows or the scale of
    the inputs; ERQ's is absolute, ``0.1 * coe`` on sums over tokens, with coe found by model [I].
    """
    diagonal = covariance.diagonal()
    # 1e-10 of the mean is beyond what float32 sums resolve, and keeps Cholesky going.
    added = max(strength, 1e-10) * float(diagonal.mean())
    return covariance + torch.diag(torch.full_like(diagonal, added if added > 0 else 1.0))


def ridge_update(weight: Tensor, moments: Moments, strength: float) -> Tensor:
    """``argmin_δ E‖W x - (W + δ) x̂ - c‖² + λ‖δ‖²`` for the best constant c.

    ``δ = W · Cov(x - x̂, x̂) · (Cov(x̂, x̂) + λI)⁻¹``, ``λ = strength * mean diag Cov(x̂, x̂)``.
    ``weight`` ``[O, C]``; float64 ``[O, C]``. The constant is what :func:`best_bias` gives.
    """
    factor = torch.linalg.cholesky(penalised(moments.covariance, strength))
    return torch.cholesky_solve(moments.cross @ weight.to(torch.float64).T, factor).T


def held_out_gain(weight: Tensor, update: Tensor, learned: Moments, held_out: Moments) -> float:
    """Fall of the mean squared output error on other rows than an update was learned from.

    ``E‖W x - W x̂ - c‖² - E‖W x - (W + δ) x̂ - c_δ‖²`` over ``held_out``, each constant c the best
    for ``learned``. ``weight`` and ``update`` (δ) are ``[O, C]``.
    """
    weight = weight.to(torch.float64)
    away = held_out.mean - learned.mean
    drift = weight @ (held_out.exact_mean - learned.exact_mean - away)
    spread = weighted_error(update, held_out.covariance).sum()
    meeting = (update * (weight @ held_out.cross.T)).sum()
    means = (drift - update @ away).square().sum() - drift.square().sum()
    return float(2 * meeting - spread - means)


def cross_validated(
    weight: Tensor, parts: Sequence[Moments], strengths: Sequence[float]
) -> float | None:
    """The strength of :func:`ridge_update` that lowers the error of left-out parts most.

    Each part in turn is held out of what the update is learned from. None where no strength
    lowers the error, or where there are less than two parts.
    """
    gains = dict.fromkeys(strengths, 0.0)
    for i, held_out in enumerate(parts if len(parts) > 1 else ()):
        learned = joined([part for j, part in enumerate(parts) if j != i])
        for strength in gains:
            update = ridge_update(weight, learned, strength)
            gains[strength] += held_out.rows * held_out_gain(weight, update, learned, held_out)
    best = max(gains, key=gains.__getitem__, default=None)
    return best if best is not None and gains[best] > 0 else None


def best_bias(weight: Tensor, bias: Tensor, fitted: Tensor, moments: Moments) -> Tensor:
    """The bias that makes the mean output right: ``E[W x] + b - E[Ŵ x̂]``; float64 ``[O]``."""
    exact = weight.to(torch.float64) @ moments.exact_mean
    return bias.to(torch.float64) + exact - fitted.to(torch.float64) @ moments.mean


def weighted_error(difference: Tensor, covariance: Tensor) -> Tensor:
    """``d Σ dᵀ`` for each row d of ``difference`` ``[O, C]``; float64 ``[O]``."""
    difference = difference.to(torch.float64)
    return ((difference @ covariance) * difference).sum(1)
