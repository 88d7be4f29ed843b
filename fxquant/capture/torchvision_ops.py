"""Mends torchvision under a CPU build of torch.

torchvision's registry wheel is compiled against CUDA. Under a CPU torch its extension does not
load, and ``import torchvision`` (so also ``import timm``) raises "operator torchvision::nms does
not exist". Declaring the two missing schemas is enough for every vision model; the detection
operators themselves stay unavailable.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_libraries: list[torch.library.Library] = []  # a Library's declarations die with the object


def declare_missing_ops() -> None:
    """Declare ``torchvision::nms`` and ``qnms`` where nothing has declared them. Idempotent.

    Only where torchvision's own extension does not load: it would declare them a second time.
    """
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(name + _SCHEMA)
            _libraries.append(library)


def import_with_torchvision(package: str) -> ModuleType:
    """Import a package that imports torchvision, mended where it has to be.

    A sound installation is imported as it is; only the one failure that the mismatch causes is
    answered by :func:`declare_missing_ops` and a second try.
    """
    try:
        return importlib.import_module(package)
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [n for n in sys.modules if n.split(".")[0] in {"torchvision", package}]:
        del sys.modules[name]
    declare_missing_ops()
    return importlib.import_module(package)
