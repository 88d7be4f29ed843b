"""gMLP (https://arxiv.org/abs/2105.08050) for MNIST, in the module layout of its weights file.

Parameters are named as in the file (``layers.0.fn.fn.proj_in.0.weight``), so it loads strictly.
Unlike timm's gMLP the spatial projection is a bare [1, N, N] parameter used from the left.
"""

from typing import Literal

import torch
from torch import Tensor, nn

Spatial = Literal["einsum", "matmul"]


class PatchRows(nn.Module):
    """Patches row by row, features in (channel, row, column) order.

    float [B, C, H, W] -> float [B, H/p * W/p, C * p * p].
    """

    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, N, C * p * p]."""
        p = self.patch_size
        batch, channels, height, width = x.shape[0], x.shape[1], x.shape[2], x.shape[3]
        x = x.reshape(batch, channels, height // p, p, width // p, p).permute(0, 2, 4, 1, 3, 5)
        return x.reshape(batch, (height // p) * (width // p), channels * p * p)


class TokenMean(nn.Module):
    """Mean over tokens: float [B, N, D] -> float [B, D]."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, D]."""
        return x.mean(dim=1)


class SpatialGatingUnit(nn.Module):
    """The second half of the channels, mixed over tokens, gates the first half.

    float [B, N, F] -> float [B, N, F/2].
    """

    def __init__(self, channels: int, tokens: int, *, spatial: Spatial) -> None:
        super().__init__()
        self.spatial = spatial
        self.norm = nn.LayerNorm(channels // 2)
        self.weight = nn.Parameter(torch.zeros(1, tokens, tokens))
        self.bias = nn.Parameter(torch.ones(1, tokens))

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, F] -> [B, N, F/2]."""
        kept, gate = x.chunk(2, dim=-1)
        gate = self.norm(gate)
        if self.spatial == "einsum":
            # One head, as the reference implementation writes it.
            gate = torch.einsum("bhnd,hmn->bhmd", gate.unsqueeze(1), self.weight).squeeze(1)
        else:
            gate = torch.matmul(self.weight, gate)
        return (gate + self.bias.unsqueeze(-1)) * kept


class GatedBlock(nn.Module):
    """Projection, ReLU, spatial gating, projection: float [B, N, D] -> float [B, N, D]."""

    def __init__(self, dim: int, hidden: int, tokens: int, *, spatial: Spatial) -> None:
        super().__init__()
        self.proj_in = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU())
        self.sgu = SpatialGatingUnit(hidden, tokens, spatial=spatial)
        self.proj_out = nn.Linear(hidden // 2, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        out: Tensor = self.proj_out(self.sgu(self.proj_in(x)))
        return out


class PreNorm(nn.Module):
    """LayerNorm, then ``fn``: float [B, N, D] -> float [B, N, D]."""

    def __init__(self, dim: int, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        out: Tensor = self.fn(self.norm(x))
        return out


class Residual(nn.Module):
    """``fn(x) + x``: float [B, N, D] -> float [B, N, D]."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        out: Tensor = self.fn(x) + x
        return out


class GMlp(nn.Module):
    """gMLP classifier: float32 [B, 1, 28, 28], normalised -> float32 [B, 10] logits.

    ``spatial`` picks how the token mixing is written, not what it computes.
    """

    def __init__(
        self,
        *,
        dim: int = 128,
        depth: int = 3,
        hidden: int = 256,
        image_size: int = 28,
        patch_size: int = 4,
        channels: int = 1,
        num_classes: int = 10,
        spatial: Spatial = "einsum",
    ) -> None:
        super().__init__()
        tokens = (image_size // patch_size) ** 2
        self.to_patch_embed = nn.Sequential(
            PatchRows(patch_size), nn.Linear(channels * patch_size**2, dim)
        )
        self.layers = nn.Sequential(
            *(
                Residual(PreNorm(dim, GatedBlock(dim, hidden, tokens, spatial=spatial)))
                for _ in range(depth)
            )
        )
        self.to_logits = nn.Sequential(nn.LayerNorm(dim), TokenMean(), nn.Linear(dim, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """float32 [B, 1, 28, 28] -> float32 [B, 10] logits."""
        logits: Tensor = self.to_logits(self.layers(self.to_patch_embed(x)))
        return logits
