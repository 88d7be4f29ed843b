"""Roles in and around attention, in every spelling."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.captured import inner_roles, roles_of
from tests.graph.models import (
    DIM,
    TOKENS,
    Classifier,
    EncoderBlock,
    FusedAttention,
    PreNormBlock,
    WrittenAttention,
)

REST = {
    "norm1": "layer_norm",
    "add": "residual_add",
    "norm2": "layer_norm",
    "mlp.fc1": "fc1",
    "mlp.act": "gelu",
    "mlp.fc2": "fc2",
    "add@2": "residual_add",
}
WRITTEN = {
    "attn.q": "qkv",
    "attn.k": "qkv",
    "attn.v": "qkv",
    "attn.matmul": "attention_qk",
    "attn.softmax": "softmax",
    "attn.matmul@2": "attention_av",
    "attn.proj": "proj",
}
TALKING = {"attn.before": "talking_heads", "attn.after": "talking_heads"}


def test_a_block_with_fused_attention() -> None:
    assert inner_roles(PreNormBlock(FusedAttention())) == REST | {
        "attn.qkv": "qkv",
        "attn.q_norm": "layer_norm",
        "attn.sdpa": "attention",
        "attn.proj": "proj",
    }


@pytest.mark.parametrize("extra", ["", "mask", "table"])
def test_attention_written_out(extra: str) -> None:
    block = PreNormBlock(WrittenAttention(extra))  # type: ignore[arg-type]
    assert inner_roles(block) == REST | WRITTEN


@pytest.mark.parametrize("extra", ["", "mask", "table"])
def test_attention_whose_heads_talk(extra: str) -> None:
    block = PreNormBlock(WrittenAttention(extra, talking=True))  # type: ignore[arg-type]
    assert inner_roles(block) == REST | WRITTEN | TALKING


def test_multihead_attention_as_torchvision_calls_it() -> None:
    roles = inner_roles(EncoderBlock())
    assert {k: v for k, v in roles.items() if k.startswith("self_attention")} == {
        "self_attention.in_proj": "qkv",
        "self_attention.sdpa": "attention",
        "self_attention.out_proj": "proj",
    }
    assert roles["mlp.fc1"] == "fc1"
    assert roles["mlp.fc2"] == "fc2"


class Spelled(WrittenAttention):
    """Attention with the scores between the products given as a function."""

    def __init__(self, between: Callable[[Spelled, Tensor], Tensor]) -> None:
        super().__init__(talking=True)
        self.between = between
        self.register_buffer("hidden", torch.ones(TOKENS, TOKENS).triu(1).bool())

    def mixed(self, linear: nn.Module, scores: Tensor) -> Tensor:
        out: Tensor = linear(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return out

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(self.q(x)), self.heads(self.k(x)), self.heads(self.v(x))
        scores = self.between(self, q @ k.transpose(-2, -1))
        out: Tensor = self.proj((scores @ v).transpose(1, 2).reshape(x.shape[0], TOKENS, DIM))
        return out


SCORES: dict[str, Callable[[Spelled, Tensor], Tensor]] = {
    "divided": lambda m, s: (s / 2.0).softmax(-1),
    "filled": lambda m, s: s.masked_fill(m.hidden, float("-inf")).softmax(-1),
    "shifted by its maximum": lambda m, s: (s - s.amax(-1, keepdim=True)).softmax(-1),
    "clamped": lambda m, s: s.clamp(max=50.0).softmax(-1),
    "functional": lambda m, s: F.softmax(s * 0.5 + m.mask, dim=3),
}


@pytest.mark.parametrize("name", sorted(SCORES))
def test_what_may_stand_between_the_products(name: str) -> None:
    roles = inner_roles(Spelled(SCORES[name]))
    assert roles == {k.removeprefix("attn."): v for k, v in WRITTEN.items()}


def test_a_mask_added_after_the_heads_talked() -> None:
    roles = inner_roles(Spelled(lambda m, s: (m.mixed(m.before, s) + m.mask).softmax(-1)))
    assert roles["before"] == "talking_heads"


def test_a_softmax_that_weighs_nothing_is_no_attention() -> None:
    class Probabilities(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(DIM, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(x * 2.0).softmax(-1)
            return out

    roles = roles_of(Probabilities())
    assert roles["softmax"] == "softmax"
    assert roles["head"] not in {"qkv", "proj", "talking_heads"}


def test_a_product_outside_attention_is_a_matmul() -> None:
    class Gram(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ x.transpose(1, 2)

    assert roles_of(Gram()) == {"matmul": "matmul"}


def test_cross_attention_names_both_sides() -> None:
    class Cross(WrittenAttention):
        def forward(self, x: Tensor) -> Tensor:
            y = x.flip(1)
            q, k, v = self.heads(self.q(x)), self.heads(self.k(y)), self.heads(self.v(y))
            mixed = F.scaled_dot_product_attention(q, k, v)
            out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
            return out

    assert inner_roles(Cross()) == {
        "q": "qkv",
        "k": "qkv",
        "v": "qkv",
        "sdpa": "attention",
        "proj": "proj",
    }


def test_rotated_queries_still_come_from_qkv() -> None:
    class Rotary(WrittenAttention):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.heads(self.q(x)), self.heads(self.k(x)), self.heads(self.v(x))
            angle = torch.arange(TOKENS)[:, None] / 10.0
            turned = torch.cat([-q[..., 2:], q[..., :2]], -1)
            q = q * angle.cos() + turned * angle.sin()
            mixed = F.scaled_dot_product_attention(q, k, v)
            out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
            return out

    roles = inner_roles(Rotary())
    assert [roles[name] for name in ("q", "k", "v", "proj")] == ["qkv", "qkv", "qkv", "proj"]


@pytest.mark.parametrize("convolution", [True, False])
def test_a_whole_classifier(*, convolution: bool) -> None:
    roles = roles_of(Classifier(convolution=convolution), 3, 8, 8)
    assert roles["embed"] == "patch_embed"
    assert roles["head"] == "head"
    assert list(roles.values()).count("residual_add") == 2
    assert {v for k, v in roles.items() if k.endswith("qkv")} == {"qkv"}
