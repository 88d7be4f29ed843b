"""Fused attention written out: the same function, named parts, and what stays fused and why."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant import Pipeline, State
from fxquant.graph.text import print_graph
from fxquant.passes import Annotate, OpenAttention
from tests.backends.tiny import Attention, Vit, images, made, tensor
from tests.graph.models import Classifier, EncoderBlock
from tests.graph.test_golden import compare, rounded
from tests.passes.running import calls, start

TOKENS, DIM, HEADS = 5, 16, 2


class Masked(nn.Module):
    """Attention with a mask of any sort, or none."""

    def __init__(self, mask: Tensor | None = None, **options: Any) -> None:
        super().__init__()
        self.options = options
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, self.mask, **self.options)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, DIM))
        return out


def opened(model: nn.Module, x: Tensor, step: OpenAttention | None = None, **target: Any) -> State:
    return Pipeline((Annotate(), step or OpenAttention())).run(start(model, x, **target))


def names(state: State) -> dict[str, str]:
    roles = {"attention", "attention_qk", "softmax", "attention_av", "qkv", "proj"}
    return {layer.name: layer.role for layer in state.layers if layer.role in roles}


SOME = torch.tensor(
    [[True] * 5, [True, False, True, False, True], *[[False, True] * 2 + [True]] * 3]
)
MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "scale": {"scale": 0.3},
    "causal": {"is_causal": True},
    "float": {"mask": tensor(TOKENS, TOKENS)},
    "float with -inf": {"mask": tensor(TOKENS, TOKENS).masked_fill(~SOME, -math.inf)},
    "boolean": {"mask": SOME},
    "boolean per head": {"mask": torch.stack((SOME, SOME.flip(1)))},
    "all": {"mask": SOME.flip(1), "scale": 2.0},
}


@pytest.mark.parametrize("kind", MASKS)
def test_attention_written_out_is_the_same_function(kind: str) -> None:
    model, x = made(lambda: Masked(**MASKS[kind])), tensor(4, TOKENS, DIM)
    state = opened(model, x)
    assert not calls(state.graph, "scaled_dot_product")
    assert state.graph is state.float_graph
    assert state.log == ()
    assert names(state) == {
        "qkv": "qkv",
        "qk": "attention_qk",
        "softmax": "softmax",
        "av": "attention_av",
        "proj": "proj",
    }
    for batch in (1, 4):
        y = tensor(batch, TOKENS, DIM, seed=batch)
        with torch.no_grad():
            torch.testing.assert_close(state.graph(y), model(y), rtol=1e-5, atol=1e-6)


def test_a_mask_that_depends_on_the_input_is_added() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q = nn.Linear(DIM, DIM)

        def forward(self, x: Tensor) -> Tensor:
            q = self.q(x)
            return F.scaled_dot_product_attention(q, q * 2.0, x, x @ x.transpose(1, 2))

    model, x = made(Own), tensor(4, TOKENS, DIM)
    state = opened(model, x)
    assert not calls(state.graph, "scaled_dot_product")
    with torch.no_grad():
        torch.testing.assert_close(state.graph(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("build", [lambda: Vit(32, 2), EncoderBlock])
def test_whole_models_stay_the_same_function(build: Any) -> None:
    model = made(build)
    x = images(4) if isinstance(model, Vit) else tensor(4, 6, 8)
    state = opened(model, x)
    assert not calls(state.graph, "scaled_dot_product")
    with torch.no_grad():
        torch.testing.assert_close(state.graph(x), model(x), rtol=1e-4, atol=1e-5)


def test_the_incoming_graph_and_its_tensors_are_left_alone() -> None:
    model, x = made(lambda: Masked(SOME)), tensor(4, TOKENS, DIM)
    state = start(model, x)
    before = print_graph(state.graph)
    Pipeline((Annotate(), OpenAttention())).run(state)
    assert print_graph(state.graph) == before
    assert torch.equal(model.mask, SOME)  # type: ignore[arg-type]


def test_the_parts_are_named_after_the_block() -> None:
    state = opened(made(lambda: Vit(32, 2)), images(2))
    assert names(state) == {
        f"blocks.{block}.attn.{part}": role
        for block in (0, 1)
        for part, role in {
            "qkv": "qkv",
            "qk": "attention_qk",
            "softmax": "softmax",
            "av": "attention_av",
            "proj": "proj",
        }.items()
    }


def test_names_that_are_taken_are_numbered_on() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qk, self.attn = nn.Linear(DIM, DIM), Attention(DIM, HEADS)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.attn(self.attn(x))
            return F.scaled_dot_product_attention(self.qk(out), out, out)

    state = opened(made(Twice), tensor(2, TOKENS, DIM))
    found = [layer.name for layer in state.layers]
    assert len(set(found)) == len(found)
    assert {"attn.qk", "attn.qk@2", "attn.av@2", "qk", "qk@2", "av"} <= set(found)


def test_only_the_layers_asked_for_are_opened_and_others_make_no_note() -> None:
    state = opened(made(lambda: Vit(32, 2)), images(2), OpenAttention(only="blocks.1.*"))
    assert names(state)["blocks.0.attn.sdpa"] == "attention"
    assert names(state)["blocks.1.attn.av"] == "attention_av"
    assert len(calls(state.graph, "scaled_dot_product")) == 1
    assert state.log == ()


NOTHING = torch.zeros(TOKENS, TOKENS, dtype=torch.bool)
DECLINES: dict[str, tuple[dict[str, Any], str]] = {
    "no keys": ({"mask": NOTHING}, "whole rows"),
    "no keys, float": ({"mask": NOTHING.float().masked_fill(~NOTHING, -math.inf)}, "whole rows"),
    "grouped": ({"enable_gqa": True}, "share keys"),
}


@pytest.mark.parametrize("kind", DECLINES)
def test_what_cannot_be_written_out_exactly_stays_fused_with_a_reason(kind: str) -> None:
    options, reason = DECLINES[kind]
    model, x = made(lambda: Masked(**options)), tensor(4, TOKENS, DIM)
    begun = start(model, x)
    state = Pipeline((Annotate(), OpenAttention())).run(begun)
    assert print_graph(state.graph) == print_graph(begun.graph)
    (note,) = state.log
    assert (note.source, note.layer) == ("open_attention", "sdpa")
    assert reason in note.text
    with torch.no_grad():
        assert torch.equal(state.graph(x), model(x))


def test_dropout_and_boolean_masks_made_on_the_way_stay_fused() -> None:
    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x, (x @ x.transpose(1, 2)) > -99.0)

    begun = start(made(Own), tensor(4, TOKENS, DIM))
    (note,) = Pipeline((Annotate(), OpenAttention())).run(begun).log
    assert "boolean mask is computed while the model runs" in note.text
    drawing = start(made(Masked), tensor(4, TOKENS, DIM))
    (node,) = calls(drawing.graph, "scaled_dot_product")
    node.args = (*node.args[:3], None, 0.1)
    state = OpenAttention().run(drawing)
    assert [note.text for note in state.log] == [
        "attention stays fused: dropout draws random numbers"
    ]


def test_a_target_without_products_keeps_attention_fused_unless_asked() -> None:
    model, x = made(Masked), tensor(4, TOKENS, DIM)
    state = opened(model, x, matmul=False)
    assert names(state)["sdpa"] == "attention"
    assert "test has no int8 kernel for products" in state.log[0].text
    state = opened(model, x, OpenAttention(simulate="ask"), matmul=False)
    assert "sdpa" not in names(state)


def test_the_pass_prints_its_options() -> None:
    steps = Pipeline((OpenAttention(), OpenAttention(only="blocks.*")))
    assert str(steps) == 'open_attention; open_attention{"only": "blocks.*"}'
    assert Pipeline.parse(str(steps), {"open_attention": OpenAttention}) == steps


def test_the_graph_prints_as_stored(*, update_golden: bool) -> None:
    torch.manual_seed(0)
    state = opened(Classifier().eval(), tensor(2, 3, 8, 8))
    compare("vit-open-attention", rounded(print_graph(state.graph)), update=update_golden)
