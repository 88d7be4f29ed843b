"""Calibration data as passes take it."""

from __future__ import annotations

from fxquant.errors import CalibrationError
from fxquant.pipeline.state import State
from fxquant.quant.calibration import Calibration


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
