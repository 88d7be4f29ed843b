"""Run observers and searches over the float graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from fxquant.errors import CalibrationError, PipelineError
from fxquant.graph.layers import Layer
from fxquant.passes.data import first_images
from fxquant.passes.fit import slots_of
from fxquant.passes.running import Runner, in_turn
from fxquant.passes.searching import Search, weigh
from fxquant.passes.watched import Watched, watched_tensors
from fxquant.pipeline.base import Pass
from fxquant.pipeline.plan import Plan
from fxquant.pipeline.state import Fact, State
from fxquant.quant.calibration import BATCH, Calibration
from fxquant.quant.memory import return_free_memory
from fxquant.quant.observers import Observer, make_observer
from fxquant.quant.qparams import QParams
from fxquant.quant.scheme import Scheme


def observing(update: Callable[[Tensor], None], site: str, source: str) -> Callable[[Tensor], None]:
    """``update`` that names the site in its errors."""

    def named(x: Tensor) -> None:
        try:
            update(x)
        except CalibrationError as error:
            place = f"{site}, {source}" if source else site
            raise CalibrationError(error.what, where=place, why=error.why, fix=error.fix) from error

    return named


def static_sites(plan: Plan, layers: tuple[Layer, ...]) -> dict[str, tuple[Layer, Scheme]]:
    """Activation sites whose parameters calibration must find, by site text, in graph order."""
    found = {}
    for layer in layers:
        for slot in slots_of(layer):
            decision = plan.get(layer.name, slot)
            scheme = decision.scheme if decision is not None else None
            if slot != "weight" and scheme is not None and scheme.rule != "dynamic":
                found[f"{layer.name}:{slot}"] = (layer, scheme)
    return found


@dataclass(frozen=True)
class Calibrate(Pass):
    """Quantization parameters of every static activation site, from one pass over the data.

    Kinds that are not uniform, and rules that weigh errors by what the reader makes of them, are
    searched on ``rows`` rows of the tensor, spread evenly over all data; ``fisher`` takes rows and
    gradients from the first 16 images. ``images``: how many to read, 0 for all there are.
    ``progress``: ``auto`` shows a bar on a terminal, ``never`` shows none.
    """

    progress: Literal["auto", "never"] = "auto"
    images: int = 0
    rows: int = 1024

    name: ClassVar[str] = "calibrate"
    needs: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.FLOAT_GRAPH, Fact.LAYERS, Fact.PLAN, Fact.CALIBRATION}
    )
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.STATISTICS})

    def __post_init__(self) -> None:
        if self.images < 0 or self.rows < 1:
            raise PipelineError(
                f"cannot calibrate on {self.images} images and {self.rows} rows",
                where="pass calibrate",
                fix="give at least 1 row; 0 images stands for all of them",
            )

    def run(self, state: State) -> State:
        """Set ``statistics``; raises :class:`CalibrationError` without data or with bad data."""
        sites = static_sites(state.plan, state.layers)
        if not sites:
            return state.having(Fact.STATISTICS, {})
        needy = [site for site, (_, scheme) in sites.items() if scheme.rule != "pixels"]
        if state.calibration is None and needy:
            raise CalibrationError(
                "this plan needs calibration data",
                where=needy[0],
                why="its activation ranges are static",
                fix="pass calibration=images, or a recipe with dynamic ranges",
            )
        graph = state.float_graph
        watched = watched_tensors(graph, sites)
        finders: list[Observer | Search] = [
            Search(graph, one, self.rows) if one.scheme.searched else make_observer(one.scheme)
            for one in watched
        ]
        searches = [f for f in finders if isinstance(f, Search) and f.importance]
        if state.calibration is not None:
            self._feed(Runner(graph, outputs=_callbacks(watched, finders)), state.calibration)
            if searches:
                weigh(graph, searches, state.calibration.sample(min(self.images or BATCH, BATCH)))
        found: dict[str, QParams] = {}
        for one, finder in zip(watched, finders, strict=True):
            found |= dict.fromkeys(one.sites, finder.qparams(one.scheme, where=one.sites[0]))
        return state.having(Fact.STATISTICS, {site: found[site] for site in sites})

    def _feed(self, runner: Runner, calibration: Calibration) -> None:
        console = Console(stderr=True)
        hidden = self.progress == "never" or not console.is_terminal
        total = -(-self.images // BATCH) or len(calibration) or None
        with Progress(console=console, transient=True, disable=hidden) as bar:
            task = bar.add_task("calibrating", total=total)
            for leaves in first_images(calibration, self.images):
                runner(leaves)
                return_free_memory()
                bar.advance(task)


def _callbacks(
    watched: list[Watched], finders: list[Observer | Search]
) -> dict[str, Callable[[Tensor], None]]:
    """What each node's value is shown to, by node name."""
    updates: dict[str, list[Callable[[Tensor], None]]] = defaultdict(list)
    for one, finder in zip(watched, finders, strict=True):
        named = observing(finder.update, one.sites[0], one.layers[0].source)
        updates[one.source.name].append(named)
        if isinstance(finder, Search) and finder.gram is not None and one.partner is not None:
            updates[one.partner.name].append(finder.gram.update)
    return {name: in_turn(several) for name, several in updates.items()}
