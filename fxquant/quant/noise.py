"""NoisyQuant: what a fixed uniform noise before rounding does to the error, and the noise itself.

A value ``x >= 0`` away from the nearest rounding threshold (the midpoint of two codes) on a grid of
step ``2b`` has the error ``(b - x)^2``. With ``N ~ U(-n, n)`` added before rounding and taken off
after, the expected error changes by ``D(x, n) = n^2 / 3 - (b / n) (n - x)^2`` where ``x <= n <=
2b - x``, so noise helps exactly where ``x < n (1 - sqrt(n / 3b))`` (papers, section 3b). All of it
holds away from clipping.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def threshold_distance(x: Tensor, step: float | Tensor) -> Tensor:
    """Distance of values from the nearest rounding threshold of a grid through 0, in ``[0, b]``."""
    ratio = x / step
    return (ratio - ratio.floor() - 0.5).abs() * step


def expected_error(x: Tensor, n: float, half_step: float) -> Tensor:
    """``E (b - dist(x + N))^2`` exactly, for any ``n >= 0``; float64, shape of ``x``.

    ``[P(x + n) - P(x - n)] / 2n`` with P the integral of the squared error from 0: a whole bin adds
    ``2 b^3 / 3``, and r into a bin ``(b^3 - (b - r)^3) / 3``.
    """
    x = x.to(torch.float64)
    if n == 0:
        distance = torch.remainder(x + half_step, 2 * half_step) - half_step
        return (half_step - distance.abs()).square()
    ends = _integral(x + n, half_step) - _integral(x - n, half_step)
    return ends / (2 * n)


def _integral(u: Tensor, b: float) -> Tensor:
    bins = torch.floor(u.abs() / (2 * b))
    rest = u.abs() - 2 * b * bins
    return torch.sign(u) * (bins * 2 * b**3 + b**3 - (b - rest) ** 3) / 3


def added_error(x: Tensor, n: float, half_step: float) -> Tensor:
    """The paper's closed form of D, valid where ``x <= n <= 2b - x``; float64, shape of ``x``."""
    x = x.to(torch.float64)
    return n**2 / 3 - (half_step / n) * (n - x).square()


def reach(n: float, half_step: float) -> float:
    """Below this distance from a threshold noise of range ``n <= 3b`` provably helps."""
    return float(n * (1 - (n / (3 * half_step)) ** 0.5))


def provably_helped(x: Tensor, n: float, half_step: float | Tensor) -> Tensor:
    """Where the theorem applies and says ``D < 0``; bool, shape of ``x`` (threshold distances)."""
    if n <= 0:
        return torch.zeros_like(x, dtype=torch.bool)
    half_step = torch.as_tensor(half_step, dtype=x.dtype)
    applies = (x <= n) & (n <= 2 * half_step - x)
    return applies & (x < n * (1 - torch.sqrt(n / (3 * half_step))))


def provable_share(x: Tensor, n: float, half_step: float | Tensor) -> float:
    """Share of the values whose expected error ``U(-n, n)`` provably lowers."""
    return float(provably_helped(x, n, half_step).to(torch.float64).mean())


def uniform_noise(channels: int, n: float, seed: int, site: str) -> Tensor:
    """``U(-n, n)`` per channel, float32 ``[channels]``; always the same for one seed and site.

    Only scaled by ``n``, so that a search over ``n`` moves along one direction.
    """
    generator = _generator(seed, site)
    return (torch.rand(channels, generator=generator) * 2 - 1) * n


def gaussian_code_noise(
    channels: int, amplitude: float, seed: int, site: str, *, offset: float = 0.0
) -> Tensor:
    """``(2 randn - 1) amplitude + offset`` per channel, float32 ``[channels]``.

    What the authors' code draws, a Gaussian of mean ``-amplitude`` and deviation ``2 amplitude``
    where the paper says uniform, and the constant that it searches first (papers, section 3a).
    """
    generator = _generator(seed, site)
    return (torch.randn(channels, generator=generator) * 2 - 1) * amplitude + offset


def _generator(seed: int, site: str) -> torch.Generator:
    """Not Python's hash of the text: that differs from one process to the next."""
    digest = hashlib.sha256(f"{seed}:{site}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
