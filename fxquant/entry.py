"""What a finished model takes at its door, put into the pipeline that makes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

from fxquant.errors import InputError
from fxquant.passes.exact_input import ExactInput
from fxquant.passes.raw_pixels import RawPixels
from fxquant.pipeline.pipeline import Pipeline
from fxquant.quant.pixels import grid_of

Entry = Literal["float32", "uint8"]
Normalization = tuple[Sequence[float] | float, Sequence[float] | float]


def with_entry(steps: Pipeline, normalization: Normalization | None, entry: Entry) -> Pipeline:
    """``steps`` with a lossless first quantizer where one is asked for.

    ``normalization``: ``(mean, std)`` goes into the pass ``exact_input``, which is put after
    ``annotate`` where the pipeline has none. ``entry="uint8"`` adds ``exact_input`` too, which
    then finds the normalization in the data, and ends the pipeline with ``raw_pixels``.
    """
    if entry not in get_args(Entry):
        raise InputError(
            f"unknown entry {entry!r}", where="argument entry", fix="use 'float32' or 'uint8'"
        )
    names = [step.name for step in steps.passes]
    if normalization is not None or entry == "uint8":
        mean, std = ((), ()) if normalization is None else _checked(normalization)
        if ExactInput.name not in names:
            made = ExactInput(mean=mean, std=std)
            front = "annotate" in names
            steps = steps.after("annotate", made) if front else Pipeline((made, *steps.passes))
        elif normalization is not None:
            held = steps[ExactInput.name]
            assert isinstance(held, ExactInput)
            steps = steps.replace(ExactInput.name, replace(held, mean=mean, std=std))
    if entry == "uint8" and RawPixels.name not in names:
        steps = Pipeline((*steps.passes, RawPixels()))
    return steps


def _checked(normalization: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """``(mean, std)`` as tuples of floats; single numbers are for images of one channel."""
    try:
        mean, std = normalization
        ends = [mean, std]
        ends = [[end] if isinstance(end, (int, float)) else list(end) for end in ends]
        first, second = (tuple(float(value) for value in end) for end in ends)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{normalization!r} is no (mean, std)",
            where="argument input_normalization",
            fix="pass for example ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))",
        ) from error
    grid_of(first, second)
    return first, second
