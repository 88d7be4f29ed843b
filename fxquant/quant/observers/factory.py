"""The one place that turns a scheme's range rule into an observer."""

from __future__ import annotations

from dataclasses import replace

from fxquant.errors import SchemeError
from fxquant.quant.observers.base import Observer
from fxquant.quant.observers.heads import HeadObserver
from fxquant.quant.observers.histogram import HistogramObserver
from fxquant.quant.observers.minmax import MinMaxObserver
from fxquant.quant.observers.moving_average import MovingAverageObserver
from fxquant.quant.observers.mse import MSEObserver
from fxquant.quant.observers.percentile import PercentileObserver
from fxquant.quant.observers.pixels import PixelObserver
from fxquant.quant.scheme import Scheme


def make_observer(scheme: Scheme) -> Observer:
    """A fresh observer for the scheme's range rule; dynamic and searched schemes have none."""
    if scheme.searched:
        raise SchemeError(
            "this scheme has no observer",
            where=f"scheme {scheme.text()}",
            why="its parameters are searched on a sample of the tensor",
            fix="use fxquant.quant.search",
        )
    if scheme.granularity == "head":
        return HeadObserver(lambda: make_observer(replace(scheme, granularity="tensor")))
    per_channel = scheme.granularity == "channel"
    match scheme.rule:
        case "minmax":
            return MinMaxObserver(per_channel=per_channel)
        case "moving_average":
            return MovingAverageObserver(per_channel=per_channel)
        case "percentile":
            return PercentileObserver(percentile=scheme.parameter or 100.0, per_channel=per_channel)
        case "histogram" | "mse" if per_channel:
            raise SchemeError(
                f"the {scheme.rule} observer keeps one histogram per tensor",
                where=f"scheme {scheme.text()}",
                fix="use minmax or percentile for per-channel activations",
            )
        case "histogram":
            return HistogramObserver()
        case "mse":
            return MSEObserver()
        case "pixels":
            return PixelObserver()
    raise SchemeError(
        f"range rule {scheme.rule!r} needs no observer",
        where=f"scheme {scheme.text()}",
        why="dynamic ranges are found while the model runs",
    )
