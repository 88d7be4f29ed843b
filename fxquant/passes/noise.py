"""NoisyQuant: a fixed vector before the quantizer, its image taken off the bias behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxquant.errors import PipelineError
from fxquant.graph.tensors import copy_graph, prune
from fxquant.passes.data import at_hand, calibration_of
from fxquant.passes.importance import by_loss
from fxquant.passes.noising.choices import STEP, Choice, fold_of, recorded, refuse
from fxquant.passes.noising.folds import plan_fold
from fxquant.passes.noising.paths import Fold
from fxquant.passes.noising.rewrite import Addition, carry_out
from fxquant.passes.noising.search import (
    Amount,
    Direction,
    Found,
    Sample,
    best_offsets,
    drawn,
    drift_of,
    noise_of,
    search,
    take_sample,
)
from fxquant.passes.noising.sites import NoiseSite, noise_sites
from fxquant.passes.noising.theory import provable_share
from fxquant.passes.running import Runner
from fxquant.pipeline.base import Pass
from fxquant.pipeline.state import Fact, Note, State
from fxquant.quant.calibration import Leaves


@dataclass(frozen=True)
class _Task:
    """A site that may take noise, where it would go, and what the plan says already."""

    site: NoiseSite
    fold: Fold
    known: Choice | None


_Settled = tuple[Addition, dict[str, Any]]  # what goes in, and the plan's record of it


@dataclass(frozen=True)
class Noise(Pass):
    """``W q(X) + b -> W q(X + N) + (b - W N)`` at every static quantizer before weighted layers.

    N is fixed, one entry per input channel, W the final quantized weight (NoisyQuant; papers,
    section 3). ``noise``: ``uniform`` draws N from U(-n, n), by ``seed`` and the site's name;
    ``gaussian_code`` draws and searches as the authors' code does; ``searched`` is ours: for each
    channel the offset within one step that has the least error on data, at the same cost.

    n is searched for each quantizer, over ``steps`` values up to two steps, by the error of the
    layers' outputs on up to ``rows`` rows of ``images`` calibration images, as they reach the
    quantizer. It is chosen on half of the images and kept only if it helps on the other half too;
    n = 0 is among the candidates and wins ties. ``objective="fisher"`` weighs each row by the
    squared gradient of the loss at the layers' outputs in the float graph. ``clip="search"`` tries
    other step widths along with n. ``bias="recentred"`` also takes off how noise moves the mean
    error, and judges by what is left: right where biases were corrected before or will be after.
    ``roles``: only these; empty for all.

    N goes into the bias of the norm before the quantizer or into V's, else by an addition, which
    ``fold="free"`` declines where it takes a kernel apart. A choice found in the plan is followed:
    n from there, N from the seed (or the data).
    """

    noise: Literal["uniform", "gaussian_code", "searched"] = "uniform"
    seed: int = 0
    images: int = 16
    rows: int = 2048
    steps: int = 20
    clip: Literal["keep", "search"] = "keep"
    objective: Literal["output", "fisher"] = "output"
    bias: Literal["image", "recentred"] = "image"
    fold: Literal["free", "any"] = "any"
    roles: tuple[str, ...] = ()

    name: ClassVar[str] = "noise"
    needs: ClassVar[frozenset[Fact]] = frozenset(
        {
            Fact.GRAPH,
            Fact.FLOAT_GRAPH,
            Fact.LAYERS,
            Fact.PLAN,
            Fact.CALIBRATION,
            Fact.QUANTIZED,
        }
    )
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.GRAPH, Fact.PLAN})

    def __post_init__(self) -> None:
        wrong = ""
        for option in ("images", "rows", "steps"):
            if getattr(self, option) < 1:
                wrong = f"{option} must be at least 1"
        if not 0 <= self.seed < 2**31:
            wrong = "seed must lie between 0 and 2^31 - 1"
        elif self.noise == "gaussian_code" and self.clip == "search":
            wrong = "gaussian_code keeps the step that calibration found"
        if wrong:
            raise PipelineError(wrong, where=f"pass {self.name}")

    @torch.no_grad()
    def run(self, state: State) -> State:
        """Set ``graph`` and ``plan``; the incoming graph is left as it was."""
        source, plan, notes = state.graph, state.plan, []
        made = GraphModule(source, copy_graph(source.graph))
        tasks: list[_Task] = []
        for site in self._sites(made, state):
            known = recorded(plan, site)
            task, reason = self._task(made, site, known)
            if task is not None:
                tasks.append(task)
            elif known is None:
                for reader, place in zip(site.readers, site.places, strict=True):
                    plan = plan.with_choice(STEP, place, {"declined": True, "reason": reason})
                    notes.append(Note(self.name, reader.layer.name, f"no noise: {reason}"))
        additions = []
        settled = self._settled(state, made, tasks)
        for task, (addition, record) in zip(tasks, settled, strict=True):
            for place in task.site.places if task.known is None else ():
                plan = plan.with_choice(STEP, place, record)
            if addition.amount != Amount():
                additions.append(addition)
        carry_out(made, additions)
        prune(made)
        if tasks:
            in_bias = sum(addition.fold.kind != "add" for addition in additions)
            text = f"noise at {len(additions)} of {len(tasks)} quantizers, {in_bias} in a bias"
            notes.append(Note(self.name, "", text))
        return state.having(Fact.GRAPH, made).having(Fact.PLAN, plan).noting(notes)

    def _sites(self, graph_module: GraphModule, state: State) -> list[NoiseSite]:
        sites = noise_sites(graph_module, state.layers)
        wanted = set(self.roles)
        return [s for s in sites if not wanted or wanted & {r.layer.role for r in s.readers}]

    def _task(
        self, graph_module: GraphModule, site: NoiseSite, known: Choice | None
    ) -> tuple[_Task | None, str]:
        """The task, or None and the reason why there is none."""
        if site.declined:
            refuse(site, known)
            return None, site.declined
        if known is not None and known.declined:
            return None, "the plan declines"
        fold = plan_fold(graph_module, site)
        if known is not None:
            return _Task(site, fold_of(fold, site, known), known), ""
        if self.fold == "free" and not fold.free:
            return None, fold.reason
        return _Task(site, fold, None), ""

    def _settled(
        self, state: State, graph_module: GraphModule, tasks: list[_Task]
    ) -> list[_Settled]:
        """What comes of each task, from one run of the quantized graph without any noise."""
        results: dict[int, _Settled] = {}
        on_data = self.noise == "searched" or self.bias == "recentred"
        waiting = {
            number: task
            for number, task in enumerate(tasks)
            if task.known is None or (on_data and task.known.amount != Amount())
        }
        if waiting:
            what = "noise is searched on calibration data"
            calibration = calibration_of(state, self.name, what)
            leaves = at_hand(calibration, self.images, where=f"pass {self.name}")
            importance: dict[str, Tensor] = {}
            if self.objective == "fisher":
                layers = [r.layer for task in waiting.values() for r in task.site.readers]
                importance = by_loss(state.float_graph, leaves, layers)

            def visiting(number: int, task: _Task) -> Callable[[Tensor], None]:
                def visit(x: Tensor) -> None:
                    given = self._sample(graph_module, task, x, leaves, importance)
                    results[number] = self._settle(task, given)

                return visit

            visits = {t.site.quantize.name: visiting(number, t) for number, t in waiting.items()}
            Runner(graph_module, inputs=visits)(leaves)
        return [
            results[number] if number in results else self._settle(task, None)
            for number, task in enumerate(tasks)
        ]

    def _sample(
        self,
        graph_module: GraphModule,
        task: _Task,
        x: Tensor,
        leaves: Leaves,
        importance: dict[str, Tensor],
    ) -> Sample:
        counts = [importance[r.node.name] for r in task.site.readers if r.node.name in importance]
        return take_sample(
            graph_module,
            task.site,
            x,
            images=leaves[0].shape[0],
            rows=self.rows,
            centred=self.bias == "recentred",
            importance=torch.stack(counts).mean(0) if counts else None,
        )

    def _settle(self, task: _Task, sample: Sample | None) -> _Settled:
        """An addition, and what the plan says of it; ``sample``: None where no data is needed."""
        site, direction = task.site, self._direction(task.site, sample)
        drift = torch.zeros(len(site.spread), dtype=torch.float64)
        if task.known is not None:
            found = Found(task.known.amount, noise_of(task.known.amount, direction), 0.0, 0.0)
        else:
            assert sample is not None
            clips = self.clip == "search"
            found = search(sample, self.noise, direction, steps=self.steps, clips=clips)
        if sample is not None and self.bias == "recentred" and found.amount != Amount():
            drift = drift_of(sample, found)
        addition = Addition(site, task.fold, found.amount, found.noise, drift)
        return addition, {} if sample is None else self._record(task.fold, found, sample)

    def _direction(self, site: NoiseSite, sample: Sample | None) -> Direction:
        if self.noise != "searched":
            direction = drawn(self.noise, site, self.seed)
            return lambda _: direction
        assert sample is not None
        return cache(lambda clip: best_offsets(sample, clip, self.steps))

    def _record(self, fold: Fold, found: Found, sample: Sample) -> dict[str, Any]:
        """The choice as the plan holds it; errors relative to the outputs' energy."""
        amount, signal = found.amount, max(sample.signal, torch.finfo(torch.float32).tiny)
        before, after = found.before / signal, found.after / signal
        if amount == Amount():
            why = "the quantizer makes no error" if before == 0.0 else "no noise lowers the error"
            kind, reason = "none", f"{why} of the layer's output"
        else:
            kind = fold.kind
            steps = amount.n / sample.site.step
            reason = (
                f"n = {steps:.3g} steps: relative output error {before:.3g} before, {after:.3g} "
                f"after; {fold.reason}"
            )
        share = provable_share(sample, amount.n, amount.clip) if self.noise == "uniform" else None
        return {
            "n": amount.n,
            "offset": amount.offset,
            "clip": amount.clip,
            "step": sample.site.step,
            "fold": kind,
            "error_before": before,
            "error_after": after,
            "provable_share": share,
            "reason": reason,
        }
