"""Pipelines: order found wrong when built, changed by name, run in order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from fxquant.errors import PipelineError, PlanError, VerificationError
from fxquant.passes import Annotate, Apply, Assign, Calibrate, Measure, SpareOutliers
from fxquant.pipeline.base import Pass
from fxquant.pipeline.observers import GraphDiffs, GraphDumps, Timing
from fxquant.pipeline.pipeline import Pipeline
from fxquant.pipeline.state import AT_START, Fact, Note, State
from tests.pipeline.steps import (
    MakesRanges,
    Negates,
    Options,
    ReadsRanges,
    aten,
    data,
    graph,
    state,
)

W8A8 = (Annotate(), Assign(), Calibrate(), SpareOutliers(), Apply(), Measure())


def names(pipeline: Pipeline) -> list[str]:
    return [step.name for step in pipeline.passes]


def test_the_usual_order_builds_and_runs() -> None:
    result = Pipeline(W8A8).run(state())
    assert result.facts[Fact.QUANTIZED] is True
    assert set(result.measurements) >= {"fc1", "fc2", "head", "(output)"}


@pytest.mark.parametrize("missing", ["annotate", "calibrate", "apply"])
def test_leaving_out_what_a_later_pass_needs_is_found_when_built(missing: str) -> None:
    with pytest.raises(PipelineError, match="before anything gives it"):
        Pipeline(W8A8).without(missing)


def test_nothing_is_applied_before_anything_is_assigned() -> None:
    with pytest.raises(PlanError, match="no site fc1:weight"):
        Pipeline(W8A8).without("assign").run(state())


def test_a_wrong_order_names_pass_fact_and_remedy() -> None:
    with pytest.raises(PipelineError) as caught:
        Pipeline((ReadsRanges(), MakesRanges()))
    assert caught.value.what == "pass 'reads_ranges' needs statistics before anything gives it"
    assert caught.value.fix == "move it after 'makes_ranges'"
    with pytest.raises(PipelineError) as caught:
        Pipeline((ReadsRanges(),))
    assert caught.value.fix == "add a pass that gives it"


def test_an_invalidated_fact_must_be_given_again() -> None:
    with pytest.raises(PipelineError, match="'assign' needs layers"):
        Pipeline((Annotate(), Negates(), Assign()))
    Pipeline((Annotate(), Negates(), Annotate(), Assign()))


@pytest.mark.parametrize("step", ["annotate", None, Annotate, 5])
def test_what_is_no_pass_is_refused(step: Any) -> None:
    with pytest.raises(PipelineError, match="is not a pass"):
        Pipeline((step,))


def test_a_pass_without_a_name_is_refused() -> None:
    @dataclass(frozen=True)
    class Nameless(Pass):
        """No name."""

    with pytest.raises(PipelineError, match="is not a pass"):
        Pipeline((Nameless(),))


def test_pipelines_change_by_name_into_new_ones() -> None:
    pipeline = Pipeline((MakesRanges(), ReadsRanges()))
    extra = Options(count=7)
    assert names(pipeline.before("reads_ranges", extra, extra)) == [
        "makes_ranges",
        "options",
        "options",
        "reads_ranges",
    ]
    assert names(pipeline.after("reads_ranges", extra)) == [
        "makes_ranges",
        "reads_ranges",
        "options",
    ]
    assert names(pipeline.before("makes_ranges", extra)) == [
        "options",
        "makes_ranges",
        "reads_ranges",
    ]
    assert pipeline.replace("makes_ranges", MakesRanges("b"))["makes_ranges"] == MakesRanges("b")
    assert names(pipeline.without("reads_ranges")) == ["makes_ranges"]
    assert names(pipeline) == ["makes_ranges", "reads_ranges"]
    assert pipeline.position("reads_ranges") == 1


def test_a_change_is_checked_like_a_new_pipeline() -> None:
    pipeline = Pipeline((MakesRanges(), ReadsRanges()))
    for change in (
        lambda: pipeline.without("makes_ranges"),
        lambda: pipeline.replace("makes_ranges", Options()),
        lambda: pipeline.before("makes_ranges", ReadsRanges()),
    ):
        with pytest.raises(PipelineError, match="'reads_ranges' needs statistics"):
            change()


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    pipeline = Pipeline(W8A8)
    for ask in (pipeline.position, pipeline.without, pipeline.__getitem__, pipeline.before):
        with pytest.raises(PipelineError, match="no pass 'calibrat'") as caught:
            ask("calibrat")
        assert "'calibrate'" in caught.value.fix
    with pytest.raises(PipelineError) as caught:
        pipeline["zzz"]
    assert "annotate" in caught.value.fix


def test_facts_and_notes_flow_through() -> None:
    result = Pipeline((MakesRanges("x"), MakesRanges("y"), ReadsRanges())).run(state())
    assert result.layers == ("y",)  # type: ignore[comparison-overlap]
    assert [note.text for note in result.log] == ["x", "y"]
    assert set(result.facts) == AT_START | {Fact.STATISTICS, Fact.LAYERS}
    assert result.viewer == ""


def run_one(run: Any, **declared: frozenset[Fact]) -> State:
    """One pass with the given ``run`` and declarations, in a pipeline."""
    fields = {
        "name": "mine",
        "run": lambda self, state: run(state),
        "__doc__": "A pass.",
        **declared,
    }
    step = dataclass(frozen=True)(type("Mine", (Pass,), fields))()
    return Pipeline((MakesRanges(), step)).run(state())


def test_reading_an_undeclared_fact_names_fact_and_pass() -> None:
    with pytest.raises(PipelineError, match="fact 'graph' is not available") as caught:
        run_one(lambda s: s.having(Fact.LAYERS, s.graph), gives=frozenset({Fact.LAYERS}))
    assert "pass mine" in str(caught.value)


def test_writing_an_undeclared_fact_names_fact_and_pass() -> None:
    for fact in (Fact.LAYERS, Fact.GRAPH, Fact.PLAN, Fact.STATISTICS):
        with pytest.raises(PipelineError, match=f"'mine' set {fact.value} without") as caught:
            run_one(lambda s, f=fact: s.having(f, "new"), needs=frozenset({Fact.STATISTICS}))
        assert "pass mine" in str(caught.value)


def test_a_pass_that_returns_no_state_is_named() -> None:
    with pytest.raises(PipelineError, match="'mine' did not return a State"):
        run_one(lambda s: None)


def test_a_pass_without_run_says_so() -> None:
    @dataclass(frozen=True)
    class Idle(Pass):
        """Does nothing."""

        name: ClassVar[str] = "idle"

    with pytest.raises(TypeError, match="Idle does not define run"):
        Pipeline((Idle(),)).run(state())


def test_an_invalidated_fact_is_gone_even_if_the_pass_read_it() -> None:
    ranges = frozenset({Fact.STATISTICS})
    result = run_one(lambda s: s, needs=ranges, invalidates=ranges)
    assert Fact.STATISTICS not in result.facts


def test_a_fact_that_was_promised_and_not_given_is_named() -> None:
    with pytest.raises(PipelineError, match="'mine' did not set quantized"):
        run_one(lambda s: s, gives=frozenset({Fact.QUANTIZED}))


def test_verification_catches_an_illegal_graph_and_names_the_pass() -> None:
    def damage(s: State) -> State:
        changed = graph()
        act = next(n for n in changed.graph.nodes if n.target is aten.gelu.default)
        act.target = aten.gelu_.default
        return s.having(Fact.GRAPH, changed)

    with pytest.raises(VerificationError, match="after mine") as caught:
        run_one(damage, gives=frozenset({Fact.GRAPH}))
    assert "in place" in str(caught.value)


def test_observers_see_every_pass_in_order(tmp_path: Path) -> None:
    timing, diffs, dumps = Timing(), GraphDiffs(), GraphDumps(tmp_path / "dumps")
    steps = Pipeline((Annotate(), Negates(), Annotate()))
    result = steps.run(state(), (timing, diffs, dumps))
    assert [name for name, _ in timing.seconds] == ["annotate", "negates", "annotate"]
    assert all(seconds >= 0 for _, seconds in timing.seconds)
    assert list(diffs.diffs) == ["negates"]
    assert diffs.diffs["negates"].count("\n+") >= 2
    assert "aten.neg.default" in diffs.diffs["negates"]
    written = sorted(path.name for path in (tmp_path / "dumps").iterdir())
    assert written == ["00-annotate.txt", "01-negates.txt", "02-annotate.txt"]
    assert "aten.neg" in (tmp_path / "dumps" / written[1]).read_text(encoding="utf-8")
    assert torch.equal(result.graph(data(3)), graph()(data(3)))


def test_two_passes_of_one_name_keep_both_differences() -> None:
    diffs = GraphDiffs()
    Pipeline((Negates(), Negates())).run(state(), (diffs,))
    assert list(diffs.diffs) == ["negates", "negates@2"]
    assert all("aten.neg.default" in text for text in diffs.diffs.values())


def test_a_view_shows_only_what_was_asked_for() -> None:
    view = state(plan="p").view("mine", frozenset({Fact.PLAN}))
    assert view.plan == "p"  # type: ignore[comparison-overlap]
    for name in ("graph", "float_graph", "calibration", "target", "layers", "statistics"):
        with pytest.raises(PipelineError, match=name):
            getattr(view, name)
    with pytest.raises(TypeError):
        view.facts[Fact.PLAN] = "q"  # type: ignore[index]
    assert view.noting([Note("a", "b", "c")]).log == (Note("a", "b", "c"),)
