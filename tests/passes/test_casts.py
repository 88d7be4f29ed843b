"""bf16 attention: where the casts go, and that moving data and casting it may be swapped."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.quant.metrics import sqnr_db
from tests.backends.tiny import Attention, made, tensor
from tests.passes.running import calls, plain, run

MOVES = {
    "reshape": lambda x: x.reshape(4, -1, 6),
    "permute": lambda x: x.permute(2, 0, 1),
    "transpose": lambda x: x.transpose(0, 2),
    "unbind": lambda x: x.unbind(1)[2],
    "chunk": lambda x: x.chunk(3, -1)[1],
    "select": lambda x: x.select(1, 0),
    "slice": lambda x: x[:, 1:],
    "expand": lambda x: x.unsqueeze(0).expand(2, -1, -1, -1),
    "roll": lambda x: x.roll(1, 0),
    "clone": torch.clone,
}


@pytest.mark.parametrize("name", MOVES)
def test_casting_before_moving_is_casting_after_it(name: str) -> None:
    x, move = tensor(4, 5, 12), MOVES[name]
    assert torch.equal(move(x).bfloat16(), move(x.bfloat16()))


def casts(graph: object, dtype: torch.dtype) -> list[torch.fx.Node]:
    return [n for n in calls(graph, "aten.to.dtype") if n.args[1] is dtype]  # type: ignore[arg-type]


def test_one_cast_right_after_the_projection_serves_query_key_and_value() -> None:
    state = run(made(lambda: Attention(16, 2)), tensor(4, 5, 16), bfloat16=True)
    (cast,) = casts(state.graph, torch.bfloat16)
    assert cast.args[0].meta["layer"] == "qkv"
    assert str(cast.args[0].target) == "aten.linear.default"
    (attention,) = calls(state.graph, "scaled_dot_product")
    assert all(a.meta["val"].dtype is torch.bfloat16 for a in attention.args[:3])
    (back,) = casts(state.graph, torch.float32)
    assert back.args[0] is attention
    assert state.plan["sdpa:input"].compute == "bfloat16"


def test_separate_projections_get_a_cast_each() -> None:
    state = run(made(lambda: Attention(16, 2, separate=True)), tensor(4, 5, 16), bfloat16=True)
    found = casts(state.graph, torch.bfloat16)
    assert {cast.args[0].meta["layer"] for cast in found} == {"q", "k", "v"}


def test_a_target_without_bf16_gets_no_cast_and_the_plan_says_so() -> None:
    state = run(made(lambda: Attention(16, 2)), tensor(4, 5, 16), bfloat16=False)
    assert not calls(state.graph, "aten.to.dtype")
    decision = state.plan["sdpa:input"]
    assert decision.compute == "float32"
    assert "no native bf16" in decision.reason


def test_a_recipe_may_keep_attention_in_float32() -> None:
    recipe = plain().override("float", role="attention")
    state = run(made(lambda: Attention(16, 2)), tensor(4, 5, 16), recipe.pipeline, bfloat16=True)
    assert not calls(state.graph, "aten.to.dtype")


def test_only_attention_is_computed_in_bf16() -> None:
    """The cast graph equals the uncast one with bf16 operands put in by hand, bit for bit."""
    model, x = made(lambda: Attention(16, 2)), tensor(4, 5, 16)
    recipe = plain().override("float").override("bfloat16", role="attention")
    state = run(model, x, recipe.pipeline, bfloat16=True)
    with torch.no_grad():
        qkv = model.qkv(x).reshape(4, 5, 3, 2, 8).permute(2, 0, 3, 1, 4)  # type: ignore[operator]
        q, k, v = (t.bfloat16() for t in qkv.unbind(0))
        mixed = F.scaled_dot_product_attention(q, k, v).float().transpose(1, 2)
        expected = model.proj(mixed.reshape(4, 5, 16))  # type: ignore[operator]
        assert torch.equal(state.graph(x), expected)
        assert sqnr_db(model(x), expected) > 40.0


class Between(nn.Module):
    """Attention whose query is also read by something else, and that has a float mask."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(16, 16), nn.Linear(16, 32)
        self.norm = nn.LayerNorm(8)
        self.mask = nn.Parameter(torch.randn(5, 5))

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x)
        k, v = self.kv(x).chunk(2, -1)
        q2, k, v = (t.reshape(-1, 5, 2, 8).transpose(1, 2) for t in (q, k, v))
        mixed = F.scaled_dot_product_attention(self.norm(q2), k, v, attn_mask=self.mask)
        return mixed.transpose(1, 2).reshape(-1, 5, 16) + q


def test_a_tensor_with_other_readers_is_cast_only_for_attention() -> None:
    model, x = made(Between), tensor(4, 5, 16)
    state = run(model, x, bfloat16=True)
    (attention,) = calls(state.graph, "scaled_dot_product")
    assert all(a.meta["val"].dtype is torch.bfloat16 for a in attention.all_input_nodes)
    (add,) = [n for n in calls(state.graph, "aten.add.Tensor") if n.meta["val"].dim() == 3]
    assert all(a.meta["val"].dtype is torch.float32 for a in add.all_input_nodes)
    with torch.no_grad():
        assert sqnr_db(model(x), state.graph(x)) > 30.0


def test_a_projection_read_by_attention_and_by_an_addition_stays_float32() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            q = self.q(x)
            return F.scaled_dot_product_attention(q, x, x) + q

    model, x = made(Both), tensor(4, 5, 16)
    state = run(model, x, bfloat16=True)
    for cast in casts(state.graph, torch.bfloat16):
        assert set(cast.users) <= set(calls(state.graph, "scaled_dot_product"))
    with torch.no_grad():
        assert state.graph(x).dtype is torch.float32
        assert sqnr_db(model(x), state.graph(x)) > 30.0
