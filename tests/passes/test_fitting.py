"""ERQ and bias correction on a small vision transformer, and what tokens weigh."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant.errors import CalibrationError, PipelineError
from fxquant.fidelity import logits_of
from fxquant.passes import CorrectBias, Ridge
from fxquant.passes.importance import by_energy, by_gradient
from fxquant.pipeline.base import Pass
from fxquant.pipeline.pipeline import Pipeline
from fxquant.quant.metrics import sqnr_db
from tests.backends.tiny import made, tensor


class Net(nn.Module):
    """Two residual MLPs with norms and a head that reads one token."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(24) for _ in range(2))
        self.ins = nn.ModuleList(nn.Linear(24, 48) for _ in range(2))
        self.outs = nn.ModuleList(nn.Linear(48, 24) for _ in range(2))
        self.head = nn.Linear(24, 20)

    def forward(self, x: Tensor) -> Tensor:
        for norm, first, second in zip(self.norms, self.ins, self.outs, strict=True):
            x = x + second(nn.functional.gelu(first(norm(x))))
        y: Tensor = self.head(x[:, 0])
        return y


def pipeline(*added: Pass) -> Pipeline:
    recipe = fxquant.recipe("w8a8").override("s4/channel/mse", sites="*:weight")
    steps = recipe.pipeline
    for name in ("exact_input", "smooth", "plan", "correct_bias"):
        steps = steps.without(name)
    return steps.after("apply", *added)


def correlated(count: int, seed: int) -> Tensor:
    """Tokens near a space of 6 directions: with independent channels nearest is already best."""
    directions = tensor(6, 24, seed=77)
    return tensor(count, 10, 6, seed=seed) @ directions + 0.1 * tensor(count, 10, 24, seed=seed + 1)


def net() -> nn.Module:
    return made(Net)


def logits_db(*added: Pass) -> float:
    model, data, others = net(), correlated(64, 1), correlated(32, 9)
    quantized = fxquant.quantize(
        model, calibration=data, pipeline=pipeline(*added), backend="reference"
    )
    exact, found = (logits_of(m, others, batch=32) for m in (model, quantized))
    return sqnr_db(exact, found)


@pytest.mark.parametrize("importance", ["even", "energy", "gradient"])
@pytest.mark.parametrize("upstream", ["float", "quantized"])
def test_compensated_rounding_beats_nearest_on_images_it_has_not_seen(
    importance: str, upstream: str
) -> None:
    ridge = Ridge(activation=(), importance=importance, upstream=upstream, images=64)  # type: ignore[arg-type]
    assert logits_db(ridge) > logits_db() + 0.5


def test_every_kept_update_lowered_its_layers_error() -> None:
    q = fxquant.quantize(net(), calibration=tensor(64, 10, 24), pipeline=pipeline(Ridge()))
    chosen = {key: c for key, c in q.plan.choices.items() if key.startswith("ridge@")}
    assert len(chosen) == 5
    for choice in chosen.values():
        assert choice.get("declined") or choice["after_db"] > choice["before_db"]


def test_a_saved_plan_gives_the_same_bits() -> None:
    data = tensor(64, 10, 24)
    steps = pipeline(Ridge(importance="gradient"), CorrectBias())
    first = fxquant.quantize(net(), calibration=data, pipeline=steps)
    plan = fxquant.Plan.from_json(first.plan.to_json())
    again = fxquant.quantize(net(), calibration=data, plan=plan)
    for (name, one), (other_name, other) in zip(
        first.named_buffers(), again.named_buffers(), strict=True
    ):
        assert name == other_name
        assert torch.equal(one, other)


def test_a_declined_layer_keeps_its_codes() -> None:
    data = tensor(64, 10, 24)
    nearest = fxquant.quantize(net(), calibration=data, pipeline=pipeline())
    steps = pipeline(Ridge(activation=()))
    plan = fxquant.quantize(net(), calibration=data, pipeline=steps).plan
    plan = plan.with_choice("ridge", "ins.0", {"declined": True, "reason": "by hand"})
    q = fxquant.quantize(net(), calibration=data, plan=plan)
    assert torch.equal(q.get_buffer("ins_0__weight"), nearest.get_buffer("ins_0__weight"))
    assert not torch.equal(q.get_buffer("outs_1__weight"), nearest.get_buffer("outs_1__weight"))


def test_bias_correction_leaves_no_mean_error_on_its_own_images() -> None:
    model, data = net(), tensor(32, 10, 24)
    q = fxquant.quantize(
        model,
        calibration=data,
        pipeline=pipeline(CorrectBias(importance="even", images=32)),
        backend="reference",
    )
    plain = fxquant.quantize(model, calibration=data, pipeline=pipeline(), backend="reference")
    with torch.no_grad():
        exact, corrected, left = model(data), q(data), plain(data)
    assert float((exact - corrected).mean(0).abs().max()) < 1e-5
    assert float((exact - left).mean(0).abs().max()) > 1e-3


def test_the_models_own_tensors_stay_as_they_were() -> None:
    model, data = net(), tensor(64, 10, 24)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fxquant.quantize(model, calibration=data, pipeline=pipeline(Ridge(), CorrectBias()))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_energy_weighs_outlier_tokens_down() -> None:
    y = torch.ones(100, 8)
    y[3] *= 1000.0
    weights = by_energy(y)
    assert float(weights.mean()) == pytest.approx(1.0)
    assert float(weights[3]) < 1e-5
    assert float(weights[4]) == pytest.approx(100 / 99, rel=1e-3)


def test_gradient_weighs_tokens_that_the_head_never_reads_with_nothing() -> None:
    model, data = net(), tensor(8, 10, 24)
    graph = fxquant.capture(model, data[:2])
    layers = fxquant.graph.layers.find_layers(graph)
    weighted = [layer for layer in layers if layer.kind == "linear"]
    weights = by_gradient(graph, (data,), weighted)
    last = next(layer for layer in weighted if layer.name == "outs.1")
    tokens = weights[last.node].reshape(8, 10)
    assert float(tokens[:, 1:].abs().max()) == 0.0
    assert float(tokens[:, 0].mean()) == pytest.approx(10.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Ridge(images=0),
        lambda: Ridge(activation=(-1.0,)),
        lambda: Ridge(damping=0.0),
        lambda: Ridge(activation=(), weight="off"),
        lambda: CorrectBias(images=0),
    ],
)
def test_impossible_options_are_refused(make: object) -> None:
    with pytest.raises(PipelineError):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("step", [Ridge(), CorrectBias()])
def test_without_data_there_is_nothing_to_fit_on(step: Pass) -> None:
    steps = fxquant.recipe("w8a8-dynamic").pipeline.after("apply", step)
    with pytest.raises(CalibrationError):
        fxquant.quantize(net(), example=tensor(2, 10, 24), pipeline=steps)
