"""Rounding a weight so that what one column gets wrong, the columns after it make up for.

Source: ERQ's update for quantized weights, Wqer (papers, section 5.3), which rounds half of the
columns at a time; one at a time it is optimal brain quantization.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.quant.ridge import penalised

FLIPS = 100  # ERQ's limit on the steps of rounding refinement
_LAZY = 128  # columns whose effect on those beyond is carried over in one product


@dataclass(frozen=True)
class Grid:
    """The representable weights: ``step * code`` for whole codes in ``low .. high``.

    ``step`` float64 ``[O, C]``, positive.
    """

    step: Tensor
    low: int
    high: int

    def nearest(self, weight: Tensor, columns: Tensor) -> Tensor:
        """Codes (whole float64) of ``weight[:, columns]``, given as those columns alone."""
        return torch.round(weight / self.step[:, columns]).clamp(self.low, self.high)


def halves(columns: int) -> tuple[int, ...]:
    """ERQ's block sizes: half of the columns, then half of the rest, down to one."""
    sizes = []
    while columns:
        sizes.append(max(1, columns // 2))
        columns -= sizes[-1]
    return tuple(sizes)


def round_compensating(
    weight: Tensor, covariance: Tensor, grid: Grid, sizes: tuple[int, ...], *, damping: float
) -> Tensor:
    """Codes (whole float64 ``[O, C]``) with a small ``(Ŵ - W) Σ (Ŵ - W)ᵀ`` in every row.

    Blocks of columns are rounded one after the other, ``sizes`` columns at a time; after each, the
    columns still to come take up its error: ``W_r -= (W_s - Ŵ_s)(−Σ_sr Σ_rr⁻¹)``, the ridge
    solution for ``Σ = covariance + damping * mean diag * I``. All of the Σ_rr⁻¹ come out of one
    Cholesky factor U of Σ⁻¹ (``UᵀU = Σ⁻¹``), since ``-Σ_sr Σ_rr⁻¹ = U_ss⁻¹ U_sr``. Sizes of 1 are
    optimal brain quantization column by column; larger blocks are rounded to nearest and refined
    by :func:`refine` for the error that is left once the rest has made up for theirs. (ERQ refines
    for Σ_ss, as if the rest made up for nothing [I].) Columns of most energy go first, while there
    are most others to compensate them [I]. With a diagonal covariance this is rounding to nearest.
    """
    damped = penalised(covariance, damping)
    order = torch.argsort(damped.diagonal(), descending=True, stable=True)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped[order][:, order]))
    upper = torch.linalg.cholesky(inverse, upper=True)
    left = weight.to(torch.float64)[:, order].clone()
    codes = torch.empty_like(left)
    errors = torch.empty_like(left)
    start = first = near = 0  # errors of columns first .. start still have to reach those from near
    for size in sizes:
        end = start + size
        if end > near:
            left[:, near:] -= errors[:, first:start] @ upper[first:start, near:]
            first, near = start, max(end, min(start + _LAZY, left.shape[1]))
        block, steps = upper[start:end, start:end], order[start:end]
        rounded = grid.nearest(left[:, start:end], steps)
        if size > 1:
            target = torch.cholesky_inverse(block, upper=True)
            local = Grid(grid.step[:, steps], grid.low, grid.high)
            rounded = refine(left[:, start:end], rounded, target, local)
        codes[:, start:end] = rounded
        error = left[:, start:end] - rounded * grid.step[:, steps]
        errors[:, start:end] = torch.linalg.solve_triangular(block, error, upper=True, left=False)
        left[:, end:near] -= errors[:, start:end] @ upper[start:end, end:near]
        start = end
    result = torch.empty_like(codes)
    result[:, order] = codes
    return result


def refine(weight: Tensor, codes: Tensor, covariance: Tensor, grid: Grid) -> Tensor:
    """Move single codes by one, per row, for as long as that lowers ``(Ŵ - W) Σ (Ŵ - W)ᵀ``.

    ERQ's rounding refinement: at most :data:`FLIPS` moves per row, each the best there is. (ERQ
    picks the code of the largest gradient; the error is quadratic, so the gain is known exactly
    [I].) Never worse than ``codes``, whole float64 ``[O, C]``; ``covariance`` ``[C, C]``.
    """
    codes = codes.clone()
    rows = torch.arange(weight.shape[0])
    step, curvature = grid.step, covariance.diagonal()
    slope = (codes * step - weight.to(torch.float64)) @ covariance
    for _ in range(FLIPS):
        sign = -torch.sign(slope)  # only a move against the slope can lower the error
        room = (codes + sign <= grid.high) & (codes + sign >= grid.low)
        gain = torch.where(room, step * (2 * slope.abs() - step * curvature), -1.0)
        best, where = gain.max(1)
        move = torch.where(best > 0, sign[rows, where], 0.0)
        if not bool(move.any()):
            break
        codes[rows, where] += move
        slope += (move * step[rows, where])[:, None] * covariance[where]
    return codes
