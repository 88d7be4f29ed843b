"""Plans that cannot be read, or that speak of something else."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import fxquant
from fxquant import Decision, Plan
from fxquant.errors import CalibrationError, InputError, PlanError
from tests.bad_inputs.place import Call, Cases, Place, good, plan_json, quantized_small

CASES = Cases()


def with_plan(place: Place, change: Callable[[Any], Any]) -> Call:
    model = place.model()
    data = plan_json()
    changed = change(data)
    path = place.file(json.dumps(data if changed is None else changed), "plan.json")
    return lambda: fxquant.quantize(model, calibration=good(), plan=Plan.load(path))


def put(*keys: Any) -> Callable[[Any], None]:
    """Sets the place named by all keys but the last, which is the value."""

    def change(data: Any) -> None:
        *path, last, value = keys
        for key in path:
            data = data[key]
        data[last] = value

    return change


def drop(*keys: str) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        for key in keys[:-1]:
            data = data[key]
        del data[keys[-1]]

    return change


def of_another_model(data: Any) -> None:
    data["decisions"] = {f"blocks.{k}": v for k, v in data["decisions"].items()}


FLOAT = {"compute": "float32", "reason": "mine"}
HALF, BFLOAT16 = (FLOAT | {"compute": kind} for kind in ("float16", "bfloat16"))
CASES.family(
    PlanError,
    [
        ("a plan of another model", of_another_model),
        ("a plan that is a list", lambda data: [data]),
        ("a plan without a version", drop("fxquant_plan")),
        ("a plan of version 1", put("fxquant_plan", 1)),
        ("a plan whose version is text", put("fxquant_plan", "one")),
        ("a plan with a key too many", put("author", "me")),
        ("a plan without a target", drop("target")),
        ("a plan whose target lacks a key", drop("target", "machine")),
        ("a plan whose target has a wrong type", put("target", "activation_bits", "8")),
        ("a plan whose decisions are a list", put("decisions", [])),
        ("a plan without a site", drop("decisions", "fc1:weight")),
        ("a plan with a site too many", put("decisions", "fc9:input", FLOAT)),
        ("a plan with an unknown slot", put("decisions", "fc1:bias", FLOAT)),
        ("a plan with a site without a slot", put("decisions", "fc1", FLOAT)),
        ("a plan that is quantized on one side", put("decisions", "fc1:weight", FLOAT)),
        ("a plan with a decision that is text", put("decisions", "fc1:input", "float")),
        ("a plan with an empty decision", put("decisions", "fc1:input", {})),
        (
            "a plan with both kinds of decision",
            put("decisions", "fc1:input", FLOAT | {"scheme": "a8/tensor/minmax"}),
        ),
        ("a plan with a misspelt entry", put("decisions", "fc1:input", {"shceme": "a8"})),
        (
            "a plan with an unknown float type",
            put("decisions", "fc1:input", FLOAT | {"compute": "float16"}),
        ),
        ("a plan with a bad scheme", put("decisions", "fc1:input", "scheme", "a8/tensor")),
        ("a plan with a number as a scheme", put("decisions", "fc1:input", "scheme", 8)),
        (
            "a plan with an activation scheme per channel",
            put("decisions", "fc1:input", "scheme", "s8/channel/minmax"),
        ),
        (
            "a plan with an affine weight",
            put("decisions", "fc1:weight", "scheme", "a8/channel/minmax"),
        ),
        (
            "a plan with a dynamic weight",
            put("decisions", "fc1:weight", "scheme", "s8/token/dynamic"),
        ),
        (
            "a plan with a linear in bfloat16",
            put("decisions", "fc1:input", FLOAT | {"compute": "bfloat16"}),
        ),
        (
            "a plan with a channelled input",
            put("decisions", "fc1:input", "scheme", "a8/channel/minmax"),
        ),
        ("a plan that is empty", put("decisions", {})),
    ],
    with_plan,
)


def plan_text(place: Place, content: bytes | str) -> Call:
    path = place.file(content, "plan.json")
    return lambda: Plan.load(path)


WHOLE = json.dumps(plan_json())
CASES.family(
    PlanError,
    [
        ("a plan cut short", WHOLE[: len(WHOLE) // 2]),
        ("a plan of one byte", WHOLE[:1]),
        ("an empty plan file", ""),
        ("a plan that is binary", b"\xff\x00\xfe"),
        ("a plan nested too deep", "[" * 100_000),
        ("a plan with a doubled site", WHOLE.replace('"fc1:weight"', '"fc1:input"')),
    ],
    plan_text,
)


@CASES("a plan file that does not exist", PlanError)
def _(place: Place) -> Call:
    return lambda: Plan.load(place.folder / "nowhere.json")


@CASES("a plan saved to a missing folder", PlanError)
def _(place: Place) -> Call:
    return lambda: quantized_small().plan.save(place.folder / "nowhere" / "plan.json")


@CASES("a decision for a site that is not there", PlanError)
def _(place: Place) -> Call:
    return lambda: quantized_small().plan.with_decision("fc3:input", Decision(reason="mine"))


@CASES("a static plan without calibration data", CalibrationError)
def _(place: Place) -> Call:
    return place.quantize(plan=quantized_small().plan, example=good(2))


CASES.family(
    InputError,
    [("a dict as a plan", {"decisions": {}}), ("a path as a plan", "plan.json")],
    lambda place, value: place.quantize(calibration=good(), plan=value),
)
