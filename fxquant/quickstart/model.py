"""A small pre-norm vision transformer for the 8x8 digits of scikit-learn.

The module names follow timm (``blocks.0.attn.qkv``, ``blocks.0.mlp.fc1``, ...), so that a recipe
written for this model reads like one for a full-sized vision transformer.
"""

from importlib import resources

import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor, nn

WEIGHTS_FILE = "digits_vit.safetensors"

IMAGE_SIZE = 8
PATCH_SIZE = 2
NUM_CLASSES = 10


class Attention(nn.Module):
    """Multi-head self-attention: float [B, N, D] -> float [B, N, D]."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim={dim} is not a multiple of num_heads={num_heads}")
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        batch, tokens, dim = x.shape[0], x.shape[1], self.num_heads * self.head_dim
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, N, head_dim]
        mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, dim))
        return out


class Mlp(nn.Module):
    """Two linear layers with GELU between them: float [B, N, D] -> float [B, N, D]."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class Block(nn.Module):
    """Pre-norm transformer block: float [B, N, D] -> float [B, N, D]."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, mlp_ratio * dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class PatchEmbed(nn.Module):
    """Non-overlapping patches: float [B, 1, 8, 8] -> float [B, 16, D]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, dim, kernel_size=PATCH_SIZE, stride=PATCH_SIZE)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1, 8, 8] -> [B, 16, D], patches row by row."""
        out: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return out


class DigitsViT(nn.Module):
    """Vision transformer for 8x8 digits: float32 [B, 1, 8, 8] in 0..1 -> float32 [B, 10] logits.

    The defaults (about 202k parameters, 17 tokens) are those of the packaged weights.
    """

    def __init__(
        self, *, dim: int = 64, depth: int = 4, num_heads: int = 4, mlp_ratio: int = 4
    ) -> None:
        super().__init__()
        patches = (IMAGE_SIZE // PATCH_SIZE) ** 2
        self.patch_embed = PatchEmbed(dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, patches + 1, dim))
        self.blocks = nn.Sequential(*(Block(dim, num_heads, mlp_ratio) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, NUM_CLASSES)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        # The usual ViT deviation of 0.02 is too small at this width: training starts late.
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.pos_embed, std=0.2)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """float32 [B, 1, 8, 8] in 0..1 -> float32 [B, 10] logits."""
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        x = self.norm(self.blocks(x))
        logits: Tensor = self.head(x[:, 0])
        return logits


def load_digits_vit() -> DigitsViT:
    """The trained model that ships with the package, in eval mode."""
    packaged = resources.files("fxquant.quickstart").joinpath(WEIGHTS_FILE)
    model = DigitsViT()
    model.load_state_dict(load(packaged.read_bytes()))
    return model.eval()
