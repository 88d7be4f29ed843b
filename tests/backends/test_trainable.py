"""The straight-through view of a quantized model, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant.backends.quantized import QuantizedModule
from tests.backends.tiny import Block, Mlp, images, made, quantized, shared, tensor


class Patches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.patch(x).flatten(2).mean(2))
        return out


class Tied(nn.Module):
    """One weight in two layers, and one layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(16, 16) for _ in range(3))
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c(F.silu(self.b(F.silu(self.a(self.c(x))))))
        return out


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[str], str]] = {
    "per channel": (lambda: Mlp(16, 32), (16,), [], "w8a8"),
    "per tensor": (lambda: Mlp(16, 32), (16,), ["s8/tensor/minmax"], "w8a8"),
    "in groups": (lambda: Mlp(16, 32), (16,), ["s8/group8/minmax"], "w8a8"),
    "4 bits in groups": (lambda: Mlp(16, 32), (16,), ["s4/group8/minmax"], "w8a8"),
    "4 and 6 bits": (lambda: Mlp(16, 32), (16,), ["s4/channel/minmax", "a6/tensor/minmax"], "w8a8"),
    "16 bits": (lambda: Mlp(16, 32), (16,), ["s16/channel/minmax", "a16/tensor/minmax"], "w8a8"),
    "per token": (lambda: Mlp(16, 32), (5, 16), [], "w8a8-dynamic"),
    "16 bits per token": (lambda: Mlp(16, 32), (5, 16), ["a16/token/dynamic"], "w8a8-dynamic"),
    "a convolution": (Patches, (3, 8, 8), [], "w8a8"),
    "a convolution per tensor": (Patches, (3, 8, 8), ["s8/tensor/minmax"], "w8a8"),
    "an attention block": (lambda: Block(16, 32), (6, 16), [], "w8a8"),
    "tied weights": (Tied, (16,), [], "w8a8"),
}


def made_quantized(name: str) -> tuple[Any, Tensor]:
    build, shape, overrides, base = KINDS[name]
    recipe = fxquant.recipe(base)
    for scheme in overrides:
        recipe = recipe.override(scheme)
    x = tensor(8, *shape)
    return fxquant.quantize(made(build), calibration=x, recipe=recipe), x


def codes(q: Any) -> dict[str, Tensor]:
    return {n: t for n, t in q.state_dict().items() if n.endswith("__weight")}


@pytest.mark.parametrize("name", KINDS)
def test_an_untrained_view_computes_the_same_and_freezes_to_the_same_bits(name: str) -> None:
    q, x = made_quantized(name)
    view = fxquant.trainable(q)
    with torch.no_grad():
        torch.testing.assert_close(view(x), q(x), rtol=1e-5, atol=1e-6)
    frozen = fxquant.freeze(view)
    assert isinstance(frozen, QuantizedModule)
    assert codes(frozen)
    before, after = q.state_dict(), frozen.state_dict()
    assert sorted(t.shape for t in codes(q).values()) == sorted(
        t.shape for t in codes(frozen).values()
    )
    for key, value in codes(frozen).items():
        assert value.dtype == before[key].dtype
        assert torch.equal(value, before[key])
    assert {n: t.dtype for n, t in before.items()} == {n: t.dtype for n, t in after.items()}
    with torch.no_grad():
        assert torch.equal(frozen(x), q(x))
    assert frozen.plan == q.plan
    assert frozen.report == q.report


@pytest.mark.parametrize("name", KINDS)
def test_gradients_reach_every_weight_and_are_finite(name: str) -> None:
    q, x = made_quantized(name)
    view = fxquant.trainable(q)
    assert view.training
    names = dict(view.named_parameters())
    assert sum("master" in n for n in names) == len(codes(q))
    x = x.clone().requires_grad_()
    view(x).square().mean().backward()
    for parameter in [*names.values(), x]:
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
        assert bool((parameter.grad != 0).any())


@pytest.mark.parametrize("name", KINDS)
def test_a_training_step_changes_the_codes_and_nothing_else(name: str) -> None:
    q, x = made_quantized(name)
    before = {n: t.clone() for n, t in q.state_dict().items()}
    view = fxquant.trainable(q)
    optimizer = torch.optim.SGD(view.parameters(), lr=0.5)
    (view(x) - 1.0).square().mean().backward()
    optimizer.step()
    frozen = fxquant.freeze(view)
    with torch.no_grad():
        torch.testing.assert_close(frozen(x), view(x), rtol=1e-4, atol=1e-5)
    after = frozen.state_dict()
    assert set(after) == set(before)
    assert any(not torch.equal(value, before[n]) for n, value in codes(frozen).items())
    for n, value in after.items():
        if n.endswith(("_scale", "_zero_point")):
            assert torch.equal(value, before[n])
    assert all(torch.equal(t, before[n]) for n, t in q.state_dict().items())


def test_gradients_are_straight_through_inside_the_range_and_zero_beyond() -> None:
    model = made(lambda: nn.Sequential(nn.Linear(16, 16, bias=False)))
    q = fxquant.quantize(model, calibration=tensor(8, 16).clamp(-1, 1))
    view = fxquant.trainable(q)
    x = torch.full((1, 16), 0.5)
    x[0, 3] = 9.0
    x.requires_grad_()
    view(x).sum().backward()
    weight = next(p for n, p in view.named_parameters() if "master" in n)
    assert x.grad is not None
    expected = weight.detach().sum(0)
    expected[3] = 0.0
    torch.testing.assert_close(x.grad[0], expected, rtol=1e-5, atol=1e-6)


def test_training_lowers_the_loss_and_the_result_runs_in_int8(tmp_path: Any) -> None:
    q, x = made_quantized("an attention block")
    view = fxquant.trainable(q)
    optimizer = torch.optim.Adam(view.parameters(), lr=1e-2)
    goal = tensor(*x.shape, seed=9) * 0.1
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = (view(x) - goal).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    frozen = fxquant.freeze(view)
    lowered = fxquant.lower(frozen, strict=True, executor="eager")
    with torch.no_grad():
        assert (lowered(x) - goal).square().mean() < 0.8 * losses[0]
    lowered.save(tmp_path / "tuned.fxq")
    again = fxquant.load(tmp_path / "tuned.fxq", executor="eager", strict=True)
    assert torch.equal(again(x), lowered(x))


def test_a_tied_weight_stays_one_weight_in_the_view() -> None:
    q, x = made_quantized("tied weights")
    view = fxquant.trainable(q)
    masters = [n for n, _ in view.named_parameters() if "master" in n]
    assert len(masters) == 2
    (view(x) - 1.0).square().mean().backward()
    torch.optim.SGD(view.parameters(), lr=0.5).step()
    assert len(codes(fxquant.freeze(view))) == 2


def test_the_view_of_a_lowered_model_is_that_of_its_reference() -> None:
    lowered = fxquant.lower(shared("vit")[1], executor="eager")
    view, x = fxquant.trainable(lowered.reference), images(2)
    with torch.no_grad():
        torch.testing.assert_close(view(x), lowered.reference(x), rtol=1e-5, atol=1e-6)


def test_a_view_leaves_the_quantized_model_alone() -> None:
    q, x = quantized(), images(2)
    before = q(x)
    view = fxquant.trainable(q)
    with torch.no_grad():
        for parameter in view.parameters():
            parameter.zero_()
    assert torch.equal(q(x), before)
    assert not q.training


def test_a_view_saves_and_loads_its_state_like_any_module() -> None:
    q, x = made_quantized("per channel")
    view, other = fxquant.trainable(q), fxquant.trainable(q)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    other.load_state_dict(view.state_dict())
    assert torch.equal(other(x), view(x))
