"""Example inputs and preprocessing read off a model's own configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxquant.errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """``(image / 255 - mean) / std`` at ``size`` pixels, cropped to ``crop`` of the short side."""

    size: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop: float = 0.875


def preprocessing_of(model: nn.Module) -> Preprocessing | None:
    """timm's ``pretrained_cfg`` or torchvision's ``image_size``; None where there is neither."""
    config: Any = getattr(model, "pretrained_cfg", None)
    if isinstance(config, dict) and config.get("input_size"):
        _, height, width = config["input_size"]
        return Preprocessing(
            size=(int(height), int(width)),
            mean=tuple(config.get("mean", IMAGENET_MEAN)),
            std=tuple(config.get("std", IMAGENET_STD)),
            crop=float(config.get("crop_pct") or 0.875),
        )
    size = getattr(model, "image_size", None)
    if isinstance(size, int):
        return Preprocessing(size=(size, size))
    return None


def example_for(model: nn.Module) -> Tensor:
    """A float32 batch ``[2, channels, H, W]`` of the size the model itself names.

    Raises :class:`InputError` that names the argument where the model does not say.
    """
    config: Any = getattr(model, "pretrained_cfg", None)
    if isinstance(config, dict) and config.get("input_size"):
        return torch.zeros(2, *(int(n) for n in config["input_size"]))
    size = getattr(model, "image_size", None)
    if isinstance(size, int):
        return torch.zeros(2, 3, size, size)
    raise InputError(
        "the input shape is unknown",
        where="argument example",
        why="there is no calibration data, and the model has no pretrained_cfg or image_size",
        fix="pass example=torch.zeros(1, 3, 224, 224) of your model's shape, or calibration data",
    )
