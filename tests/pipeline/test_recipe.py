"""Recipes as YAML: there and back, and every way they can be malformed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fxquant.errors import FxquantError, RecipeError
from fxquant.passes import Annotate, Apply, Assign, Calibrate, Measure, Override, SpareOutliers
from fxquant.pipeline.pipeline import Pipeline
from fxquant.quant.scheme import Scheme
from fxquant.recipe import Recipe, parse_recipe, recipe, recipe_names

GLOBS = st.text("abc.*?[]: {}#'\"-", min_size=1, max_size=12)
OVERRIDES = st.builds(
    Override,
    scheme=st.sampled_from(["float", "bfloat16", "s8/channel/mse", "a8/tensor/percentile@99.9"]),
    sites=GLOBS,
    role=GLOBS,
)
RECIPES = st.builds(
    lambda name, description, overrides, bits, floor, images: Recipe(
        name,
        Pipeline(
            (
                Annotate(),
                Assign(activation=Scheme(bits=bits), overrides=overrides),
                Calibrate(),
                SpareOutliers(floor_db=floor),
                Apply(),
                Measure(images=images),
            )
        ),
        description,
    ),
    name=st.text(max_size=20),
    description=st.text(max_size=40),
    overrides=st.lists(OVERRIDES, max_size=3).map(tuple),
    bits=st.sampled_from([4, 7, 8]),
    floor=st.floats(-100, 100),
    images=st.integers(1, 64),
)
KNOWN = f"known: {', '.join(recipe_names())}"
STEPS = "passes: [annotate, assign, calibrate, apply]\n"


@given(RECIPES)
def test_every_recipe_reads_back_from_its_yaml(made: Recipe) -> None:
    assert parse_recipe(made.to_yaml()) == made


@pytest.mark.parametrize("name", recipe_names())
def test_the_recipes_that_ship_are_sound(name: str) -> None:
    made = recipe(name)
    assert made.name == name
    assert made.description.endswith(".")
    assert parse_recipe(made.to_yaml()) == made
    assert recipe(made) is made


def test_a_recipe_reads_from_a_file(tmp_path: Path) -> None:
    for ending in ("yaml", "yml"):
        path = tmp_path / f"mine.{ending}"
        path.write_text(recipe("w8a8").to_yaml(), encoding="utf-8")
        assert recipe(path) == recipe(str(path)) == recipe("w8a8")


def test_a_file_without_a_name_is_called_after_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(STEPS, encoding="utf-8")
    assert recipe(path).name == str(path)
    assert recipe(path).description == ""


def test_overrides_stand_in_a_list_of_their_own_or_in_assign() -> None:
    listed = parse_recipe(STEPS + "overrides: [{scheme: float, sites: head}]\n")
    inline = parse_recipe(
        STEPS.replace("assign", "{assign: {overrides: [{scheme: float, sites: head}]}}")
    )
    assert listed.pipeline == inline.pipeline
    assert listed == parse_recipe(STEPS).override("float", sites="head")


def test_overrides_in_python_add_up_in_order() -> None:
    made = recipe("w8a8").override("float", sites="head").override("s4/channel/mse", role="fc?")
    assign = made.pipeline["assign"]
    assert isinstance(assign, Assign)
    assert assign.overrides == (Override("float", "head"), Override("s4/channel/mse", role="fc?"))
    untouched = recipe("w8a8").pipeline["assign"]
    assert isinstance(untouched, Assign)
    assert untouched.overrides == ()
    with pytest.raises(RecipeError, match="not a quantization scheme: 'int8'"):
        made.override("int8", sites="head")
    with pytest.raises(RecipeError, match="empty glob"):
        made.override("float", sites="")


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("w8a9", "did you mean 'w8a8'?"),
        ("w8a8_dynamic", "did you mean 'w8a8-dynamic'?"),
        ("W8A8", KNOWN),
        ("zzzzzz", KNOWN),
        ("", KNOWN),
        ("../recipes/w8a8", KNOWN),
    ],
)
def test_an_unknown_recipe_is_answered_with_the_known_ones(name: str, fix: str) -> None:
    with pytest.raises(RecipeError, match="unknown recipe") as caught:
        recipe(name)
    assert fix in caught.value.fix


@pytest.mark.parametrize("name", [None, 5, ["w8a8"], {"passes": []}, b"w8a8"])
def test_what_is_no_recipe_is_refused(name: Any) -> None:
    with pytest.raises(RecipeError, match="a recipe is a name"):
        recipe(name)


@pytest.mark.parametrize("name", ["missing.yaml", ".", "bytes.yaml"])
def test_a_file_that_cannot_be_read_names_its_path(name: str, tmp_path: Path) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00\x81")
    (tmp_path / "folder.yaml").mkdir()
    path = tmp_path / ("folder.yaml" if name == "." else name)
    with pytest.raises(RecipeError, match="cannot read the recipe") as caught:
        recipe(path)
    assert str(path) in caught.value.where


@pytest.mark.parametrize(
    ("text", "message", "fix"),
    [
        ("", "a mapping with a list of passes", "to_yaml"),
        ("null", "a mapping with a list of passes", "to_yaml"),
        ("[annotate]", "a mapping with a list of passes", "to_yaml"),
        ("name: x", "a mapping with a list of passes", "to_yaml"),
        ("passes: annotate", "a mapping with a list of passes", "to_yaml"),
        ("passes: {annotate: {}}", "a mapping with a list of passes", "to_yaml"),
        ("passes: [", "not YAML", ""),
        ("passes: [a]\n\tname: b", "not YAML", ""),
        ("a: &a [*a]\npasses: !!python/object:os.system []", "not YAML", ""),
        (STEPS + "override: []", "unknown recipe key 'override'", "did you mean 'overrides'?"),
        (STEPS + "nmae: x", "unknown recipe key 'nmae'", "did you mean 'name'?"),
        (STEPS + "zzz: x", "unknown recipe key 'zzz'", "keys: name, description"),
        (STEPS + "3: x", "unknown recipe key 3", "keys: name"),
        ("passes: [anotate]", "unknown pass 'anotate'", "did you mean 'annotate'?"),
        ("passes: [use_plan]", "unknown pass 'use_plan'", ""),
        ("passes: [3]", "a pass is a name or a mapping", ""),
        ("passes: [{}]", "a pass is a name or a mapping", ""),
        ("passes: [null]", "a pass is a name or a mapping", ""),
        ("passes: [{annotate: {}, assign: {}}]", "a pass is a name or a mapping", ""),
        ("passes: [[annotate]]", "a pass is a name or a mapping", ""),
        ("passes: [annotate: 3]", "options must be a mapping", ""),
        ("passes: [annotate: {x: 1}]", "unknown option 'x'", ""),
        ("passes: [annotate, assign: {wieght: s8/channel/minmax}]", "'wieght'", "'weight'"),
        ("passes: [annotate, assign: {weight: int8}]", "not a quantization scheme", "write"),
        ("passes: [annotate, assign: {weight: 8}]", "not a quantization scheme", "write"),
        ("passes: [annotate, assign: {weight: s9/tensor/minmax}]", "9 bits", "bits must"),
        ("passes: [annotate, assign: {attention: int8}]", "'int8' is none of", ""),
        ("passes: [annotate, assign: {overrides: head}]", "not of type", ""),
        ("passes: [assign]", "'assign' needs layers", "add a pass"),
        ("passes: [assign, annotate]", "'assign' needs layers", "move it after 'annotate'"),
        (STEPS + "overrides: head", "overrides must be a list", ""),
        (STEPS + "overrides: {head: float}", "overrides must be a list", ""),
        (STEPS + "overrides: [head]", "options must be a mapping", ""),
        (STEPS + "overrides: [{sites: head}]", "an option is missing", ""),
        (STEPS + "overrides: [{scheme: int8}]", "not a quantization scheme", "write"),
        (STEPS + "overrides: [{scheme: float, site: head}]", "unknown option 'site'", "'sites'"),
        (STEPS + "overrides: [{scheme: float, sites: 3}]", "3 is not of type str", ""),
        (STEPS + "overrides: [{scheme: float, sites: ''}]", "empty glob", ""),
        ("passes: [annotate]\noverrides: [{scheme: float}]", "no pass 'assign'", ""),
    ],
)
def test_a_malformed_recipe_is_refused_with_the_place(text: str, message: str, fix: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        parse_recipe(text, where="mine.yaml")
    assert "mine.yaml" in caught.value.where
    assert fix in caught.value.fix


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just("annotate"),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["passes", "name", "overrides", "assign", "scheme", "sites"]), inner
            )
        ),
        max_leaves=8,
    )
)
def test_no_document_raises_anything_but_a_recipe_error(document: Any) -> None:
    for data in (document, {"passes": document}, {"passes": ["annotate"], "overrides": document}):
        try:
            parse_recipe(yaml.safe_dump(data))
        except FxquantError as error:
            assert isinstance(error, RecipeError)  # noqa: PT017
