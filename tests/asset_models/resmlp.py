"""ResMLP (https://arxiv.org/abs/2105.03404) for CIFAR-10, in the variant of its weights file.

It differs from the paper, and from timm, in three ways: each residual branch has its own affine
map, the channel MLP has no affine map before it, and the activation is ReLU. The weights were made
for power-of-two integer scales, so activations stay on the scale of int8 codes (about -128..127).
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Affine(nn.Module):
    """``weight * x + bias`` per channel: float [B, N, D] -> float [B, N, D]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        return x * self.weight + self.bias


class TokenMixer(nn.Module):
    """One linear layer over tokens, with its residual: float [B, N, D] -> float [B, N, D]."""

    def __init__(self, dim: int, tokens: int) -> None:
        super().__init__()
        self.affine_1 = Affine(dim)
        self.linear = nn.Linear(tokens, tokens)
        self.affine_2 = Affine(dim)
        self.res_affine = Affine(dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        mixed = self.linear(self.affine_1(x).transpose(1, 2)).transpose(1, 2)
        out: Tensor = self.res_affine(x) + self.affine_2(mixed)
        return out


class ChannelMlp(nn.Module):
    """Linear, ReLU, linear, with its residual: float [B, N, D] -> float [B, N, D]."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(dim, hidden)
        self.act = nn.ReLU()
        self.linear_2 = nn.Linear(hidden, dim)
        self.res_affine = Affine(dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        out: Tensor = self.res_affine(x) + self.linear_2(self.act(self.linear_1(x)))
        return out


class Block(nn.Module):
    """Token mixer, then channel MLP: float [B, N, D] -> float [B, N, D]."""

    def __init__(self, dim: int, hidden: int, tokens: int) -> None:
        super().__init__()
        self.token_mixer = TokenMixer(dim, tokens)
        self.mlp = ChannelMlp(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        out: Tensor = self.mlp(self.token_mixer(x))
        return out


class ResMlp(nn.Module):
    """ResMLP classifier: float32 [B, 3, 32, 32], normalised -> float32 [B, 10] logits."""

    def __init__(
        self,
        *,
        dim: int = 96,
        depth: int = 4,
        hidden: int = 192,
        image_size: int = 32,
        patch_size: int = 4,
        channels: int = 3,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.embed_linear = nn.Linear(channels * patch_size**2, dim)
        tokens = (image_size // patch_size) ** 2
        self.blocks = nn.Sequential(*(Block(dim, hidden, tokens) for _ in range(depth)))
        self.classifier_linear = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """float32 [B, 3, 32, 32] -> float32 [B, 10] logits."""
        p = self.patch_size
        batch, channels, height, width = x.shape[0], x.shape[1], x.shape[2], x.shape[3]
        x = x.reshape(batch, channels, height // p, p, width // p, p)
        # Channels last within a patch: the weights expect features in (row, column, channel) order.
        x = x.permute(0, 2, 4, 3, 5, 1)
        x = x.reshape(batch, (height // p) * (width // p), p * p * channels)
        x = self.blocks(self.embed_linear(x))
        logits: Tensor = self.classifier_linear(x.mean(dim=1))
        return logits


def module_keys(flat: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The file's keys (``blocks_0_mlp_linear_1.bias``) as module paths (``blocks.0.mlp.linear_1``).

    Shapes and dtypes are untouched.
    """
    pattern = re.compile(r"^blocks_(\d+)_(token_mixer|mlp)_")
    return {pattern.sub(r"blocks.\1.\2.", key): tensor for key, tensor in flat.items()}
