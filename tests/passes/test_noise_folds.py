"""Noise goes into a norm's bias or V's where that is the same thing, else through an addition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant import Pipeline, State
from fxquant.graph.tensors import tensor_at
from fxquant.passes import noise
from fxquant.passes.noising.folds import NOT_FREE, plan_fold
from fxquant.passes.noising.paths import Fold
from fxquant.passes.open_attention import OpenAttention
from fxquant.quant import ops
from fxquant.quant.scheme import Scheme
from tests.backends.tiny import Attention, Block, Mlp, Swin, images, made, tensor
from tests.passes.noising import codes, noisy, outputs, quantized, site_of, steps, with_choice
from tests.passes.running import calls, start
from tests.passes.smoothing import randomized

DIM, TOKENS = 16, 6


def block_state(*, separate: bool = False, **options: Any) -> State:
    model = randomized(made(lambda: Block(DIM, 2 * DIM, separate=separate)))
    return quantized(model, tensor(8, TOKENS, DIM), **options)


def fold_at(state: State, place: str) -> Fold:
    return plan_fold(state.graph, site_of(state, place))


def differing(one: Tensor, other: Tensor, x: Tensor, step: float) -> Tensor:
    """Where codes differ although the value is not on a rounding threshold, but for arithmetic."""
    ratio = x / step
    near = (ratio - ratio.floor() - 0.5).abs() < 1e-4
    return (one != other) & ~near


@pytest.mark.parametrize(
    ("place", "kind", "separate"),
    [
        ("attn.qkv:input", "layer_norm", False),
        ("mlp.fc1:input", "layer_norm", False),
        ("attn.proj:input", "value_bias", False),
        ("attn.k:input", "layer_norm", True),
        ("attn.proj:input", "value_bias", True),
    ],
)
def test_folded_noise_gives_the_codes_of_added_noise(
    place: str, kind: str, *, separate: bool
) -> None:
    """Equal but for the rounding of float32 sums, which are made in another order."""
    state = block_state(separate=separate)
    site = site_of(state, place)
    fold = fold_at(state, place)
    assert (fold.kind, fold.free) == (kind, True)
    graphs = {}
    for way in (kind, "add"):
        graphs[way] = noisy(with_choice(state, place, n=0.7 * site.step, fold=way)).graph
    count = len(calls(state.graph, "aten.add"))
    assert len(calls(graphs[kind], "aten.add")) == count
    assert len(calls(graphs["add"], "aten.add")) == count + 1
    x = tensor(20, TOKENS, DIM, seed=1)
    folded, separate_codes, plain = (
        codes(g, site.quantize.name, x) for g in (graphs[kind], graphs["add"], state.graph)
    )
    sums = next(n for n in graphs["add"].graph.nodes if n.name == site.quantize.name).args[0]
    assert isinstance(sums, torch.fx.Node)
    values = codes(graphs["add"], sums.name, x)
    assert not differing(folded, separate_codes, values, site.step).any()
    assert (folded != separate_codes).float().mean() < 1e-3
    assert (folded != plain).float().mean() > 0.1
    torch.testing.assert_close(
        outputs(graphs[kind], x), outputs(graphs["add"], x), atol=0.1, rtol=0
    )


class Affine(nn.Module):
    """A norm of powers of two, over values that are multiples of one: its arithmetic is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(2.0 ** torch.arange(DIM).remainder(3))
        self.shift = nn.Parameter(torch.arange(DIM) / 8.0)
        self.fc = nn.Linear(DIM, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x * self.scale + self.shift)
        return out


def test_where_arithmetic_is_exact_so_are_the_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    def dyadic(kind: Any, site: Any, seed: int) -> Tensor:
        return torch.arange(DIM) / 32.0 - 0.25

    monkeypatch.setattr(noise, "drawn", dyadic)
    x = (tensor(8, TOKENS, DIM) * 64).round() / 64
    state = quantized(made(Affine), x)
    name = site_of(state, "fc:input").quantize.name
    assert fold_at(state, "fc:input").kind == "layer_norm"
    one, other = (
        noisy(with_choice(state, "fc:input", n=1.0, fold=way)).graph
        for way in ("layer_norm", "add")
    )
    y = (tensor(50, TOKENS, DIM, seed=1) * 64).round() / 64
    assert torch.equal(codes(one, name, y), codes(other, name, y))
    assert torch.equal(outputs(one, y), outputs(other, y))


def test_the_original_tensors_are_left_and_shared_ones_are_not_changed_for_others() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.one, self.two = nn.LayerNorm(DIM), nn.Linear(DIM, 5), nn.Linear(5, DIM)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.norm(self.two(self.one(self.norm(x))))
            return out

    state = quantized(made(Shared), tensor(8, TOKENS, DIM))
    before = {key: value.clone() for key, value in state.graph.state_dict().items()}
    nodes = [str(node) for node in state.graph.graph.nodes]
    after = noisy(with_choice(state, "one:input", n=0.05, fold="layer_norm")).graph
    assert [str(node) for node in state.graph.graph.nodes] == nodes
    assert all(torch.equal(before[key], value) for key, value in state.graph.state_dict().items())
    biases = [str(n.args[3].target) for n in calls(after, "layer_norm")]
    assert biases == ["norm_norm__bias", "norm.bias"]
    assert not torch.equal(tensor_at(after, biases[0]), tensor_at(after, biases[1]))


def test_a_norm_without_bias_gets_one_and_so_does_a_linear() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(DIM, elementwise_affine=False)
            self.fc = nn.Linear(DIM, 5, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(self.norm(x))
            return out

    state = quantized(made(Bare), tensor(8, TOKENS, DIM))
    step = site_of(state, "fc:input").step
    after = noisy(with_choice(state, "fc:input", n=step / 4, fold="layer_norm")).graph
    assert tensor_at(after, "norm__bias").shape == (DIM,)
    assert tensor_at(after, "fc__bias").shape == (5,)
    x = tensor(50, TOKENS, DIM, seed=1)
    assert (outputs(after, x) - outputs(state.graph, x)).mean().abs() < 0.1 * step


class Reading(nn.Module):
    """``fc(f(norm(x)))``, and perhaps another reader of the norm."""

    def __init__(self, function: Any, *, other: Any = None, channels: int = DIM) -> None:
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(DIM), nn.Linear(channels, 5)
        self.function, self.other = function, other

    def forward(self, x: Tensor) -> Any:
        y = self.norm(x)
        out = self.fc(self.function(y))
        return out if self.other is None else (out, self.other(y))


@pytest.mark.parametrize(
    ("function", "channels"),
    [
        (lambda y: y[:, 0], DIM),
        (lambda y: y.mean(1), DIM),
        (lambda y: torch.roll(y, 2, 1).reshape(-1, 3, DIM), DIM),
        (lambda y: y[..., 4:12], 8),
    ],
)
def test_a_norm_is_found_through_movement_and_averages(function: Any, channels: int) -> None:
    state = quantized(made(lambda: Reading(function, channels=channels)), tensor(8, TOKENS, DIM))
    fold = fold_at(state, "fc:input")
    assert fold.kind == "layer_norm"
    name, step = site_of(state, "fc:input").quantize.name, site_of(state, "fc:input").step
    one, other = (
        noisy(with_choice(state, "fc:input", n=step, fold=way)).graph
        for way in ("layer_norm", "add")
    )
    x = tensor(50, TOKENS, DIM, seed=1)
    assert (codes(one, name, x) != codes(other, name, x)).float().mean() < 2e-3


@pytest.mark.parametrize(
    ("function", "channels", "other", "reason"),
    [
        (lambda y: y, DIM, lambda y: y * 2, "reads norm too"),
        (lambda y: y, DIM, lambda y: y, "reads norm too"),
        (lambda y: F.pad(y, (0, 0, 0, 2)), DIM, None, "zeros are padded in after the norm"),
        (lambda y: y.transpose(1, 2), TOKENS, None, "the channels of norm are not those"),
        (lambda y: y.reshape(-1, 3, 2 * DIM), 2 * DIM, None, "the channels of norm are not those"),
        (lambda y: torch.tanh(y), DIM, None, "no norm or V before it"),
    ],
)
def test_other_paths_from_a_norm_decline_and_get_an_addition(
    function: Any, channels: int, other: Any, reason: str
) -> None:
    model = made(lambda: Reading(function, other=other, channels=channels))
    state = quantized(model, tensor(8, TOKENS, DIM))
    fold = fold_at(state, "fc:input")
    assert fold.kind == "add"
    assert fold.free
    assert reason in fold.reason
    assert "one addition per value" in fold.reason


class PostNorm(nn.Module):
    """A norm behind each residual sum, which the next branch and the next sum read."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.attn, self.mlp = Attention(DIM, 2), Mlp(DIM, 2 * DIM)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attn(x))
        out: Tensor = self.norm2(x + self.mlp(x))
        return out


def test_the_norm_of_a_post_norm_block_is_not_touched() -> None:
    state = quantized(randomized(made(PostNorm)), tensor(8, TOKENS, DIM))
    fold = fold_at(state, "mlp.fc1:input")
    assert fold.kind == "add"
    assert "reads norm1 too" in fold.reason
    after = noisy(with_choice(state, "mlp.fc1:input", n=0.1))
    assert torch.equal(tensor_at(after.graph, "norm1.bias"), tensor_at(state.graph, "norm1.bias"))
    assert fold_at(state, "attn.proj:input").kind == "value_bias"


class PaddedWindows(Swin):
    """Windows of 3 x 3 over 4 x 4 tokens: zeros are padded in after the norm."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).permute(0, 2, 3, 1)
        batch, _, _, dim = x.shape
        padded = F.pad(self.norm(x), (0, 0, 0, 2, 0, 2))
        windows = padded.reshape(batch, 2, 3, 2, 3, dim).permute(0, 1, 3, 2, 4, 5)
        mixed = self.attn(windows.reshape(-1, 9, dim)).reshape(batch, 2, 2, 3, 3, dim)
        mixed = mixed.permute(0, 1, 3, 2, 4, 5).reshape(batch, 6, 6, dim)[:, :4, :4]
        out: Tensor = self.head(self.merge((x + mixed).repeat(1, 1, 1, 4)).mean((1, 2)))
        return out


def test_a_padded_swin_adds_its_noise_after_the_padding() -> None:
    state = quantized(made(PaddedWindows), images(8))
    fold = fold_at(state, "attn.qkv:input")
    assert fold.kind == "add"
    assert "zeros are padded in after the norm and would carry no noise" in fold.reason
    site = site_of(state, "attn.qkv:input")
    after = noisy(with_choice(state, "attn.qkv:input", n=site.step)).graph
    x = images(4, seed=1)
    added = calls(after, "aten.add")[0]
    assert added.meta["layer"] == "attn.qkv"
    zeros = codes(after, added.all_input_nodes[0].name, x) == 0
    noise_there = codes(after, added.name, x)[zeros.all(-1)]
    assert noise_there.shape[0] > 0
    torch.testing.assert_close(noise_there[0], tensor_at(after, "attn_qkv__noise"))


def test_opened_attention_folds_into_v_only_where_nothing_is_quantized_in_between() -> None:
    model = randomized(made(lambda: Block(DIM, 2 * DIM)))

    def opened(matmul: Scheme | None) -> State:
        pipeline = Pipeline((OpenAttention(), *steps(matmul=matmul)))
        return pipeline.run(start(model, tensor(8, TOKENS, DIM)))

    state = opened(None)
    assert fold_at(state, "attn.proj:input").kind == "value_bias"
    name = site_of(state, "attn.proj:input").quantize.name
    one, other = (
        noisy(with_choice(state, "attn.proj:input", n=0.02, fold=way)).graph
        for way in ("value_bias", "add")
    )
    x = tensor(20, TOKENS, DIM, seed=1)
    assert (codes(one, name, x) != codes(other, name, x)).float().mean() < 1e-3
    declined = fold_at(opened(Scheme.parse("a6/tensor/minmax")), "attn.proj:input")
    assert declined.kind == "add"
    assert "no longer sum to 1" in declined.reason


class Attended(nn.Module):
    """Fused attention with something unusual about it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.q, self.v, self.proj = (nn.Linear(DIM, DIM) for _ in range(3))
        self.register_buffer("mask", torch.ones(TOKENS, TOKENS, dtype=torch.bool))

    def forward(self, x: Tensor) -> Any:
        q, v = self.q(x)[:, None], self.v(x)[:, None]
        if self.kind == "key":
            mixed = F.scaled_dot_product_attention(q, v, v)
        elif self.kind == "mask":
            mixed = F.scaled_dot_product_attention(q, q, v, attn_mask=self.mask)
        elif self.kind == "activation":
            mixed = F.scaled_dot_product_attention(q, q, torch.tanh(v))
        else:
            mixed = F.scaled_dot_product_attention(q, q, v)
        out = self.proj(mixed[:, 0])
        return (out, v.sum()) if self.kind == "twice" else out


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("", "in V's bias, of v"),
        ("key", "reads V too"),
        ("twice", "reads V too"),
        ("mask", "masked throughout"),
        ("activation", "no linear makes V"),
    ],
)
def test_only_attention_may_read_v_and_its_rows_must_sum_to_one(kind: str, reason: str) -> None:
    state = quantized(made(lambda: Attended(kind)), tensor(8, TOKENS, DIM))
    fold = fold_at(state, "proj:input")
    assert fold.kind == ("add" if kind else "value_bias")
    assert reason in fold.reason


def test_bfloat16_attention_folds_too() -> None:
    state = block_state(scheme="a8/tensor/minmax")
    assert fold_at(state, "attn.proj:input").kind == "value_bias"
    model = randomized(made(lambda: Block(DIM, 2 * DIM)))
    pipeline = Pipeline(steps(attention="bfloat16"))
    cast = pipeline.run(start(model, tensor(8, TOKENS, DIM), bfloat16=True))
    assert calls(cast.graph, "aten.to.dtype")
    assert fold_at(cast, "attn.proj:input").kind == "value_bias"
    site = site_of(cast, "attn.proj:input")
    one, other = (
        noisy(with_choice(cast, "attn.proj:input", n=site.step, fold=way)).graph
        for way in ("value_bias", "add")
    )
    x = tensor(20, TOKENS, DIM, seed=1)
    steps_apart = (
        codes(one, site.quantize.name, x).int() - codes(other, site.quantize.name, x).int()
    )
    assert steps_apart.abs().max() <= 1
    assert (steps_apart != 0).float().mean() < 0.1


def test_an_addition_before_fc2_takes_a_kernel_apart_only_at_full_u8() -> None:
    model = randomized(made(lambda: Block(DIM, 2 * DIM)))
    eight = quantized(model, tensor(8, TOKENS, DIM), scheme="a8/tensor/minmax")
    fold = fold_at(eight, "mlp.fc2:input")
    assert (fold.kind, fold.free) == ("add", False)
    assert fold.reason.startswith(NOT_FREE)
    six = quantized(model, tensor(8, TOKENS, DIM), scheme="a6/tensor/minmax")
    assert fold_at(six, "mlp.fc2:input").free
    declined = noisy(eight, fold="free")
    choice = declined.plan.choice("noise", "mlp.fc2:input")
    assert choice is not None
    assert choice["declined"]
    assert choice["reason"].startswith(NOT_FREE)
    assert any(note.layer == "mlp.fc2" and NOT_FREE in note.text for note in declined.log)
    assert not any(n.target is ops.quantize_per_token for n in declined.graph.graph.nodes)
