"""A folder to work in, which all tests of the commands share."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.cli.tiny import CLASSES, CODE, MODULE, SPEC, succeed


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder: a model, images by class, an artifact and its report."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / f"{MODULE}.py").write_text(CODE, encoding="utf-8")
    generator = torch.Generator().manual_seed(0)
    for index in CLASSES:
        (folder / "images" / str(index)).mkdir(parents=True)
        for number in range(4):
            pixels = torch.randint(0, 256, (40, 36, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / "images" / str(index) / f"{number}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [*sys.path])
        patch.setattr("fxquant.timing.baseline_is_fair", lambda: True)
        compiled = ["compile", SPEC, "--calibration", "images"]
        succeed(*compiled, "--out", "x86.fxq", "--report", "x86.html")
        succeed(*compiled, "--backend", "reference", "--out", "ref.fxq")
        yield folder
    sys.modules.pop(MODULE, None)
