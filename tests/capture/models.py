"""Tiny models, one per thing that capture has to cope with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, symbolic_trace

from fxquant.capture import capture
from fxquant.capture.symbolic import trace

SHAPE = (3, 4)
Doors = dict[str, Callable[[nn.Module], nn.Module]]
DOORS: Doors = {"export": lambda m: m, "traced": trace, "symbolic_trace": symbolic_trace}


def tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch_of(count: int, seed: int = 0) -> Tensor:
    return tensor(count, *SHAPE, seed=seed)


def graph_of(model: nn.Module, example: Any = None, *, door: str = "export") -> GraphModule:
    return capture(DOORS[door](model.eval()), batch_of(2) if example is None else example)


class Function(nn.Module):
    """``function(self, x)`` with a linear, a dropout, a table and a matrix at hand."""

    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.linear, self.drop = nn.Linear(4, 4), nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(4)
        self.matrix = nn.Parameter(torch.randn(4, 4))
        self.register_buffer("table", torch.randn(4, 4))

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def in_place(m: Function, x: Tensor) -> Tensor:
    return F.relu(m.linear(x).add_(1.0), inplace=True).mul_(2.0)


def written_into(m: Function, x: Tensor) -> Tensor:
    y = m.linear(x).clone()
    y[:, 0] = 0.0
    y[:, 1:, 2] += 1.0
    return y


class Caller(nn.Module):
    """Runs one module twice and another that holds its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
        self.other.weight = self.block.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.other(self.block(self.block(x)))
        return out


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        return self.linear(image) * mask


class Nested(nn.Module):
    """Takes and returns structures."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, sample: dict[str, Any]) -> dict[str, Any]:
        y = self.linear(sample["image"]) + sample["more"][0]
        return {"logits": y, "parts": (y.sum(-1), [y.mean(-1)])}


class Encoder(nn.Module):
    """Position table, dropout, attention with a constant mask, in the usual module layout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.qkv, self.proj = nn.LayerNorm(4), nn.Linear(4, 12), nn.Linear(4, 4)
        self.drop = nn.Dropout(0.1)
        self.mlp = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Dropout(0.1), nn.Linear(8, 4))
        self.register_buffer("index", torch.arange(9).reshape(3, 3) % 5)
        self.table = nn.Parameter(torch.randn(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        y = self.qkv(self.norm(x)).view(batch, tokens, 3, 2, dim // 2).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.view(-1)].view(3, 3, 2).permute(2, 0, 1).contiguous()
        y = F.scaled_dot_product_attention(y[0], y[1], y[2], attn_mask=bias[None])
        x = x + self.drop(self.proj(y.transpose(1, 2).reshape(batch, tokens, dim)))
        return x + self.mlp(x)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: Function(lambda m, x: m.linear(x)),
    "residual": lambda: Function(lambda m, x: x + m.drop(m.linear(x))),
    "in place": lambda: Function(in_place),
    "constants": lambda: Function(lambda m, x: m.linear(x) + (m.table @ m.table.t()).sum(0)),
    "literal": lambda: Function(lambda m, x: m.linear(x) * torch.tensor([1.0, 2.0, 3.0, 4.0])),
    "range": lambda: Function(lambda m, x: m.linear(x) + torch.arange(4).float()),
    "batch norm": lambda: Function(lambda m, x: m.norm(m.linear(x).transpose(1, 2))),
    "products": lambda: Function(
        lambda m, x: (x @ m.matrix) + torch.einsum("bnd,kd->bnk", x, m.table)
    ),
    "reshapes": lambda: Function(lambda m, x: m.linear(x.view(x.shape[0], -1, 4)).flatten(1)),
    "wider arithmetic": lambda: Function(lambda m, x: m.linear(x).double().sum(-1).float()),
    "called twice": Caller,
    "encoder": Encoder,
}
