"""Adding an operator whose decomposition is the function itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fxquant.quant.library import library


def register(schema: str, function: Callable[..., Any]) -> Any:
    """Define ``fxquant::schema``, carried out by ``function`` on any device; the new overload.

    Composite: fake tensors, export and Inductor see the ATen operators that ``function`` calls.
    """
    library.define(schema)
    name = schema.partition("(")[0]
    library.impl(name, function, "CompositeImplicitAutograd")
    return getattr(torch.ops.fxquant, name).default
