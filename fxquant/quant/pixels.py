"""The grid that a normalised 8-bit image lies on.

``x = (p / 255 - mean) / std`` with ``p`` in 0..255 means ``p = 255 std x + 255 mean``: an affine
map per channel takes every normalised value back to the integer it came from.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.errors import InputError

LARGEST = 255
TOLERANCE = 1e-3  # pixel steps; float32 arithmetic leaves about 1e-4
_MOST_VALUES = 1024  # an 8-bit channel has 256, each perhaps in two roundings


@dataclass(frozen=True)
class PixelGrid:
    """``p = scale x + offset``, one entry per channel."""

    scale: tuple[float, ...]
    offset: tuple[float, ...]

    @property
    def zero_point(self) -> int:
        """The pixel value nearest to where normalised images are 0, over all channels."""
        return min(max(round(sum(self.offset) / len(self.offset)), 0), LARGEST)

    def pixels(self, x: Tensor) -> Tensor:
        """Images ``[N, C, H, W]`` in steps of a pixel, float64, not rounded."""
        scale, offset = torch.tensor((self.scale, self.offset), dtype=torch.float64)
        p: Tensor = x.to(torch.float64) * scale.reshape(-1, 1, 1) + offset.reshape(-1, 1, 1)
        return p


def grid_of(mean: tuple[float, ...], std: tuple[float, ...]) -> PixelGrid:
    """The grid of ``(p / 255 - mean) / std``; raises :class:`InputError` where there is none."""
    place = "input_normalization"
    if len(mean) != len(std) or not mean:
        raise InputError(
            f"{len(mean)} means and {len(std)} standard deviations",
            where=place,
            fix="give one of each per channel, for example ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))",
        )
    finite = torch.isfinite(torch.tensor((*mean, *std), dtype=torch.float64)).all()
    if not bool(finite) or not all(value > 0 for value in std):
        raise InputError(
            f"cannot undo mean {mean} and std {std}",
            where=place,
            why="every value must be finite, and a standard deviation above 0",
        )
    scale, offset = tuple(LARGEST * s for s in std), tuple(LARGEST * m for m in mean)
    return PixelGrid(scale, offset)


def find_grid(batches: Iterable[Tensor]) -> PixelGrid | str:
    """The one grid that float images ``[N, C, H, W]`` lie on, or why there is none to be sure of.

    Reads batches until every channel has shown pixel 0, pixel 255 and two neighbouring ones: then
    no other grid fits. The smallest value is pixel 0 and the largest 255, and all others must lie
    within ``TOLERANCE`` of an integer.
    """
    seen: list[Tensor] = []
    verdict: PixelGrid | str = "there are no images to find the pixel grid from"
    for images in batches:
        values = [images[:, channel].unique() for channel in range(images.shape[1])]
        joined = zip(seen, values, strict=True) if seen else ((v,) for v in values)
        seen = [torch.cat(parts).unique() for parts in joined]
        most = max(len(v) for v in seen)
        if most > _MOST_VALUES:
            return f"the images are not 8-bit: a channel holds {most} values or more"
        verdict = _grid_through(seen)
        if isinstance(verdict, PixelGrid):
            break
    return verdict


def _grid_through(values: list[Tensor]) -> PixelGrid | str:
    """The grid on which sorted values, one tensor per channel, reach from 0 to 255."""
    scales, offsets = [], []
    for channel, found in enumerate(values):
        low, high = float(found[0]), float(found[-1])
        if low == high:
            return f"channel {channel} is constant: no pixel grid can be read off it"
        scale = LARGEST / (high - low)
        position = (found.to(torch.float64) - low) * scale
        nearest = position.round()
        if float((position - nearest).abs().max()) > TOLERANCE:
            return (
                f"channel {channel} lies on no grid of 0..255: not 8-bit, resized after "
                "normalization, or never at 0 or 255"
            )
        if float(nearest.unique().diff().min()) > 1:
            return f"channel {channel} shows no two neighbouring pixel values"
        scales.append(scale)
        offsets.append(-low * scale)
    return PixelGrid(tuple(scales), tuple(offsets))
