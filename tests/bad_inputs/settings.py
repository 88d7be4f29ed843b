"""Recipes, pipelines, plans and arguments that say something impossible."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fxquant
from fxquant import Pipeline, Scheme
from fxquant.errors import (
    ArtifactError,
    BackendError,
    FrozenModelError,
    FxquantError,
    InputError,
    PipelineError,
    RecipeError,
)
from fxquant.passes import BUILTIN, Annotate, Apply, Assign, Calibrate
from tests.bad_inputs.place import Call, Cases, Place, good, quantized_small

CASES = Cases()


def with_recipe(place: Place, value: Any) -> Call:
    return place.quantize(calibration=good(), recipe=value)


CASES.family(
    RecipeError,
    [
        ("an unknown recipe", "w9a9"),
        ("a recipe in the wrong case", "W8A8"),
        ("an empty recipe name", ""),
        ("a number as a recipe", 8),
        ("a dict as a recipe", {"passes": []}),
        ("a list as a recipe", ["w8a8"]),
        ("a recipe file that does not exist", Path("nowhere.yaml")),
        ("a recipe file of another kind", Path("recipe.toml")),
    ],
    with_recipe,
)

ASSIGN = "name: mine\npasses:\n  - annotate\n  - assign: {%s}\n  - calibrate\n  - apply\n"
PASSES = "name: mine\npasses: [%s]\n"
OVERRIDE = PASSES % "annotate, assign, calibrate, apply" + "overrides:\n  - %s\n"
TEXTS: list[tuple[str, str | bytes]] = [
    ("a recipe that is not YAML", "passes: [a, {b"),
    ("a recipe with a tab", "passes:\n\t- annotate"),
    ("a recipe that makes Python objects", "passes: !!python/object/apply:os.getcwd []"),
    ("a recipe that is binary", b"\xff\xfe\x00passes"),
    ("a recipe that is empty", ""),
    ("a recipe that is a list", "- annotate\n- assign\n"),
    ("a recipe that is text", "w8a8"),
    ("a recipe without passes", "name: mine\n"),
    ("a recipe whose passes are text", "passes: annotate\n"),
    ("a recipe with a misspelt key", PASSES % "annotate" + "overides: []\n"),
    ("a recipe with a key of its own", PASSES % "annotate" + "author: me\n"),
    ("a recipe with a misspelt pass", PASSES % "annotate, asign, calibrate, apply"),
    ("a recipe with a number as a pass", PASSES % "annotate, 3"),
    ("a recipe with a pass of two names", PASSES % "annotate, {assign: {}, apply: {}}"),
    ("a recipe whose options are text", PASSES % "annotate, {assign: fast}"),
    ("a recipe with a misspelt option", ASSIGN % "wieght: s8/channel/minmax"),
    ("a recipe with a scheme that is none", ASSIGN % "weight: int8"),
    ("a recipe with a number as a scheme", ASSIGN % "weight: 8"),
    ("a recipe with one bit", ASSIGN % "weight: s1/channel/minmax"),
    ("a recipe with 9 bits", ASSIGN % "weight: s9/channel/minmax"),
    ("a recipe with an unknown range rule", ASSIGN % "activation: a8/tensor/median"),
    ("a recipe with a percentile of 120", ASSIGN % "activation: a8/tensor/percentile@120"),
    ("a recipe with an unknown granularity", ASSIGN % "weight: s8/row/minmax"),
    ("a recipe with static tokens", ASSIGN % "activation: a8/token/minmax"),
    ("a recipe with an unknown attention type", ASSIGN % "attention: float16"),
    ("a recipe with activations per channel", ASSIGN % "activation: s8/channel/minmax"),
    ("a recipe with affine weights", ASSIGN % "weight: a8/channel/minmax"),
    ("a recipe with percentile weights", ASSIGN % "weight: s8/channel/percentile@99"),
    ("a recipe with groups that do not divide", ASSIGN % "weight: s8/group7/minmax"),
    ("a recipe with grouped activations", ASSIGN % "activation: a8/group4/minmax"),
    ("a recipe with a text as a floor", PASSES % "annotate, {plan: {floor_db: high}}"),
    ("a recipe with True as a floor", PASSES % "annotate, {plan: {floor_db: true}}"),
    (
        "a recipe that measures -1 images",
        PASSES % "annotate, assign, calibrate, apply, {measure: {images: -1}}",
    ),
    ("a recipe that plans before calibration", PASSES % "annotate, assign, plan, calibrate, apply"),
    ("a recipe that applies at once", PASSES % "apply"),
    ("a recipe whose overrides are text", PASSES % "annotate" + "overrides: none\n"),
    ("an override that is text", OVERRIDE % "float"),
    ("an override without a scheme", OVERRIDE % "{sites: head}"),
    ("an override with a misspelt key", OVERRIDE % "{scheme: float, site: head}"),
    ("an override with an unknown scheme", OVERRIDE % "{scheme: int8}"),
    ("an override with an empty glob", OVERRIDE % "{scheme: float, sites: ''}"),
    (
        "an override with an affine weight",
        OVERRIDE % "{scheme: a8/channel/minmax, sites: '*:weight'}",
    ),
    ("an override that quantizes a GELU", OVERRIDE % "{scheme: a8/tensor/minmax, role: gelu}"),
    ("an override of a linear to bfloat16", OVERRIDE % "{scheme: bfloat16, sites: fc1}"),
    ("an override that matches nothing", OVERRIDE % "{scheme: float, sites: 'blocks.*'}"),
    ("an override of a role that is not there", OVERRIDE % "{scheme: float, role: qkv}"),
    ("overrides without an assign pass", PASSES % "annotate" + "overrides:\n  - {scheme: float}\n"),
]
CASES.family(
    FxquantError,
    TEXTS,
    lambda place, value: with_recipe(place, place.file(value, "recipe.yaml")),
)
CASES.family(
    PipelineError,
    [("a pipeline without apply", PASSES % "annotate, assign, calibrate")],
    lambda place, value: with_recipe(place, place.file(value, "recipe.yaml")),
)


def with_pipeline(place: Place, build: Callable[[], Any]) -> Call:
    model = place.model()
    return lambda: fxquant.quantize(model, calibration=good(), pipeline=build())


CASES.family(
    PipelineError,
    [
        ("a list of passes as a pipeline", lambda: [Annotate(), Assign()]),
        ("text as a pipeline", lambda: "annotate; assign"),
        ("an empty pipeline", Pipeline),
        ("passes in an impossible order", lambda: Pipeline((Apply(), Annotate()))),
        ("a class in place of a pass", lambda: Pipeline((Annotate,))),
        ("a pass that is a function", lambda: Pipeline((print,))),
        ("a bare pass without a name", lambda: Pipeline((fxquant.Pass(),))),
        ("a pipeline that never applies", lambda: Pipeline((Annotate(), Assign(), Calibrate()))),
        ("pipeline text with a misspelt pass", lambda: Pipeline.parse("anotate", BUILTIN)),
        ("pipeline text with bad options", lambda: Pipeline.parse("assign{", BUILTIN)),
        ("pipeline text without a separator", lambda: Pipeline.parse("assign{} apply", BUILTIN)),
        ("a step that is not there", lambda: fxquant.recipe("w8a8").pipeline["aply"]),
    ],
    with_pipeline,
)


@CASES("a plan and a recipe together", RecipeError)
def _(place: Place) -> Call:
    return place.quantize(calibration=good(), plan=quantized_small().plan, recipe="w8a8")


@CASES("a pipeline and a recipe together", RecipeError)
def _(place: Place) -> Call:
    pipeline = fxquant.recipe("w8a8").pipeline
    return place.quantize(calibration=good(), recipe="w8a8", pipeline=pipeline)


@CASES("a static recipe without data", FxquantError)
def _(place: Place) -> Call:
    return place.quantize(recipe="w8a8", example=good(2))


CASES.family(
    BackendError,
    [("an unknown backend", "arm"), ("a misspelt backend", "x68"), ("a number as a backend", 86)],
    lambda place, value: place.quantize(calibration=good(), backend=value),
)
CASES.family(
    BackendError,
    [("lowering to an unknown backend", "arm")],
    lambda place, value: lambda: fxquant.lower(quantized_small(), backend=value),
)
CASES.family(
    InputError,
    [("an unknown executor", "tensorrt"), ("None as an executor", None)],
    lambda place, value: lambda: fxquant.lower(quantized_small(), executor=value),
)


@CASES("lowering a float model", InputError)
def _(place: Place) -> Call:
    model = place.model()
    return lambda: fxquant.lower(model)  # type: ignore[arg-type]


@CASES("lowering a lowered model", InputError)
def _(place: Place) -> Call:
    lowered = fxquant.lower(quantized_small(), executor="eager")
    return lambda: fxquant.lower(lowered)


@CASES("a trainable view of a float model", InputError)
def _(place: Place) -> Call:
    model = place.model()
    return lambda: fxquant.trainable(model)  # type: ignore[arg-type]


CASES.family(
    FrozenModelError,
    [
        ("freezing a quantized model", quantized_small),
        ("freezing a float model", torch.nn.Identity),
        ("freezing nothing", lambda: None),
    ],
    lambda place, build: lambda: fxquant.freeze(build()),
)
CASES.family(
    ArtifactError,
    [("saving into a missing folder", "nowhere/model.fxq"), ("saving over a folder", "")],
    lambda place, value: lambda: quantized_small().save(place.folder / value),
)
CASES.family(
    RecipeError,
    [
        ("an override with a bad scheme text", "int8"),
        ("an override with one bit", "s1/tensor/minmax"),
    ],
    lambda place, value: lambda: fxquant.recipe("w8a8").override(value),
)
CASES.family(
    FxquantError,
    [
        ("a scheme that is a number", lambda: Scheme.parse(8)),  # type: ignore[arg-type]
        ("a scheme of 17 bits", lambda: Scheme(bits=17)),
        ("a scheme of True bits", lambda: Scheme(bits=True)),
        ("a report without the layer asked for", lambda: quantized_small().report["fc3"]),
    ],
    lambda place, value: value,
)
