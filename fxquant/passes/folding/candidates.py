"""The choices that are tried at a place."""

from __future__ import annotations

from typing import Literal

import torch

from fxquant.passes.folding.choices import Choice
from fxquant.passes.folding.migration import Center
from fxquant.passes.folding.views import View

Choose = Literal["sqb", "repq", "osplus", "searched"]
SEARCHED_ALPHAS = (0.25, 0.4, 0.5, 0.6, 0.75)
_CENTERS: tuple[Center, ...] = ("mean", "midrange", "none")
_THRESHOLDS = 12  # of Outlier Suppression+, spread evenly in log scale


def norm_candidates(
    choose: Choose, alphas: tuple[float, ...], center: Center, bits: int, view: View
) -> list[Choice]:
    """Choices for a norm that its readers see as ``view``; ``searched`` tries nothing first."""
    centers = _CENTERS if choose == "searched" else (center,)
    sqb = [Choice("sqb", alpha=alpha, center=c) for alpha in alphas for c in centers]
    if choose == "sqb":
        return sqb
    if choose == "repq":
        return [Choice("repq", bits=bits)]
    if choose == "osplus":
        return _thresholds(view)
    return [Choice("none"), *sqb, Choice("repq", bits=bits), *_thresholds(view)]


def value_candidates(choose: Choose, alphas: tuple[float, ...]) -> list[Choice]:
    """Choices for V: the formula of sqb without a shift, whatever the norms take."""
    scales = [Choice("sqb", alpha=alpha) for alpha in alphas]
    return [Choice("none"), *scales] if choose == "searched" else scales


def _thresholds(view: View) -> list[Choice]:
    """From the largest half range (no channel is scaled) down to the median one. The grid is [I];
    the paper searches the threshold by the output error too."""
    reach = (view.high - view.low) / 2
    most, middle = reach.amax(), reach.median()
    if float(most) <= 0.0:
        return [Choice("osplus")]
    ends = torch.stack([most, middle.clamp(min=1e-3 * most)]).log()
    shares = torch.linspace(0.0, 1.0, _THRESHOLDS, dtype=torch.float64)
    grid = torch.lerp(ends[0], ends[1], shares).exp()
    return [Choice("osplus", threshold=float(t)) for t in grid]
