"""A model in a file of its own, as a user has one, and the commands as they type them."""

from pathlib import Path

from typer.testing import CliRunner, Result

from fxquant.cli.main import app

MODULE = "fxquant_cli_tiny"
SPEC = f"{MODULE}:build"
CODE = """
import torch
from torch import nn


class Tiny(nn.Module):
    image_size = 32

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 8, 8)
        self.norm = nn.LayerNorm(32)
        self.fc1 = nn.Linear(32, 64)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(64, 32)
        self.head = nn.Linear(32, 16)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.fc2(self.act(self.fc1(self.norm(x))))
        return self.head(x.mean(1))


def build():
    torch.manual_seed(0)
    return Tiny()


def number():
    return 3
"""
CLASSES = (3, 5)


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeed(*arguments: str | Path) -> Result:
    result = invoke(*arguments)
    assert result.exit_code == 0, f"{result.output}{result.stderr}{result.exception}"
    return result


def contents(folder: Path) -> dict[str, bytes]:
    files = (
        path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in str(path)
    )
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
