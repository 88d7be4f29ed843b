"""Passes in a row: checked when built, printed to and parsed from text, observed while run."""

from __future__ import annotations

import difflib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from fxquant.errors import PipelineError
from fxquant.graph.normal_form import verify
from fxquant.pipeline.base import Pass
from fxquant.pipeline.options import changed_fields, from_plain
from fxquant.pipeline.state import AT_START, Fact, State


class PassObserver(Protocol):
    """Watches a pipeline run: dumps, differences, timing are all of this form."""

    def before(self, step: Pass, state: State) -> None:
        """Called before a pass with the full state."""

    def after(self, step: Pass, state: State, seconds: float) -> None:
        """Called after a pass with its result and its duration."""


@dataclass(frozen=True)
class Pipeline:
    """A tuple of passes. Building one whose order cannot work raises :class:`PipelineError`."""

    passes: tuple[Pass, ...] = ()

    def __post_init__(self) -> None:
        known = set(AT_START)
        for step in self.passes:
            if not isinstance(step, Pass) or not step.name:
                raise PipelineError(
                    f"{step!r} is not a pass",
                    fix="derive a frozen dataclass from fxquant.Pass and give it a name",
                )
            missing = step.needs - known
            if missing:
                names = ", ".join(sorted(missing))
                givers = [p.name for p in self.passes if p.gives & missing]
                raise PipelineError(
                    f"pass {step.name!r} needs {names} before anything gives it",
                    fix=f"move it after {givers[-1]!r}" if givers else "add a pass that gives it",
                )
            known = (known - step.invalidates) | step.gives

    def __str__(self) -> str:
        return "; ".join(
            step.name + (json.dumps(options) if (options := changed_fields(step)) else "")
            for step in self.passes
        )

    @staticmethod
    def parse(text: str, known: Mapping[str, type[Pass]]) -> Pipeline:
        """Read what ``str(pipeline)`` printed; ``known`` maps names to pass classes."""
        passes, rest = [], text.strip()
        decoder = json.JSONDecoder()
        while rest:
            head = rest.split(";", 1)[0].split("{", 1)[0]
            options: object = {}
            name, rest = head.strip(), rest[len(head) :].lstrip()
            if rest.startswith("{"):
                try:
                    options, end = decoder.raw_decode(rest)
                except json.JSONDecodeError as error:
                    raise PipelineError(
                        "pass options are not JSON", where=f"pass {name}", why=str(error)
                    ) from error
                rest = rest[end:].lstrip()
            if rest and not rest.startswith(";"):
                raise PipelineError(f"expected ';' before {rest[:20]!r}", where=f"pass {name}")
            rest = rest[1:].lstrip()
            passes.append(make_pass(name, options, known))
        return Pipeline(tuple(passes))

    def position(self, name: str) -> int:
        """Index of the pass with a name; raises :class:`PipelineError` naming the nearest."""
        names = [step.name for step in self.passes]
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            raise PipelineError(
                f"the pipeline has no pass {name!r}",
                fix=f"did you mean {near[0]!r}?" if near else f"it has {', '.join(names)}",
            )
        return names.index(name)

    def __getitem__(self, name: str) -> Pass:
        return self.passes[self.position(name)]

    def before(self, name: str, *added: Pass) -> Pipeline:
        """A pipeline with passes put before the named one."""
        at = self.position(name)
        return Pipeline((*self.passes[:at], *added, *self.passes[at:]))

    def after(self, name: str, *added: Pass) -> Pipeline:
        """A pipeline with passes put after the named one."""
        at = self.position(name) + 1
        return Pipeline((*self.passes[:at], *added, *self.passes[at:]))

    def replace(self, name: str, step: Pass) -> Pipeline:
        """A pipeline with the named pass exchanged."""
        at = self.position(name)
        return Pipeline((*self.passes[:at], step, *self.passes[at + 1 :]))

    def without(self, name: str) -> Pipeline:
        """A pipeline with the named pass left out."""
        at = self.position(name)
        return Pipeline((*self.passes[:at], *self.passes[at + 1 :]))

    def run(self, state: State, observers: tuple[PassObserver, ...] = ()) -> State:
        """Run all passes; after each that changed the graph, the normal form is verified."""
        for step in self.passes:
            for observer in observers:
                observer.before(step, state)
            started = time.perf_counter()
            state = _run_one(step, state)
            seconds = time.perf_counter() - started
            for observer in observers:
                observer.after(step, state, seconds)
        return state


def _run_one(step: Pass, state: State) -> State:
    result = step.run(state.view(step.name, step.needs))
    if not isinstance(result, State):
        raise PipelineError(f"pass {step.name!r} did not return a State", where=f"pass {step.name}")
    undeclared = {
        fact
        for fact, value in result.facts.items()
        if fact not in step.gives and state.facts.get(fact) is not value
    }
    if undeclared:
        raise PipelineError(
            f"pass {step.name!r} set {', '.join(sorted(undeclared))} without naming it in gives",
            where=f"pass {step.name}",
        )
    absent = step.gives - set(result.facts)
    if absent:
        raise PipelineError(
            f"pass {step.name!r} did not set {', '.join(sorted(absent))}, which its gives names",
            where=f"pass {step.name}",
        )
    if Fact.GRAPH in step.gives:
        verify(result.graph, after=step.name)
    kept = {fact: v for fact, v in state.facts.items() if fact not in step.invalidates}
    given = {fact: v for fact, v in result.facts.items() if fact in step.gives}
    return replace(result, facts={**kept, **given}, viewer="")


def make_pass(name: str, options: object, known: Mapping[str, type[Pass]]) -> Pass:
    """The named pass with options given as JSON values."""
    if name not in known:
        near = difflib.get_close_matches(name, list(known), n=1)
        raise PipelineError(
            f"unknown pass {name!r}",
            fix=f"did you mean {near[0]!r}?" if near else f"passes: {', '.join(sorted(known))}",
        )
    made: Pass = from_plain(known[name], options, where=f"pass {name}")
    return made
