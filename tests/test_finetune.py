"""Fine-tuning a quantized model towards its float model."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fxquant
from fxquant.backends.quantized import QuantizedModule
from fxquant.checkpoint import Progress
from fxquant.errors import InputError
from fxquant.finetune import divergence, usual_rate
from fxquant.passes import Nonlinear
from fxquant.passes.integers.proof import prove_integer
from fxquant.pipeline.pipeline import Pipeline
from tests.backends.tiny import fingerprint, images, vit

X = images(24)
SHARP = 0.5  # logits of untrained models differ little


@cache
def quantized(method: str = "i-vit", *, floats: bool = False) -> Any:
    if floats:
        recipe = fxquant.recipe("w8a8").override("s4/channel/minmax")
        low = recipe.override("a6/tensor/minmax").pipeline.without("plan")
        return fxquant.quantize(vit(), calibration=X, pipeline=low, backend="reference")
    steps: Pipeline = fxquant.recipe("integer-only").pipeline
    chosen = Nonlinear(method=method, images=4, input_bits=6, output_bits=0)  # type: ignore[arg-type]
    steps = steps.replace("nonlinear", chosen)
    return fxquant.quantize(vit(), calibration=X, pipeline=steps, backend="reference")


def objective(model: Any) -> float:
    with torch.no_grad():
        return float(divergence(vit()(X).double(), model(X).double(), SHARP))


def tuned(q: Any, **options: Any) -> QuantizedModule:
    given: dict[str, Any] = {
        "teacher": vit(),
        "batch": 8,
        "epochs": 2,
        "learning_rate": 0.05,
        "temperature": SHARP,
    }
    return fxquant.finetune(q, X, **{**given, **options})


@pytest.mark.parametrize("method", ["i-bert", "i-vit", "fq-vit", "lut"])
def test_the_view_has_the_values_of_the_integer_graph_and_freezes_to_its_bits(method: str) -> None:
    q = quantized(method)
    view = fxquant.trainable(q)
    with torch.no_grad():
        assert torch.equal(view(X), q(X))
    frozen = fxquant.freeze(view)
    assert torch.equal(frozen(X), q(X))
    assert prove_integer(frozen) == prove_integer(q)
    x = X[:4].clone().requires_grad_()
    view(x).square().mean().backward()
    for parameter in [*view.parameters(), x]:
        assert parameter.grad is not None
        assert bool((parameter.grad != 0).any())
        assert bool(torch.isfinite(parameter.grad).all())


def test_gradients_through_integers_are_those_of_the_float_function() -> None:
    q = quantized("lut")
    x = X[:8].clone().requires_grad_()
    wanted = torch.autograd.grad(vit()(x).square().sum(), x)[0]
    made = torch.autograd.grad(fxquant.trainable(q)(x).square().sum(), x)[0]
    cosine = torch.nn.functional.cosine_similarity(made.flatten(), wanted.flatten(), dim=0)
    assert float(cosine) > 0.95


@pytest.mark.parametrize("floats", [False, True])
def test_it_comes_closer_to_the_teacher_and_leaves_the_start_alone(*, floats: bool) -> None:
    q = quantized(floats=floats)
    before = fingerprint(q)
    better = tuned(q, epochs=24, learning_rate=0.4 if floats else 0.05)
    assert fingerprint(q) == before
    assert objective(better) < 0.9 * objective(q)
    assert better.plan == q.plan
    assert "epochs on 24 images" in better.report.notes[-1][1]
    if not floats:
        assert prove_integer(better).roots == 3


def test_weights_keep_their_bits() -> None:
    recipe = fxquant.recipe("integer-only").override("s4/channel/minmax", sites="*:weight")
    q = fxquant.quantize(vit(), calibration=X, recipe=recipe, backend="reference")
    view = fxquant.trainable(q)
    with torch.no_grad():
        for name, parameter in view.named_parameters():
            if name.endswith("__master"):
                parameter.mul_(9.0)
    frozen = fxquant.freeze(view)
    held = [t for n, t in frozen.state_dict().items() if t.dtype is torch.int8 and "codes" in n]
    assert len(held) == 6
    assert {(int(t.min()), int(t.max())) for t in held} == {(-8, 7)}


def test_it_is_never_worse_than_its_start() -> None:
    q = quantized()
    worse = tuned(q, learning_rate=30.0, epochs=1)
    assert objective(worse) == objective(q)
    with torch.no_grad():
        assert torch.equal(worse(X), q(X))


def test_the_usual_rate_follows_the_noise_of_the_logits() -> None:
    wanted = torch.randn(6, 9, generator=torch.Generator().manual_seed(1))
    rates = [usual_rate(wanted, wanted * (1 + noise)) for noise in (0.0, 0.1, 0.2, 3.0)]
    assert rates == pytest.approx([0.005, 0.005, 0.012, 0.1], rel=1e-5)
    q = quantized(floats=True)
    better = tuned(q, learning_rate=None, temperature=10.0, epochs=24)
    with torch.no_grad():
        losses = [float((vit()(X) - model(X)).square().sum()) for model in (better, q)]
    assert losses[0] < 0.99 * losses[1]


def test_an_epoch_that_spoils_is_taken_back_and_the_rate_halved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module: Any = sys.modules["fxquant.finetune"]
    original, rates = module._Tuner.epoch, []

    def told(self: Any, *args: Any) -> int:
        rates.append(args[3])
        return int(original(self, *args))

    monkeypatch.setattr(module._Tuner, "epoch", told)
    q = quantized()
    better = tuned(q, learning_rate=4.0, epochs=16)
    assert rates[:3] == [1.0, 0.5, 0.25]
    assert sorted(rates, reverse=True) == rates
    assert objective(better) < 0.95 * objective(q)
    assert Progress(start=3.0, history=[7.0, 2.0, 5.9, 6.1, 1.0]).retreats == 2


def test_no_step_begins_after_the_time() -> None:
    q = quantized()
    same = tuned(q, minutes=-1.0)
    assert "for 0 epochs" in same.report.notes[-1][1]
    with torch.no_grad():
        assert torch.equal(same(X), q(X))


def test_a_run_that_was_cut_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    q = quantized()
    whole = tuned(q)
    path = tmp_path / "run.safetensors"
    module: Any = sys.modules["fxquant.finetune"]  # the function hides the module of its name
    original, calls = module._Tuner.epoch, []

    def cut(self: Any, *args: Any) -> int:
        calls.append(args[1])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return int(original(self, *args))

    monkeypatch.setattr(module._Tuner, "epoch", cut)
    with pytest.raises(KeyboardInterrupt):
        tuned(q, checkpoint=path)
    monkeypatch.setattr(module._Tuner, "epoch", original)
    resumed = tuned(q, checkpoint=path)
    assert calls == [0, 1]
    assert fingerprint(resumed) == fingerprint(whole)
    with pytest.raises(InputError, match=r"differs in learning_rate"):
        tuned(q, checkpoint=path, learning_rate=0.01)
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="no checkpoint"):
        tuned(q, checkpoint=path)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"epochs": 0}, "cannot train"),
        ({"learning_rate": -1.0}, "cannot train"),
        ({"teacher": vit().train()}, "training mode"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        tuned(quantized(), **options)
    with pytest.raises(InputError, match="takes a quantized model"):
        tuned(vit())


def test_the_divergence_is_zero_for_equal_logits_and_positive_else() -> None:
    a: Tensor = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    assert float(divergence(a, a + 3.0, 2.0)) == pytest.approx(0.0, abs=1e-6)
    assert float(divergence(a, -a, 2.0)) > 0.1
