"""A folder of images as calibration batches."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from fxquant.errors import CalibrationError, DependencyError
from fxquant.models.example import Preprocessing

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})


class ImageFolder:
    """Iterable of float32 batches ``[B, 3, H, W]`` from all images below ``folder``.

    The order is shuffled, the same every time.

    ``preprocessing``: size, crop, mean and std of the model. Every iteration reads the files
    anew, so memory holds one batch. Needs pillow.
    """

    def __init__(
        self, folder: str | Path, preprocessing: Preprocessing, *, batch: int = 16, limit: int = 0
    ) -> None:
        self.folder = Path(folder)
        self.preprocessing = preprocessing
        self.batch = batch
        if not self.folder.is_dir():
            raise CalibrationError(
                "the calibration folder does not exist",
                where=str(folder),
                fix="pass a folder of images, a tensor, or a DataLoader",
            )
        found = (p for p in self.folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        self.files = sorted(found)
        # Folders are often sorted by class: the first few hundred files must not be one class.
        random.Random(0).shuffle(self.files)
        self.files = self.files[: limit or None]
        if not self.files:
            raise CalibrationError(
                "the calibration folder holds no images",
                where=str(folder),
                why=f"looked for {', '.join(sorted(SUFFIXES))} in it and below",
            )

    def __len__(self) -> int:
        return -(-len(self.files) // self.batch)

    def __iter__(self) -> Iterator[Tensor]:
        for start in range(0, len(self.files), self.batch):
            chosen = self.files[start : start + self.batch]
            yield torch.stack([load_image(path, self.preprocessing) for path in chosen])


def load_image(path: Path, preprocessing: Preprocessing) -> Tensor:
    """One image ``[3, H, W]`` float32: short side to size / crop, centre crop, normalised."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise DependencyError(
            "reading images needs pillow", fix="pip install 'fxquant[vision]'"
        ) from error
    height, width = preprocessing.size
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise CalibrationError(
            "an image cannot be read", where=str(path), why=str(error), fix="remove the file"
        ) from error
    scale = max(height, width) / preprocessing.crop / min(image.size)
    if scale < 1.0 or min(image.size) < max(height, width):
        size = (max(round(image.width * scale), width), max(round(image.height * scale), height))
        image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    cropped = image.crop((left, top, left + width, top + height))
    pixels = torch.frombuffer(bytearray(cropped.tobytes()), dtype=torch.uint8)
    values = pixels.reshape(height, width, 3).permute(2, 0, 1).to(torch.float32) / 255.0
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    return (values - mean) / std
