"""Plans and targets as data: JSON there and back, and every way it can be malformed."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fxquant
from fxquant.errors import PlanError
from fxquant.graph.site import SLOTS, Site
from fxquant.pipeline.plan import Decision, Plan
from fxquant.pipeline.target import Target
from fxquant.quant.scheme import Scheme
from tests.pipeline.steps import TARGET, Block, data

LAYERS = st.text(min_size=1, max_size=12)
SITES = st.builds(Site, layer=LAYERS, slot=st.sampled_from(SLOTS))
SCHEMES = st.sampled_from(["s8/channel/minmax", "a8/tensor/percentile@99.999", "s4/group32/mse"])
DECISIONS = st.builds(
    Decision, compute=st.sampled_from(["float32", "bfloat16"]), reason=st.text()
) | st.builds(Decision, scheme=SCHEMES.map(Scheme.parse), reason=st.text())
TARGETS = st.builds(
    Target,
    backend=st.text(),
    machine=st.text(),
    activation_bits=st.sampled_from([7, 8]),
    bfloat16=st.booleans(),
    roles=st.lists(st.text(), max_size=3).map(tuple),
    smallest_features=st.integers(1, 1024),
    kinds=st.lists(st.text(), max_size=3).map(tuple),
    matmul=st.booleans(),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
CHOICES = st.dictionaries(
    st.builds("{}@{}".format, st.text(max_size=5), LAYERS),
    st.dictionaries(st.text(max_size=5), JSON, max_size=3),
    max_size=3,
)
PLANS = st.builds(
    Plan,
    decisions=st.dictionaries(SITES, DECISIONS, max_size=5),
    target=TARGETS,
    recipe=st.text(),
    choices=CHOICES,
    pipeline=st.text(),
)


def sound() -> dict[str, Any]:
    return {
        "fxquant_plan": 2,
        "recipe": "w8a8",
        "target": TARGET.to_json(),
        "pipeline": "annotate",
        "choices": {"smooth@norm1": {"alpha": 0.5, "reason": "searched"}},
        "decisions": {
            "head:input": {"scheme": "a8/tensor/minmax", "reason": "why"},
            "head:weight": {"compute": "float32", "reason": "why not"},
        },
    }


@given(PLANS)
def test_plans_survive_json(plan: Plan) -> None:
    again = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan
    assert list(again) == list(plan)  # sites in graph order


@given(TARGETS)
def test_targets_survive_json(target: Target) -> None:
    assert Target.from_json(json.loads(json.dumps(target.to_json()))) == target


def test_a_target_that_names_no_kinds_takes_all() -> None:
    assert TARGET.takes("adalog")
    some = Target(backend="x86", machine="any", kinds=("uniform",))
    assert some.takes("uniform")
    assert not some.takes("region")


def test_plans_survive_a_file(tmp_path: Path) -> None:
    plan = Plan.from_json(sound())
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert plan["head:input"].scheme == Scheme()
    assert plan["head:weight"] == Decision(reason="why not")


def test_a_missing_reason_says_that_the_plan_was_edited() -> None:
    edited = sound()
    del edited["decisions"]["head:input"]["reason"]
    assert Plan.from_json(edited)["head:input"].reason == "edited plan"


def changed(*path: Any, to: Any = None, drop: bool = False) -> dict[str, Any]:
    made = inner = sound()
    for key in path[:-1]:
        inner = inner[key]
    if drop:
        del inner[path[-1]]
    else:
        inner[path[-1]] = to
    return made


HEAD = ("decisions", "head:input")
MALFORMED: list[tuple[Any, str]] = [
    (None, "not a fxquant plan"),
    ([], "not a fxquant plan"),
    ("plan", "not a fxquant plan"),
    ({}, "not a fxquant plan"),
    (changed("fxquant_plan", drop=True), "not a fxquant plan"),
    (changed("fxquant_plan", to=1), "plan version 1"),
    (changed("fxquant_plan", to="2"), "plan version '2'"),
    (changed("fxquant_plan", to=True), "plan version True"),
    (changed("fxquant_plan", to=None), "plan version None"),
    (changed("recipe", drop=True), "keys are wrong"),
    (changed("target", drop=True), "keys are wrong"),
    (changed("decisions", drop=True), "keys are wrong"),
    (changed("more", to=1), "keys are wrong"),
    (changed("choices", drop=True), "keys are wrong"),
    (changed("pipeline", drop=True), "keys are wrong"),
    (changed("decisions", to=[]), "decisions is no dict"),
    (changed("decisions", to=None), "decisions is no dict"),
    (changed("recipe", to=3), "recipe is no str"),
    (changed("recipe", to=None), "recipe is no str"),
    (changed("pipeline", to=["annotate"]), "pipeline is no str"),
    (changed("choices", to=[]), "choices is no dict"),
    (changed("choices", "smooth", to={}), "a choice is pass@place"),
    (changed("choices", "smooth@norm1", to=0.5), "a choice is pass@place"),
    (changed("choices", "smooth@norm1", to=None), "a choice is pass@place"),
    (changed("target", to=None), "target is no dict"),
    (changed("target", to={}), "target is not sound"),
    (changed("target", "backend", drop=True), "target is not sound"),
    (changed("target", "more", to=1), "target is not sound"),
    (changed("target", "backend", to=3), "target.backend"),
    (changed("target", "activation_bits", to="8"), "target.activation_bits"),
    (changed("target", "activation_bits", to=8.0), "target.activation_bits"),
    (changed("target", "activation_bits", to=True), "target.activation_bits"),
    (changed("target", "bfloat16", to=1), "target.bfloat16"),
    (changed("target", "roles", to="fc1"), "target.roles"),
    (changed("target", "roles", to=[1]), "target.roles"),
    (changed("target", "smallest_features", to=None), "target.smallest_features"),
    (changed("target", "kinds", to="uniform"), "target.kinds"),
    (changed("target", "kinds", to=[None]), "target.kinds"),
    (changed("target", "kinds", drop=True), "target is not sound"),
    (changed("target", "matmul", to=1), "target.matmul"),
    (changed("decisions", "head", to={"compute": "float32"}), "not a site: 'head'"),
    (changed("decisions", "head:bias", to={"compute": "float32"}), "unknown slot 'bias'"),
    (changed("decisions", "", to={"compute": "float32"}), "not a site"),
    (changed(*HEAD, to=None), "must be a mapping"),
    (changed(*HEAD, to="a8/tensor/minmax"), "must be a mapping"),
    (changed(*HEAD, to={}), "one of scheme and compute"),
    (changed(*HEAD, to={"reason": "none"}), "one of scheme and compute"),
    (changed(*HEAD, "compute", to="float32"), "one of scheme and compute"),
    (changed(*HEAD, "more", to=1), "one of scheme and compute"),
    (changed(*HEAD, to={"compute": "float16"}), "unknown compute type 'float16'"),
    (changed(*HEAD, to={"compute": None}), "unknown compute type None"),
    (changed(*HEAD, to={"compute": ["float32"]}), "unknown compute type"),
    (changed(*HEAD, "scheme", to="int8"), "not a quantization scheme"),
    (changed(*HEAD, "scheme", to="s9/tensor/minmax"), "9 bits"),
    (changed(*HEAD, "scheme", to="a8/tensor/percentile@1.2.3"), "not a quantization scheme"),
    (changed(*HEAD, "scheme", to=None), "not a quantization scheme"),
    (changed(*HEAD, "scheme", to=8), "not a quantization scheme"),
    (changed(*HEAD, "reason", to=8), "reason"),
    (changed(*HEAD, "reason", to=None), "reason"),
]


@pytest.mark.parametrize(("data", "message"), MALFORMED)
def test_a_malformed_plan_is_refused_and_the_site_named(data: Any, message: str) -> None:
    before = copy.deepcopy(data)
    with pytest.raises(PlanError, match=message) as caught:
        Plan.from_json(data)
    assert data == before
    entry = data.get("decisions") if isinstance(data, dict) else None
    if isinstance(entry, dict) and entry.get("head:input") != sound()["decisions"]["head:input"]:
        assert "site head:input" in caught.value.where


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[1]", '{"fxquant_plan": 1}', "\x00", "[" * 100_000, "NaN"]
)
def test_a_file_that_is_no_plan_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PlanError):
        Plan.load(path)


def test_files_that_cannot_be_read_or_written_name_the_path(tmp_path: Path) -> None:
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    for name in ("missing.json", "bytes.json", "."):
        with pytest.raises(PlanError, match="cannot read the plan") as caught:
            Plan.load(tmp_path / name)
        assert str(tmp_path) in caught.value.where
    with pytest.raises(PlanError, match="cannot write the plan"):
        Plan.from_json(sound()).save(tmp_path / "no" / "folder.json")


def test_a_site_written_twice_is_refused(tmp_path: Path) -> None:
    text = json.dumps(sound()).replace("head:weight", "head:input")
    (tmp_path / "plan.json").write_text(text, encoding="utf-8")
    with pytest.raises(PlanError, match="'head:input' occurs twice"):
        Plan.load(tmp_path / "plan.json")


@pytest.mark.parametrize(
    "fields",
    [
        {"scheme": "a8/tensor/minmax"},
        {"scheme": Scheme(), "compute": "bfloat16"},
        {"compute": "float16"},
        {"compute": None},
    ],
)
def test_a_decision_that_says_nothing_clear_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(PlanError):
        Decision(**fields, reason="why")


def test_plans_answer_by_site_and_change_into_copies() -> None:
    plan = Plan.from_json(sound())
    keep = Decision(reason="kept")
    other = plan.with_decision("head:input", keep)
    assert other["head:input"] is keep
    assert plan["head:input"] != keep
    assert plan[Site("head", "input")] == plan["head:input"]
    assert plan.get("head", "output") is None
    assert len(plan) == 2
    assert not plan.layer_is_quantized("head")
    assert copy.deepcopy(plan) is plan
    with pytest.raises(TypeError):
        plan.decisions[Site("head", "input")] = keep  # type: ignore[index]
    for ask in (lambda: plan["hed:input"], lambda: plan.with_decision("hed:input", keep)):
        with pytest.raises(PlanError, match="no site hed:input") as caught:
            ask()
        assert "head:input" in caught.value.fix


def test_choices_are_looked_up_by_pass_and_place_and_change_into_copies() -> None:
    plan = Plan.from_json(sound())
    chosen = plan.choice("smooth", "norm1")
    assert chosen == {"alpha": 0.5, "reason": "searched"}
    assert plan.choice("smooth", "norm2") is None
    assert plan.choice("noise", "norm1") is None
    other = plan.with_choice("smooth", "norm1", {"declined": True, "reason": "why"})
    assert other.choice("smooth", "norm1") == {"declined": True, "reason": "why"}
    assert plan.choice("smooth", "norm1") == chosen
    assert other.decisions == plan.decisions
    with pytest.raises(TypeError):
        plan.choices["smooth@norm1"]["alpha"] = 1.0  # type: ignore[index]


def test_a_plan_made_before_gives_the_same_bits(tmp_path: Path) -> None:
    first = fxquant.quantize(Block().eval(), calibration=data(), backend="reference")
    first.plan.save(tmp_path / "plan.json")
    again = fxquant.quantize(
        Block().eval(),
        calibration=data(),
        plan=Plan.load(tmp_path / "plan.json"),
        backend="reference",
    )
    x = data(5, seed=1)
    assert (first(x) == again(x)).all()
    assert again.plan.decisions == first.plan.decisions
