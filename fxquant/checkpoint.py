"""Where a fine-tuning stands, in one safetensors file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fxquant.errors import InputError
from fxquant.staging import staged

_VERSION = "1"


@dataclass
class Progress:
    """``epochs`` done; ``start`` and ``best`` objective; ``best_state``: masters of the best epoch,
    empty while none was better than the start; ``history``: the objective after each epoch."""

    epochs: int = 0
    start: float = 0.0
    best: float = 0.0
    best_state: dict[str, Tensor] = field(default_factory=dict)
    history: list[float] = field(default_factory=list)

    @property
    def retreats(self) -> int:
        """How many epochs spoilt the model."""
        return sum(map(self.spoilt, self.history))

    def spoilt(self, objective: float) -> bool:
        """Whether an objective is twice that of the start: a noisy epoch may still come right."""
        return objective > 2.0 * self.start


def save(
    path: Path,
    run: dict[str, Any],
    progress: Progress,
    parameters: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write everything that goes on from here; the file is whole or not there."""
    tensors = {f"now.{name}": value for name, value in parameters.items()}
    tensors |= {f"best.{name}": value for name, value in progress.best_state.items()}
    for index, entry in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in entry.items()}
    figures = {
        "epochs": progress.epochs,
        "start": progress.start,
        "best": progress.best,
        "history": progress.history,
    }
    texts = {"run": json.dumps(run), "progress": json.dumps(figures), "version": _VERSION}
    held = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    with staged(path) as (target,):
        save_file(held, target, metadata=texts)


def load(
    path: Path,
    run: dict[str, Any],
    parameters: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> Progress:
    """Put parameters and optimizer back where the file has them; what was reached.

    :class:`InputError` where the file is of another run: another model, data or settings.
    """
    try:
        with safe_open(path, framework="pt") as file:
            texts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        figures, told = json.loads(texts["progress"]), json.loads(texts["run"])
        if texts["version"] != _VERSION:
            raise KeyError("version")
        progress = Progress(
            int(figures["epochs"]),
            float(figures["start"]),
            float(figures["best"]),
            _under(tensors, "best."),
            [float(v) for v in figures["history"]],
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            "this is no checkpoint of a fine-tuning",
            where=str(path),
            why=str(error),
            fix="name a file that fxquant.finetune wrote, or one that does not exist yet",
        ) from error
    now = _under(tensors, "now.")
    shapes = {name: value.shape for name, value in parameters.items()}
    differing = sorted(key for key in run if told.get(key) != run[key])
    if differing or {name: value.shape for name, value in now.items()} != shapes:
        raise InputError(
            "the checkpoint belongs to another fine-tuning",
            where=str(path),
            why=f"it differs in {', '.join(differing) or 'the tensors it holds'}",
            fix="call finetune as it was called then, or name another file",
        )
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(now[name])
    _restore(optimizer, _under(tensors, "optimizer."))
    return progress


def _under(tensors: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def _restore(optimizer: torch.optim.Optimizer, held: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in held.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    whole = optimizer.state_dict()
    optimizer.load_state_dict({**whole, "state": state})
