"""What every bad input is made of: a case prepares, and returns the call that must be refused."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant.errors import FxquantError
from tests.backends.tiny import fingerprint, tensor

Call = Callable[[], object]


class Small(nn.Module):
    """Two linears over 16 features: captured in a fraction of a second."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Two(nn.Module):
    """Two named inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        out: Tensor = self.left(first) + self.right(second)
        return out


class Pixels(nn.Module):
    """Reads images of the size it names."""

    image_size = 8

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.patch(x).flatten(1)
        return out


def good(count: int = 8, *, seed: int = 0) -> Tensor:
    return tensor(count, 16, seed=seed)


@cache
def quantized_small() -> Any:
    torch.manual_seed(0)
    return fxquant.quantize(Small().eval(), calibration=good())


@cache
def lowered_small() -> Any:
    return fxquant.lower(quantized_small(), executor="eager")


@cache
def artifact_bytes() -> bytes:
    """The file of a lowered small model."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.fxq"
        lowered_small().save(path)
        return path.read_bytes()


def plan_json() -> Any:
    """A sound plan of the small model as plain data, to be spoilt."""
    return json.loads(json.dumps(quantized_small().plan.to_json()))


@dataclass
class Place:
    """A folder for the inputs of a case, and the models that must come out unchanged."""

    folder: Path
    models: list[nn.Module] = field(default_factory=list)

    def watch(self, model: Any) -> Any:
        """The model, which is compared after the call."""
        self.models.append(model)
        return model

    def model(self, build: Callable[[], nn.Module] = Small) -> nn.Module:
        """A sound model in eval mode."""
        torch.manual_seed(0)
        made: nn.Module = self.watch(build().eval())
        return made

    def file(self, content: bytes | str, name: str = "input") -> Path:
        """A file that is there before the call."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def contents(self) -> dict[str, str]:
        """Every file and folder with its hash."""
        return {
            str(p.relative_to(self.folder)): hashlib.sha256(
                p.read_bytes() if p.is_file() else b""
            ).hexdigest()
            for p in sorted(self.folder.rglob("*"))
        }

    def states(self) -> list[str]:
        """Fingerprints of the watched models, with their mode."""
        return [f"{model.training} {fingerprint(model)}" for model in self.models]

    def quantize(self, build: Callable[[], nn.Module] = Small, **options: Any) -> Call:
        """Quantizing a sound model with the given options."""
        model = self.model(build)
        return lambda: fxquant.quantize(model, **options)


@dataclass(frozen=True)
class Case:
    """``prepare`` returns the call; ``error`` is what it must raise."""

    name: str
    error: type[FxquantError]
    prepare: Callable[[Place], Call]


@dataclass
class Cases:
    """A table of cases, filled by decorators."""

    table: dict[str, Case] = field(default_factory=dict)

    def add(self, name: str, error: type[FxquantError], prepare: Callable[[Place], Call]) -> None:
        """Put one case in."""
        assert name not in self.table
        self.table[name] = Case(name, error, prepare)

    def __call__(self, name: str, error: type[FxquantError]) -> Callable[..., None]:
        """Decorator form of :meth:`add`."""

        def take(prepare: Callable[[Place], Call]) -> None:
            self.add(name, error, prepare)

        return take

    def family(
        self,
        error: type[FxquantError],
        variants: Iterable[tuple[str, Any]],
        prepare: Callable[[Place, Any], Call],
    ) -> None:
        """Several cases that differ in one value."""
        for name, value in variants:
            self.add(name, error, lambda place, value=value: prepare(place, value))
