"""One idea per file; each a frozen dataclass over a :class:`~fxquant.pipeline.state.State`."""

from fxquant.passes.annotate import Annotate
from fxquant.passes.apply import Apply
from fxquant.passes.assign import Assign, Override
from fxquant.passes.calibrate import Calibrate
from fxquant.passes.measure import Measure
from fxquant.passes.plan import SpareOutliers
from fxquant.passes.use_plan import UsePlan
from fxquant.pipeline.base import Pass

BUILTIN: dict[str, type[Pass]] = {
    kind.name: kind for kind in (Annotate, Assign, Calibrate, SpareOutliers, Apply, Measure)
}

__all__ = [
    "BUILTIN",
    "Annotate",
    "Apply",
    "Assign",
    "Calibrate",
    "Measure",
    "Override",
    "SpareOutliers",
    "UsePlan",
]
