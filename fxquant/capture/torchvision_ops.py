"""Mends torchvision under a CPU build of torch.

torchvision's registry wheel is compiled against CUDA. Under a CPU torch its extension does not
load, and ``import torchvision`` (so also ``import timm``) raises "operator torchvision::nms does
not exist". Declaring the two missing schemas first is enough for every vision model; the
detection operators themselves stay unavailable. Call this before importing timm or torchvision.
"""

from __future__ import annotations

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_libraries: list[torch.library.Library] = []  # a Library's declarations die with the object


def declare_missing_ops() -> None:
    """Declare ``torchvision::nms`` and ``qnms`` where nothing has declared them. Idempotent."""
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(name + _SCHEMA)
            _libraries.append(library)
