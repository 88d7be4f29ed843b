"""One idea per file; each a frozen dataclass over a :class:`~fxquant.pipeline.state.State`."""

from fxquant.passes.annotate import Annotate
from fxquant.passes.apply import Apply
from fxquant.passes.assign import Assign, Override
from fxquant.passes.calibrate import Calibrate
from fxquant.passes.correct_bias import CorrectBias
from fxquant.passes.exact_input import ExactInput
from fxquant.passes.integer import Integer
from fxquant.passes.measure import Measure
from fxquant.passes.noise import Noise
from fxquant.passes.nonlinear import Nonlinear
from fxquant.passes.open_attention import OpenAttention
from fxquant.passes.plan import SpareOutliers
from fxquant.passes.raw_pixels import RawPixels
from fxquant.passes.region import RegionScales
from fxquant.passes.residual import Residual
from fxquant.passes.ridge import Ridge
from fxquant.passes.smooth import Smooth
from fxquant.passes.split import SplitOutliers
from fxquant.passes.use_plan import UsePlan
from fxquant.pipeline.base import Pass

BUILTIN: dict[str, type[Pass]] = {
    kind.name: kind
    for kind in (
        Annotate,
        ExactInput,
        OpenAttention,
        Smooth,
        SplitOutliers,
        Assign,
        Calibrate,
        SpareOutliers,
        RegionScales,
        Apply,
        Ridge,
        CorrectBias,
        Noise,
        Residual,
        Nonlinear,
        Integer,
        Measure,
        RawPixels,
    )
}

__all__ = [
    "BUILTIN",
    "Annotate",
    "Apply",
    "Assign",
    "Calibrate",
    "CorrectBias",
    "ExactInput",
    "Integer",
    "Measure",
    "Noise",
    "Nonlinear",
    "OpenAttention",
    "Override",
    "RawPixels",
    "RegionScales",
    "Residual",
    "Ridge",
    "Smooth",
    "SpareOutliers",
    "SplitOutliers",
    "UsePlan",
]
