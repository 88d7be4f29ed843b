"""How close int8 logits are to the float model's, on the same images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxquant.errors import InputError
from fxquant.quant.metrics import sqnr_db


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """Shares in percent. ``agreement``: images given the same class by both models."""

    images: int
    agreement: float
    sqnr_db: float
    float_top1: float | None = None
    int8_top1: float | None = None

    @property
    def drop(self) -> float | None:
        """Points of top-1 lost, negative where some were won."""
        if self.float_top1 is None or self.int8_top1 is None:
            return None
        return self.float_top1 - self.int8_top1


def compare(reference: Tensor, other: Tensor, labels: Tensor | None = None) -> Fidelity:
    """``reference``: float logits ``[N, classes]``; ``other``: int8 ones; ``labels``: ``[N]``."""
    same = reference.argmax(1) == other.argmax(1)
    return Fidelity(
        images=len(reference),
        agreement=100.0 * float(same.double().mean()),
        sqnr_db=sqnr_db(reference, other),
        float_top1=None if labels is None else top1(reference, labels),
        int8_top1=None if labels is None else top1(other, labels),
    )


def top1(logits: Tensor, labels: Tensor) -> float:
    """Share of images whose largest logit is the label's, in percent."""
    return 100.0 * float((logits.argmax(1) == labels).double().mean())


@torch.no_grad()
def logits_of(model: Callable[[Tensor], Any], images: Tensor, *, batch: int) -> Tensor:
    """Logits ``[N, classes]``. Every call gets exactly ``batch`` images, the last one repeats some,
    so that a compiled model is compiled once."""
    parts = []
    for part in images.split(batch):
        missing = batch - len(part)
        padding = part[:1].expand(missing, *part.shape[1:])
        logits = model(torch.cat([part, padding]) if missing else part)
        parts.append(checked(logits)[: len(part)])
    return torch.cat(parts)


def checked(logits: Any) -> Tensor:
    """The logits; raises :class:`InputError` where the model gives something else."""
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits)
        raise InputError(
            "the model gives no logits [batch, classes]",
            why=f"its output is {found}",
            fix="compare it in Python, with a distance that suits its outputs",
        )
    return logits
