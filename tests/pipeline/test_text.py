"""Pipelines as text: what is printed reads back, and wrong text says what is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxquant.errors import PipelineError
from fxquant.graph.site import Site
from fxquant.passes import BUILTIN, Assign, Override, UsePlan
from fxquant.pipeline.options import changed_fields, from_plain
from fxquant.pipeline.pipeline import Pipeline, make_pass
from fxquant.pipeline.plan import Decision, Plan
from fxquant.quant.scheme import Scheme
from fxquant.recipe import recipe, recipe_names
from tests.pipeline.steps import TARGET, Inner, MakesRanges, Options, ReadsRanges, Required

KNOWN = {kind.name: kind for kind in (Options, Required, MakesRanges, ReadsRanges)}
SCHEMES = st.sampled_from(["s8/channel/minmax", "a8/tensor/percentile@99.99", "a8/token/dynamic"])
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
OPTIONS = st.builds(
    Options,
    flag=st.booleans(),
    count=st.integers(-(2**70), 2**70),
    share=FLOATS,
    label=st.text(),
    kind=st.sampled_from(["left", "right"]),
    scheme=SCHEMES.map(Scheme.parse),
    maybe=st.none() | FLOATS,
    many=st.lists(st.builds(Inner, text=st.text(), number=st.integers()), max_size=3).map(tuple),
    words=st.lists(st.text(), max_size=3).map(tuple),
    pair=st.tuples(FLOATS, st.text()),
    nested=st.lists(st.lists(st.integers(), max_size=3).map(tuple), max_size=3).map(tuple),
)


@given(st.lists(OPTIONS | st.builds(Required, count=st.integers()), max_size=4))
def test_every_pipeline_reads_back_from_its_text(steps: list[Any]) -> None:
    pipeline = Pipeline(tuple(steps))
    assert Pipeline.parse(str(pipeline), KNOWN) == pipeline


@given(OPTIONS)
def test_options_survive_json(options: Options) -> None:
    plain = json.loads(json.dumps(changed_fields(options)))
    assert from_plain(Options, plain, where="here") == options


def test_only_what_differs_from_the_defaults_is_printed() -> None:
    assert str(Pipeline((Options(), Options(count=5, many=(Inner("x"),))))) == (
        'options; options{"count": 5, "many": [{"text": "x"}]}'
    )
    assert str(Pipeline(())) == ""


@pytest.mark.parametrize("name", recipe_names())
def test_the_pipelines_of_all_recipes_read_back(name: str) -> None:
    pipeline = recipe(name).pipeline
    assert Pipeline.parse(str(pipeline), BUILTIN) == pipeline


def test_overrides_read_back() -> None:
    pipeline = recipe("w8a8").override("float", sites="head;{:*", role="h*").pipeline
    assert Pipeline.parse(str(pipeline), BUILTIN) == pipeline
    assign = pipeline["assign"]
    assert isinstance(assign, Assign)
    assert assign.overrides == (Override("float", "head;{:*", "h*"),)


def test_a_pipeline_that_carries_out_a_plan_reads_back_with_it() -> None:
    decisions = {Site("head", "input"): Decision(scheme=Scheme(), reason="why; {not}")}
    steps = recipe("w8a8").pipeline.replace("assign", UsePlan(Plan(decisions, TARGET)))
    assert '; use_plan{"plan": ' in str(steps)
    assert Pipeline.parse(str(steps), BUILTIN | {"use_plan": UsePlan}) == steps


@pytest.mark.parametrize(
    "text", ["", "  ", "options", " options ;options ", "options;\noptions;", 'options {"count":1}']
)
def test_space_and_a_trailing_semicolon_do_not_matter(text: str) -> None:
    assert len(Pipeline.parse(text, KNOWN).passes) == text.count("options")


@pytest.mark.parametrize(
    ("text", "message", "fix"),
    [
        ("option", "unknown pass 'option'", "did you mean 'options'?"),
        ("zzz", "unknown pass 'zzz'", "passes: makes_ranges, options, reads_ranges, required"),
        ("options;;options", "unknown pass ''", "passes:"),
        (";options", "unknown pass ''", "passes:"),
        ("options options", "unknown pass 'options options'", ""),
        ('options{"cont": 1}', "unknown option 'cont'", "did you mean 'count'?"),
        ('options{"zzz": 1}', "unknown option 'zzz'", "options: flag, count"),
        ("options{count: 1}", "not JSON", ""),
        ('options{"count": 1', "not JSON", ""),
        ('options{"count": 1} options', "expected ';'", ""),
        ('options{"count": 1}{"count": 2}', "expected ';'", ""),
        ('{"count": 1}', "unknown pass ''", ""),
        ("reads_ranges", "needs statistics", "add a pass that gives it"),
        ("required", "an option is missing", ""),
    ],
)
def test_wrong_text_says_what_is_wrong(text: str, message: str, fix: str) -> None:
    with pytest.raises(PipelineError, match=message) as caught:
        Pipeline.parse(text, KNOWN)
    assert fix in caught.value.fix


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flag": 1}, "1 is not of type bool"),
        ({"flag": "yes"}, "'yes' is not of type bool"),
        ({"count": 1.5}, "1.5 is not of type int"),
        ({"count": True}, "True is not of type int"),
        ({"count": "3"}, "'3' is not of type int"),
        ({"count": None}, "None is not of type int"),
        ({"share": True}, "True is not of type float"),
        ({"share": "0.5"}, "'0.5' is not of type float"),
        ({"label": 3}, "3 is not of type str"),
        ({"kind": "middle"}, "'middle' is none of"),
        ({"kind": ["left"]}, "is none of"),
        ({"scheme": "s9/tensor/minmax"}, "9 bits"),
        ({"scheme": 8}, "not a quantization scheme: 8"),
        ({"maybe": "x"}, "'x' is not of type float"),
        ({"many": "abc"}, "is not of type"),
        ({"many": {"text": "a"}}, "is not of type"),
        ({"many": ["abc"]}, "options must be a mapping"),
        ({"many": [{"text": 3}]}, "3 is not of type str"),
        ({"many": [{}]}, "an option is missing"),
        ({"many": [{"txt": "a"}]}, "unknown option 'txt'"),
        ({"words": [1]}, "1 is not of type str"),
        ({"words": "abc"}, "is not of type"),
        ({"pair": [1.0]}, "holds 1, not 2"),
        ({"pair": [1.0, "a", "b"]}, "holds 3, not 2"),
        ({"pair": ["a", "b"]}, "'a' is not of type float"),
        ({"nested": [1]}, "is not of type"),
        ({"nested": [["a"]]}, "'a' is not of type int"),
        ({3: 1}, "unknown option 3"),
        ([], "options must be a mapping"),
        ("count", "options must be a mapping"),
        (None, "options must be a mapping"),
    ],
)
def test_an_option_of_the_wrong_type_is_named_with_its_pass(options: Any, message: str) -> None:
    with pytest.raises(PipelineError, match=message) as caught:
        make_pass("options", options, KNOWN)
    assert "pass options" in caught.value.where


def test_whole_numbers_are_taken_for_floats() -> None:
    assert make_pass("options", {"share": 2, "maybe": 3}, KNOWN) == Options(share=2.0, maybe=3.0)


@given(st.text(max_size=30))
def test_no_text_raises_anything_but_a_pipeline_error(text: str) -> None:
    try:
        Pipeline.parse(text, KNOWN)
    except PipelineError:
        return
