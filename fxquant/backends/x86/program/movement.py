"""Operators that move elements, run on indices."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fxquant.backends.x86.program.scores import Scores
from fxquant.backends.x86.program.values import Codes, Unsupported, View


def moved(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The operator's result: other views of the same source, or a tuple of them."""
    first = args[0]
    if isinstance(first, (tuple, list)):  # getitem of what unbind, chunk or a quantizer gave
        return target(*args, **kwargs)
    if isinstance(first, Scores):
        return first.reshaped(target(first.numbered(), *args[1:], **kwargs))
    if not isinstance(first, (View, Codes)):
        raise Unsupported(f"{target} of {type(first).__name__.lower()}")
    view = first if isinstance(first, View) else first.view
    made = target(view.index, *args[1:], **kwargs)
    if isinstance(made, Tensor):
        return _kept(first, made)
    return tuple(_kept(first, part) for part in made)


def _kept(value: View | Codes, index: Tensor) -> View | Codes:
    made = value.moved(index)
    if isinstance(made, View) and isinstance(value, View) and value.shared:
        return View(made.source, made.index, made.factor, shared=True)
    return made
