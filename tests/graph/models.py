"""Tiny hand-written models in plain torch, one per shape of layer that roles are found for."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DIM, TOKENS, HEADS = 8, 6, 2


class Mlp(nn.Module):
    def __init__(self, dim: int = DIM, hidden: int = 2 * DIM) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class FusedAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.q_norm = nn.LayerNorm(DIM // HEADS)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        mixed = F.scaled_dot_product_attention(self.q_norm(q), k, v)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, dim))
        return out


class WrittenAttention(nn.Module):
    """matmul, scale, then as asked: mask or table added, heads mixed; softmax, matmul."""

    def __init__(self, extra: Literal["", "mask", "table"] = "", *, talking: bool = False) -> None:
        super().__init__()
        self.extra, self.talking = extra, talking
        self.q, self.k, self.v = (nn.Linear(DIM, DIM) for _ in range(3))
        self.proj = nn.Linear(DIM, DIM)
        self.register_buffer("mask", torch.full((TOKENS, TOKENS), -1e4).triu(1))
        self.table = nn.Parameter(torch.randn(HEADS, 5))
        self.register_buffer("index", torch.arange(TOKENS * TOKENS) % 5)
        if talking:
            self.before, self.after = nn.Linear(HEADS, HEADS), nn.Linear(HEADS, HEADS)

    def heads(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], TOKENS, HEADS, -1).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(self.q(x)), self.heads(self.k(x)), self.heads(self.v(x))
        scores = (q * (DIM // HEADS) ** -0.5) @ k.transpose(-2, -1)
        if self.extra == "mask":
            scores = scores + self.mask
        if self.extra == "table":
            scores = scores + self.table[:, self.index].reshape(HEADS, TOKENS, TOKENS)
        if self.talking:
            scores = self.before(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        scores = scores.softmax(-1)
        if self.talking:
            scores = self.after(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        out: Tensor = self.proj((scores @ v).transpose(1, 2).reshape(x.shape[0], TOKENS, DIM))
        return out


class PreNormBlock(nn.Module):
    """``x + attn(norm1(x))``, then ``x + mlp(norm2(x))``."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.attn, self.mlp = attention, Mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class EncoderBlock(nn.Module):
    """As in torchvision: ``nn.MultiheadAttention`` called with one tensor three times."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.self_attention = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
        self.mlp = Mlp()

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        y, _ = self.self_attention(y, y, y, need_weights=False)
        x = x + y
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class MixerBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.mlp_tokens, self.mlp_channels = Mlp(TOKENS, 10), Mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mlp_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        out: Tensor = x + self.mlp_channels(self.norm2(x))
        return out


class Affine(nn.Module):
    """As in timm with ``fused``, else as most others write it."""

    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        shape = (1, 1, DIM) if fused else (DIM,)
        self.alpha, self.beta = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            return torch.addcmul(self.beta, self.alpha, x)
        return self.alpha * x + self.beta


class ResMlpBlock(nn.Module):
    def __init__(self, *, fused: bool = True) -> None:
        super().__init__()
        self.norm1, self.norm2 = Affine(fused=fused), Affine(fused=fused)
        self.linear_tokens = nn.Linear(TOKENS, TOKENS)
        self.mlp_channels = Mlp()
        self.ls1 = nn.Parameter(torch.ones(DIM))

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.linear_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.ls1 * mixed
        out: Tensor = x + self.mlp_channels(self.norm2(x))
        return out


class GatingUnit(nn.Module):
    """gMLP: one half of the channels, mixed over tokens, gates the other."""

    def __init__(self, spelling: Literal["linear", "einsum", "matmul"] = "linear") -> None:
        super().__init__()
        self.spelling = spelling
        self.fc1, self.act, self.fc2 = nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(DIM, DIM)
        self.norm, self.proj = nn.LayerNorm(DIM), nn.Linear(TOKENS, TOKENS)

    def forward(self, x: Tensor) -> Tensor:
        kept, gate = self.act(self.fc1(x)).chunk(2, dim=-1)
        gate = self.norm(gate)
        if self.spelling == "linear":
            gate = self.proj(gate.transpose(-1, -2)).transpose(-1, -2)
        elif self.spelling == "einsum":
            gate = torch.einsum("bnd,mn->bmd", gate, self.proj.weight)
        else:
            gate = torch.matmul(self.proj.weight, gate)
        out: Tensor = self.fc2(kept * gate)
        return out


class Merging(nn.Module):
    """Swin's 2x2 neighbours side by side, by four slices or by a view."""

    def __init__(self, *, by_slices: bool, norm_first: bool = True) -> None:
        super().__init__()
        self.by_slices = by_slices
        self.norm = nn.LayerNorm(4 * DIM) if norm_first else nn.Identity()
        self.reduction = nn.Linear(4 * DIM, 2 * DIM, bias=False)
        self.fc = nn.Linear(2 * DIM, 2 * DIM)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        if self.by_slices:
            parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
            x = torch.cat(parts, -1)
        else:
            x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
            x = x.permute(0, 1, 3, 4, 2, 5).flatten(3)
        out: Tensor = F.gelu(self.fc(self.reduction(self.norm(x))))
        return out


class Classifier(nn.Module):
    """Patches by convolution or by a linear layer, a class token, a head."""

    def __init__(self, *, convolution: bool = True) -> None:
        super().__init__()
        self.convolution = convolution
        self.embed = nn.Conv2d(3, DIM, 4, 4) if convolution else nn.Linear(48, DIM)
        self.cls, self.pos = nn.Parameter(torch.zeros(1, 1, DIM)), nn.Parameter(torch.ones(5, DIM))
        self.block = PreNormBlock(FusedAttention())
        self.norm, self.head = nn.LayerNorm(DIM), nn.Linear(DIM, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.convolution:
            x = self.embed(x).flatten(2).transpose(1, 2)
        else:
            batch = x.shape[0]
            x = x.reshape(batch, 3, 2, 4, 2, 4).permute(0, 2, 4, 1, 3, 5).reshape(batch, 4, 48)
            x = self.embed(x)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.pos
        out: Tensor = self.head(self.norm(self.block(x))[:, 0])
        return out


def erf_written(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.erf(x / math.sqrt(2.0)))


def tanh_written(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def quick_written(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)
