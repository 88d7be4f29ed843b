"""Calibration data as passes take it."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fxquant.errors import CalibrationError
from fxquant.pipeline.state import State
from fxquant.quant.calibration import BATCH, Calibration, Leaves


def calibration_of(state: State, name: str, what: str) -> Calibration:
    """The data that pass ``name`` cannot do without.

    Where there is none, raises :class:`CalibrationError` with ``what`` the pass does on it.
    """
    if state.calibration is None:
        raise CalibrationError(
            what,
            where=f"pass {name}",
            fix=f"pass calibration=images, or leave the pass out: pipeline.without('{name}')",
        )
    return state.calibration


def first_images(calibration: Calibration, images: int) -> Iterator[Leaves]:
    """Batches up to a number of images; 0 for all of them."""
    left = images
    for leaves in calibration.batches():
        yield tuple(leaf[:left] for leaf in leaves) if images else leaves
        left -= leaves[0].shape[0]
        if images and left <= 0:
            return


def gather(calibration: Calibration, images: int, *, where: str) -> Leaves:
    """The first ``images`` samples as one batch, or all there are if they are fewer.

    Raises :class:`CalibrationError` where the data is empty.
    """
    parts = list(first_images(calibration, images))
    if not parts:
        raise CalibrationError("the calibration data is empty", where=where)
    return tuple(torch.cat(leaf) for leaf in zip(*parts, strict=True))


def at_hand(calibration: Calibration, images: int, *, where: str) -> Leaves:
    """:func:`gather`, without reading anything again where what calibration held is enough."""
    if images <= BATCH:
        return calibration.sample(images)
    return gather(calibration, images, where=where)
