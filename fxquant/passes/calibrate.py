"""Run observers over the float graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from fxquant.errors import CalibrationError
from fxquant.graph.layers import Layer
from fxquant.passes.running import Runner, return_free_memory
from fxquant.pipeline.base import Pass
from fxquant.pipeline.plan import Plan
from fxquant.pipeline.state import Fact, State
from fxquant.quant.observers import Observer, make_observer
from fxquant.quant.qparams import QParams
from fxquant.quant.scheme import Scheme


def observing(observer: Observer, site: str, source: str) -> Callable[[Tensor], None]:
    """A callback that feeds ``observer`` and names the site in its errors."""

    def update(x: Tensor) -> None:
        try:
            observer.update(x)
        except CalibrationError as error:
            place = f"{site}, {source}" if source else site
            raise CalibrationError(error.what, where=place, why=error.why, fix=error.fix) from error

    return update


def static_sites(plan: Plan, layers: tuple[Layer, ...]) -> dict[str, tuple[Layer, Scheme]]:
    """Input sites whose range calibration must find, by site text."""
    found = {}
    for layer in layers:
        decision = plan.get(layer.name, "input")
        if decision is None or decision.scheme is None or decision.scheme.rule == "dynamic":
            continue
        found[f"{layer.name}:input"] = (layer, decision.scheme)
    return found


@dataclass(frozen=True)
class Calibrate(Pass):
    """Quantization parameters of every static activation site, from one pass over the data.

    ``progress``: ``auto`` shows a bar on a terminal, ``never`` shows none.
    """

    progress: Literal["auto", "never"] = "auto"

    name: ClassVar[str] = "calibrate"
    needs: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.FLOAT_GRAPH, Fact.LAYERS, Fact.PLAN, Fact.CALIBRATION}
    )
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.STATISTICS})

    def run(self, state: State) -> State:
        """Set ``statistics``; raises :class:`CalibrationError` without data or with bad data."""
        sites = static_sites(state.plan, state.layers)
        if not sites:
            return state.having(Fact.STATISTICS, {})
        if state.calibration is None:
            raise CalibrationError(
                "this plan needs calibration data",
                where=next(iter(sites)),
                why="its activation ranges are static",
                fix="pass calibration=images, or a recipe with dynamic ranges",
            )
        observers = {site: make_observer(scheme) for site, (_, scheme) in sites.items()}
        callbacks = {
            layer.node: observing(observers[site], site, layer.source)
            for site, (layer, _) in sites.items()
        }
        runner = Runner(state.float_graph, inputs=callbacks)
        console = Console(stderr=True)
        hidden = self.progress == "never" or not console.is_terminal
        with Progress(console=console, transient=True, disable=hidden) as bar:
            task = bar.add_task("calibrating", total=len(state.calibration) or None)
            for leaves in state.calibration.batches():
                runner(leaves)
                return_free_memory()
                bar.advance(task)
        statistics: dict[str, QParams] = {
            site: observers[site].qparams(scheme, where=site) for site, (_, scheme) in sites.items()
        }
        return state.having(Fact.STATISTICS, statistics)
