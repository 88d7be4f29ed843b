"""Which layers ERQ fits, which it declines and why, and that nothing else is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant import Pipeline, State
from fxquant.errors import PlanError
from fxquant.passes import Annotate, Apply, Assign, Calibrate, CorrectBias, Ridge
from fxquant.pipeline.base import Pass
from fxquant.pipeline.plan import Plan
from fxquant.pipeline.state import Fact
from fxquant.quant.metrics import sqnr_db
from tests.backends.tiny import MODELS, images, made, tensor
from tests.passes.running import start


def steps(*added: Pass, weight: str = "s4/channel/minmax", bits: int = 4) -> Pipeline:
    assign = Assign(
        weight=fxquant.Scheme.parse(weight),
        activation=fxquant.Scheme.parse(f"a{bits}/tensor/minmax"),
        simulate="ask",
    )
    return Pipeline((Annotate(), assign, Calibrate(progress="never"), Apply(), *added))


def chosen(state: State, step: str = "ridge") -> dict[str, dict[str, Any]]:
    head = f"{step}@"
    choices = state.plan.choices.items()
    return {key.removeprefix(head): dict(c) for key, c in choices if key.startswith(head)}


@pytest.mark.parametrize("name", ["vit", "swin"])
@pytest.mark.parametrize(
    "ridge", [Ridge(), Ridge(weight="halves"), Ridge(weight="off"), Ridge(activation=(0.3,))]
)
def test_no_layer_is_worse_on_the_sample_than_without(name: str, ridge: Ridge) -> None:
    build, side = MODELS[name]
    state = steps(ridge).run(start(made(build), images(32, side=side)))
    found = chosen(state)
    assert set(found) == {la.name for la in state.layers if la.kind in {"linear", "conv"}}
    for choice in found.values():
        assert choice.get("declined") or choice["after_db"] >= choice["before_db"]
    assert sum("declined" not in choice for choice in found.values()) > len(found) // 2


def test_a_4_bit_vit_is_nearer_to_its_float_model_with_each_part() -> None:
    build, side = MODELS["vit"]
    model, data = made(build), images(48, side=side)

    def db(*added: Pass) -> float:
        graph = steps(*added).run(start(model, data)).graph
        with torch.no_grad():
            return sqnr_db(model(data), graph(data))

    plain = db()
    assert db(CorrectBias()) > plain + 1.0
    assert db(Ridge()) > plain + 2.0
    assert db(Ridge(), CorrectBias()) > plain + 2.0


def test_an_endless_penalty_and_no_rounding_change_nothing_but_the_bias() -> None:
    build, side = MODELS["vit"]
    model, data = made(build), images(16, side=side)
    plain = steps().run(start(model, data)).graph
    fitted = steps(Ridge(activation=(1e30,), weight="off")).run(start(model, data)).graph
    before, after = dict(plain.named_buffers()), dict(fitted.named_buffers())
    kept = [name for name in before if name.endswith(("__weight", "__weight_scale"))]
    assert kept
    assert all(torch.equal(before[name], after[name]) for name in kept)


@pytest.mark.parametrize("weight", ["s4/tensor/minmax", "s4/group8/minmax", "s8/channel/mse"])
def test_every_granularity_of_weights_can_be_fitted(weight: str) -> None:
    model = made(lambda: nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 8)))
    data = tensor(64, 16) @ tensor(16, 16, seed=3)
    state = steps(Ridge(), weight=weight, bits=8).run(start(model, data))
    declined = [name for name, choice in chosen(state).items() if choice.get("declined")]
    assert len(declined) < 2
    scheme = fxquant.Scheme.parse(weight)
    for name, codes in state.graph.named_buffers():
        if name.endswith("__weight"):
            assert codes.dtype is scheme.dtype
            assert int(codes.min()) >= scheme.quant_min
            assert int(codes.max()) <= scheme.quant_max
    plain = steps(weight=weight, bits=8).run(start(model, data)).graph
    with torch.no_grad():
        assert sqnr_db(model(data), state.graph(data)) > sqnr_db(model(data), plain(data))


def test_a_layer_without_a_bias_gets_one() -> None:
    model = made(lambda: nn.Sequential(nn.Linear(16, 8, bias=False)))
    data = tensor(32, 16) + 3.0
    for step in (Ridge(), CorrectBias(importance="even")):
        state = steps(step).run(start(model, data))
        (bias,) = (b for name, b in state.graph.named_buffers() if name.endswith("__bias"))
        assert bias.shape == (8,)
        with torch.no_grad():
            drift = (model(data) - state.graph(data)).mean(0)
        assert float(drift.abs().max()) < 1e-4


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.last = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(F.silu(self.fc(F.silu(self.fc(x)))))
        return out


def overlapping() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 4, 2), nn.Flatten(2), nn.Linear(49, 16))


@pytest.mark.parametrize(
    ("build", "data", "reason"),
    [
        (Tied, tensor(32, 16), "also another layer's"),
        (overlapping, images(32), "no linear over patches"),
    ],
)
def test_a_layer_that_cannot_be_fitted_says_why_and_the_others_are(
    build: Any, data: Tensor, reason: str
) -> None:
    state = steps(Ridge()).run(start(made(build), data))
    declined = {n: c for n, c in chosen(state).items() if reason in c["reason"]}
    assert declined
    assert all(choice["declined"] is True for choice in declined.values())
    assert {note.layer for note in state.log if note.source == "ridge"} >= set(declined)
    others = [n for n, c in chosen(state).items() if not c.get("declined")]
    assert others


def test_only_the_wanted_layers_are_fitted() -> None:
    build, side = MODELS["vit"]
    state = steps(Ridge(only="blocks.1.*")).run(start(made(build), images(16, side=side)))
    assert chosen(state)
    assert all(name.startswith("blocks.1.") for name in chosen(state))


@pytest.mark.parametrize("step", [Ridge(), CorrectBias()])
def test_the_incoming_graph_and_its_tensors_stay_as_they_were(step: Pass) -> None:
    build, side = MODELS["vit"]
    state = steps().run(start(made(build), images(16, side=side)))
    graph = state.graph
    text = str(graph.graph)
    before = {name: value.clone() for name, value in graph.state_dict().items()}
    after = step.run(state)
    assert after.graph is not graph
    assert str(graph.graph) == text
    assert list(before) == list(graph.state_dict())
    assert all(torch.equal(value, graph.state_dict()[name]) for name, value in before.items())
    assert after.float_graph is state.float_graph


@pytest.mark.parametrize(
    "choice",
    [
        {"activation": "much", "weight": "columns", "reason": "by hand"},
        {"activation": -1.0, "weight": "columns", "reason": "by hand"},
        {"activation": 0.1, "weight": "rows", "reason": "by hand"},
        {"reason": "by hand"},
    ],
)
def test_a_choice_that_makes_no_sense_is_refused_by_name(choice: dict[str, Any]) -> None:
    build, side = MODELS["vit"]
    state = steps().run(start(made(build), images(4, side=side)))
    plan: Plan = state.plan.with_choice("ridge", "blocks.0.mlp.fc1", choice)
    with pytest.raises(PlanError, match=r"ridge@blocks\.0\.mlp\.fc1"):
        Ridge().run(state.having(Fact.PLAN, plan))


def test_a_fitted_model_survives_being_saved(tmp_path: Path) -> None:
    build, side = MODELS["vit"]
    data = images(16, side=side)
    q = fxquant.quantize(
        made(build),
        calibration=data,
        pipeline=steps(Ridge(images=16), CorrectBias(images=16), bits=8),
        backend="reference",
    )
    q.save(tmp_path / "fitted.fxq")
    again = fxquant.load(tmp_path / "fitted.fxq")
    with torch.no_grad():
        assert torch.equal(again(data), q(data))
