"""The input shape of a finished model."""

from __future__ import annotations

from typing import Any

from fxquant.errors import InputError
from fxquant.graph.shapes import shape_of


def input_shape(made: Any) -> tuple[int, ...]:
    """Shape of one input of a loaded or lowered model, without the batch axis."""
    graph = getattr(made, "reference", made).graph
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        raise InputError(
            f"the model takes {len(inputs)} inputs, not one",
            fix="run it in Python, with fxquant.load",
        )
    return shape_of(inputs[0])[1:]
