"""Loaders of the real weights and images, which are not part of the checkout.

They are looked for in the folder that the environment variable ``FXQUANT_ASSETS`` names, else in
``../shared/assets`` beside the checkout.
"""

import csv
import gzip
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from fxquant.capture.torchvision_ops import import_with_torchvision

from .gmlp import GMlp, Spatial
from .resmlp import ResMlp, module_keys

ASSETS_VARIABLE = "FXQUANT_ASSETS"
DEFAULT_ASSETS = Path(__file__).resolve().parents[2].parent / "shared" / "assets"

CALIBRATION_FOLDER = "imagenet1k_sample_256"
EVALUATION_FOLDER = "imagenet_val650_227"
EVALUATION_COUNT = 650
IMAGENET_CROP = 224

DEIT_TINY_MEAN, DEIT_TINY_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VIT_TINY_MEAN, VIT_TINY_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
MNIST_MEAN, MNIST_STD = 0.1307, 0.3081
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
RESMLP_INPUT_SCALE = 128 / 2.18

# Float top-1 in percent, on the 650 evaluation images and on the two full test sets.
DEIT_TINY_TOP1 = 82.31
VIT_TINY_TOP1 = 82.00
GMLP_TOP1 = 99.50
RESMLP_TOP1 = 80.79


def wanted_dir() -> Path:
    """The folder the assets are looked for in, whether or not it exists."""
    named = os.environ.get(ASSETS_VARIABLE)
    return Path(named) if named else DEFAULT_ASSETS


def assets_dir() -> Path | None:
    """The folder with the assets, or None where there is none."""
    folder = wanted_dir()
    return folder if folder.is_dir() else None


def missing_reason() -> str:
    """Why a test that needs the assets is skipped."""
    source = ASSETS_VARIABLE if os.environ.get(ASSETS_VARIABLE) else f"{ASSETS_VARIABLE} is not set"
    return f"no assets in {wanted_dir()} ({source})"


def _require(relative: str) -> Path:
    folder = assets_dir()
    if folder is None:
        raise FileNotFoundError(missing_reason())
    return folder / relative


def load_gmlp(*, spatial: Spatial = "einsum") -> GMlp:
    """The MNIST gMLP in eval mode; ``spatial`` picks the spelling of its token mixing."""
    model = GMlp(spatial=spatial)
    model.load_state_dict(load_file(_require("gmlp_mnist/gmlp_vision_d128_l3_p4.safetensors")))
    return model.eval()


def load_resmlp() -> ResMlp:
    """The CIFAR-10 ResMLP in eval mode, with its float weights."""
    model = ResMlp()
    flat = load_file(_require("resmlp_cifar10/resmlp4_96_h_mul_2_dequant.safetensors"))
    model.load_state_dict(module_keys(flat))
    return model.eval()


def _load_timm(name: str, relative: str) -> nn.Module:
    timm = import_with_torchvision("timm")

    model: nn.Module = timm.create_model(name)
    model.load_state_dict(load_file(_require(relative)))
    return model.eval()


def load_deit_tiny() -> nn.Module:
    """timm's DeiT-Tiny in eval mode; normalise its input by ``DEIT_TINY_MEAN`` and ``_STD``."""
    return _load_timm("deit_tiny_patch16_224", "deit_tiny_patch16_224/model.safetensors")


def load_vit_tiny() -> nn.Module:
    """timm's ViT-Tiny (AugReg) in eval mode; normalise by ``VIT_TINY_MEAN`` and ``_STD``."""
    folder = "vit_tiny_patch16_224_augreg_in21k_ft_in1k"
    return _load_timm("vit_tiny_patch16_224", f"{folder}/model.safetensors")


def gmlp_test_set(n: int) -> tuple[Tensor, Tensor]:
    """The first n (of 10000) MNIST test images, normalised: float32 [n, 1, 28, 28], int64 [n]."""
    folder = _require("gmlp_mnist")
    # IDX format: a header of 16 bytes before the pixels, of 8 before the labels.
    pixels = gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())
    marks = gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes())
    images = np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 1, 28, 28)[:n]
    labels = np.frombuffer(marks, np.uint8, offset=8)[:n]
    x = torch.from_numpy(images.astype(np.float32)).div_(255)
    return x.sub_(MNIST_MEAN).div_(MNIST_STD), torch.from_numpy(labels.astype(np.int64))


def resmlp_test_set(n: int) -> tuple[Tensor, Tensor]:
    """The first n (of 10000) CIFAR-10 test images: float32 [n, 3, 32, 32], int64 [n].

    Normalised and brought to the scale of int8 codes, which the weights expect. Classes are
    interleaved 0..9, so the first n are balanced.
    """
    with np.load(_require("cifar10_jpeg/test.npz")) as archive:
        packed, offsets = archive["bytes"], archive["offsets"]
        labels = torch.from_numpy(archive["labels"][:n].astype(np.int64))
    files = [packed[offsets[i] : offsets[i + 1]].tobytes() for i in range(len(labels))]
    pixels = np.stack([_rgb(io.BytesIO(jpeg)) for jpeg in files])
    x = _normalised(pixels, CIFAR10_MEAN, CIFAR10_STD)
    return x.mul_(RESMLP_INPUT_SCALE), labels


def imagenet_images(
    folder_name: str, count: int, mean: Sequence[float], std: Sequence[float], *, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Centre crops of 224, normalised: float32 [N, 3, 224, 224] and int64 [N], N <= count.

    Calibration images are drawn at random by ``seed``, since their file is sorted by class.
    Evaluation images come in the order of their file, whatever the seed.
    """
    folder = _require(folder_name)
    with (folder / "labels.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    if folder_name == CALIBRATION_FOLDER:
        rows = [rows[i] for i in np.random.RandomState(seed).permutation(len(rows))[:count]]
    else:
        rows = rows[:count]
    pixels = np.stack([_rgb(folder / row["file"], crop=IMAGENET_CROP) for row in rows])
    labels = torch.tensor([int(row["label"]) for row in rows], dtype=torch.int64)
    return _normalised(pixels, mean, std), labels


def _rgb(source: Path | io.BytesIO, *, crop: int | None = None) -> NDArray[np.uint8]:
    """A decoded image, uint8 [H, W, 3], or its centre square of side ``crop``."""
    with Image.open(source) as opened:
        image = opened.convert("RGB")
    if crop is not None:
        left, top = (image.width - crop) // 2, (image.height - crop) // 2
        image = image.crop((left, top, left + crop, top + crop))
    return np.asarray(image)


def _normalised(
    pixels: NDArray[np.uint8],
    mean: Sequence[float],
    std: Sequence[float],
) -> Tensor:
    """uint8 [N, H, W, 3] -> float32 [N, 3, H, W], ``(pixels / 255 - mean) / std``."""
    # Contiguous before the arithmetic, in place during it: 650 crops are 390 MB.
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float().div_(255)
    return x.sub_(torch.tensor(mean).view(1, 3, 1, 1)).div_(torch.tensor(std).view(1, 3, 1, 1))
