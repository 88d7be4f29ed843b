"""The 8x8 digits of scikit-learn in a fixed split: train, calibration (a part of train), held out.

scikit-learn carries the images in its own package, so nothing is downloaded.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fxquant.errors import DependencyError

TRAIN_COUNT = 1197
HELD_OUT_COUNT = 600
CALIBRATION_COUNT = 128
SPLIT_SEED = 0


@dataclass(frozen=True)
class DigitsSplit:
    """Images are float32 [N, 1, 8, 8] in 0..1, labels are int64 [N] in 0..9.

    The calibration images are the first 128 of the train images; no held-out image is among them.
    """

    train_images: Tensor
    train_labels: Tensor
    calibration_images: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor


def load_split() -> DigitsSplit:
    """1197 train images, 128 of them for calibration, and 600 held-out images; always the same."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DependencyError(
            "the digits data set needs scikit-learn",
            where="fxquant.quickstart.digits.load_split",
            why=f"importing sklearn.datasets failed: {error}",
            fix="pip install 'fxquant[quickstart]'",
        ) from error

    digits = load_digits()
    # Pixels are counts 0..16 of a 4x4 cell.
    images = torch.from_numpy(np.asarray(digits.images, dtype=np.float32) / np.float32(16))
    labels = torch.from_numpy(np.asarray(digits.target, dtype=np.int64))
    # The legacy generator, because numpy promises that its stream never changes.
    order = torch.from_numpy(np.random.RandomState(SPLIT_SEED).permutation(len(labels)))
    images, labels = images[order].unsqueeze(1), labels[order]
    held_out = slice(TRAIN_COUNT, TRAIN_COUNT + HELD_OUT_COUNT)
    return DigitsSplit(
        train_images=images[:TRAIN_COUNT],
        train_labels=labels[:TRAIN_COUNT],
        calibration_images=images[:CALIBRATION_COUNT],
        held_out_images=images[held_out],
        held_out_labels=labels[held_out],
    )
