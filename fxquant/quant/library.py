"""The ``fxquant`` operator namespace.

All its operators are composite: fake tensors, autograd and Inductor see plain ATen inside.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

library = torch.library.Library("fxquant", "DEF")


def _digest() -> str:
    """Of the sources of this package, which hold what the operators do."""
    sources = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]


# Inductor's cache on disk knows an operator by its name alone: without this, a changed one would
# go on with the code that was compiled from the old one.
torch.compiler.config.cache_key_tag += f"fxquant {_digest()};"


def define(schema: str, function: Callable[..., Any]) -> Any:
    """Make ``function`` the operator of a schema such as ``f(Tensor x) -> Tensor``."""
    library.define(schema)
    name = schema.partition("(")[0]
    library.impl(name, function, "CompositeImplicitAutograd")
    return getattr(torch.ops.fxquant, name).default


def define_both(
    name: str, operand: str, form: str, function: Callable[..., Tensor]
) -> tuple[Any, Any]:
    """Make ``function`` two operators, ``name`` with a number for a scale and ``name_per_head``
    with a tensor ``[H]``; ``operand`` is what comes before the scale, ``form`` what comes after."""
    kinds = {name: "float", f"{name}_per_head": "Tensor"}
    one, heads = (
        define(f"{key}(Tensor {operand}, {kind} scale, {form}) -> Tensor", function)
        for key, kind in kinds.items()
    )
    return one, heads
