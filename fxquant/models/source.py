"""Models by name: ``timm:NAME``, ``torchvision:NAME`` or ``package.module:attribute``."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from torch import nn

from fxquant.capture.torchvision_ops import import_with_torchvision
from fxquant.errors import DependencyError, InputError


def load_model(spec: str, *, weights: Path | None = None, pretrained: bool = False) -> nn.Module:
    """The named model in eval mode.

    ``weights``: a ``.safetensors`` file with the model's own keys, loaded strictly. ``pretrained``:
    let timm or torchvision fetch their weights. Raises :class:`InputError` for a name that does
    not resolve and :class:`DependencyError` where the library is missing.
    """
    origin, colon, name = spec.partition(":")
    if not colon or not name:
        raise InputError(
            f"not a model: {spec!r}", fix="write timm:NAME, torchvision:NAME or module:attribute"
        )
    if weights is not None and pretrained:
        raise InputError("weights and pretrained exclude each other", where=spec)
    if origin == "timm":
        model = _timm(name, pretrained)
    elif origin == "torchvision":
        model = _torchvision(name, pretrained)
    else:
        model = _attribute(origin, name)
    if weights is not None:
        _load_weights(model, weights)
    return model.eval()


def _import(package: str) -> Any:
    try:
        return import_with_torchvision(package)
    except ImportError as error:
        raise DependencyError(
            f"{package} is not installed", why=str(error), fix="pip install 'fxquant[vision]'"
        ) from error


def _timm(name: str, pretrained: Any) -> nn.Module:
    timm = _import("timm")
    if name not in timm.list_models() and name.split(".")[0] not in timm.list_models():
        near = timm.list_models(f"*{name[:6]}*")[:3]
        raise InputError(f"timm has no model {name!r}", fix=f"for example {', '.join(near)}")
    model: nn.Module = timm.create_model(name, pretrained=pretrained)
    return model


def _torchvision(name: str, pretrained: Any) -> nn.Module:
    models = _import("torchvision.models")
    if name not in models.list_models():
        raise InputError(f"torchvision has no model {name!r}", fix="see torchvision.models")
    model: nn.Module = models.get_model(name, weights="DEFAULT" if pretrained else None)
    return model


def _attribute(module: str, name: str) -> nn.Module:
    try:
        value = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"cannot import {module}:{name}", why=str(error)) from error
    if not isinstance(value, nn.Module) and not callable(value):
        raise InputError(f"{module}:{name} is not a model", why=f"it is a {type(value).__name__}")
    model = value if isinstance(value, nn.Module) else value()
    if not isinstance(model, nn.Module):
        raise InputError(f"{module}:{name} is not a model", why=f"it is a {type(model).__name__}")
    return model


def _load_weights(model: nn.Module, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()
        raise InputError(
            "the weights do not load",
            where=str(path),
            why="; ".join(reason[:3]),
            fix="give a safetensors file with exactly the model's keys",
        ) from error
