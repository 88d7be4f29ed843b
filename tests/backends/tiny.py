"""Small models in plain torch with every kind of layer that lowering treats on its own."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant

SIDE = 16  # images are 3 x 16 x 16, patches 4 x 4: 16 tokens


def tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def images(count: int, *, side: int = SIDE, seed: int = 0) -> Tensor:
    return tensor(count, 3, side, side, seed=seed)


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int, *, relu: bool = False, tanh: bool = False) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.act = nn.ReLU() if relu else nn.GELU(approximate="tanh" if tanh else "none")

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class Attention(nn.Module):
    """Fused attention over one joint projection, or over three separate ones."""

    def __init__(self, dim: int, heads: int, *, separate: bool = False) -> None:
        super().__init__()
        self.heads, self.separate = heads, separate
        if separate:
            self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))
        else:
            self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        if self.separate:
            joint = [f(x).reshape(batch, tokens, self.heads, -1) for f in (self.q, self.k, self.v)]
            q, k, v = (t.transpose(1, 2) for t in joint)
        else:
            qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1)
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        out: Tensor = self.proj(mixed.reshape(batch, tokens, dim))
        return out


class Block(nn.Module):
    def __init__(self, dim: int, hidden: int, *, separate: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.mlp = Attention(dim, 2, separate=separate), Mlp(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Vit(nn.Module):
    def __init__(
        self, dim: int = 32, depth: int = 2, *, side: int = SIDE, separate: bool = False
    ) -> None:
        super().__init__()
        tokens = (side // 4) ** 2 + 1
        self.patch = nn.Conv2d(3, dim, 4, 4)
        self.cls = nn.Parameter(torch.randn(1, 1, dim))
        self.pos = nn.Parameter(torch.randn(1, tokens, dim))
        self.blocks = nn.Sequential(
            *(Block(dim, 2 * dim + 1, separate=separate) for _ in range(depth))
        )
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 17)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.pos
        out: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return out


class Mixer(nn.Module):
    """Token mixing by an MLP over the transposed tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 24, 4, 4)
        self.norm1, self.norm2 = nn.LayerNorm(24), nn.LayerNorm(24)
        self.tokens, self.channels = Mlp(16, 20), Mlp(24, 40, tanh=True)
        self.head = nn.Linear(24, 17)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norm2(x))
        out: Tensor = self.head(x.mean(1))
        return out


class ResMlp(nn.Module):
    """Affine maps for norms, one linear over tokens, ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 24, 4, 4)
        self.alpha, self.beta = nn.Parameter(torch.rand(24) + 0.5), nn.Parameter(torch.randn(24))
        self.mix, self.mlp = nn.Linear(16, 16), Mlp(24, 48, relu=True)
        self.gamma, self.head = nn.Parameter(torch.rand(24)), nn.Linear(24, 17)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        affine = x * self.alpha + self.beta
        x = x + self.gamma * self.mix(affine.transpose(1, 2)).transpose(1, 2)
        x = x + self.gamma * self.mlp(x * self.alpha + self.beta)
        out: Tensor = self.head(x.mean(1))
        return out


class Gmlp(nn.Module):
    """Half of the channels gate the other half, after mixing over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 24, 4, 4)
        self.norm, self.inner_norm = nn.LayerNorm(24), nn.LayerNorm(24)
        self.fc1, self.fc2 = nn.Linear(24, 48), nn.Linear(24, 24)
        self.spatial, self.head = nn.Linear(16, 16), nn.Linear(24, 17)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        u, v = F.gelu(self.fc1(self.norm(x))).chunk(2, -1)
        v = self.spatial(self.inner_norm(v).transpose(1, 2)).transpose(1, 2)
        out: Tensor = self.head((x + self.fc2(u * v)).mean(1))
        return out


class Swin(nn.Module):
    """Shifted windows of 2 x 2 and patch merging."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 24, 4, 4)
        self.norm, self.attn, self.mlp = nn.LayerNorm(24), Attention(24, 2), Mlp(24, 48)
        self.merge, self.head = nn.Linear(96, 32, bias=False), nn.Linear(32, 17)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).permute(0, 2, 3, 1)
        batch, _, _, dim = x.shape
        rolled = torch.roll(self.norm(x), (-1, -1), (1, 2))
        windows = rolled.reshape(batch, 2, 2, 2, 2, dim).permute(0, 1, 3, 2, 4, 5)
        mixed = self.attn(windows.reshape(-1, 4, dim)).reshape(batch, 2, 2, 2, 2, dim)
        mixed = mixed.permute(0, 1, 3, 2, 4, 5).reshape(batch, 4, 4, dim)
        x = x + torch.roll(mixed, (1, 1), (1, 2))
        x = x + self.mlp(x)
        x = x.reshape(batch, 2, 2, 2, 2, dim).permute(0, 1, 3, 4, 2, 5).flatten(3)
        out: Tensor = self.head(self.merge(x).mean((1, 2)))
        return out


class OddVit(Vit):
    """No size is a multiple of anything: 25 patches, 34 channels."""

    def __init__(self) -> None:
        super().__init__(34, 1, side=20)


class SeparateVit(Vit):
    def __init__(self) -> None:
        super().__init__(32, 1, separate=True)


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "vit": (Vit, SIDE),
    "vit with odd sizes": (OddVit, 20),
    "vit with separate q, k, v": (SeparateVit, SIDE),
    "mixer": (Mixer, SIDE),
    "resmlp": (ResMlp, SIDE),
    "gmlp": (Gmlp, SIDE),
    "swin": (Swin, SIDE),
}


def made(build: Callable[[], nn.Module], *, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build().eval()


def fingerprint(module: nn.Module) -> str:
    """A hash of every name and every byte of a module's tensors."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@cache
def shared(name: str) -> tuple[nn.Module, Any]:
    """A float model and its W8A8 quantization, made once and never changed by a test."""
    build, side = MODELS[name]
    model = made(build)
    return model, fxquant.quantize(model, calibration=images(8, side=side))


@cache
def shared_lowered(name: str) -> Any:
    return fxquant.lower(shared(name)[1], executor="eager")


def quantized(name: str = "vit") -> Any:
    """A quantized model of a test's own."""
    return copy.deepcopy(shared(name)[1])


def vit(depth: int = 1) -> nn.Module:
    """A float ViT of a test's own."""
    return made(lambda: Vit(depth=depth))
