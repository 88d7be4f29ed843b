"""Options that several commands take, and the text forms of their values."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fxquant.errors import InputError, RecipeError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fxquant.recipe import Recipe

MODEL = "timm:NAME, torchvision:NAME, or module:attribute of your own code"

Weights = Annotated[
    Path | None, typer.Option(help="A .safetensors file with the model's own keys.", metavar="FILE")
]
Pretrained = Annotated[
    bool, typer.Option("--pretrained", help="Let timm or torchvision fetch their weights.")
]
CalibrationFolder = Annotated[
    Path | None,
    typer.Option("--calibration", help="A folder of images to find ranges with.", metavar="DIR"),
]
Example = Annotated[
    str | None,
    typer.Option(help="Shape of one input, where the model does not say.", metavar="3,224,224"),
]


def named_model(spec: str, *, weights: Path | None = None, pretrained: object = False) -> nn.Module:
    """The model a command line names; ``module:attribute`` is looked for in this folder too."""
    from fxquant.models.source import load_model

    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    return load_model(spec, weights=weights, pretrained=bool(pretrained))


def example_input(shape: str | None) -> Tensor | None:
    """Zeros for ``3,224,224``; None where no shape is given."""
    if shape is None:
        return None
    import torch

    return torch.zeros(2, *numbers(shape, option="--example"))


def numbers(text: str, *, option: str) -> tuple[int, ...]:
    """Positive integers from ``1,16``."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise InputError(
            f"{text!r} is not a list of positive numbers",
            where=option,
            fix="separate them by commas, such as 1,16",
        )
    return tuple(int(part) for part in parts)


def overridden(recipe: str | None, overrides: list[str], *, calibrated: bool) -> Recipe | None:
    """The recipe with the overrides ``GLOB=SCHEME``; None for fxquant's own choice."""
    from fxquant.recipe import DYNAMIC
    from fxquant.recipe import recipe as find

    if not overrides:
        return None if recipe is None else find(recipe)
    made = find(recipe or ("w8a8" if calibrated else DYNAMIC))
    for text in overrides:
        sites, equals, scheme = text.rpartition("=")
        if not equals or not sites or not scheme:
            raise RecipeError(
                f"not an override: {text!r}",
                where="--override",
                fix="write GLOB=SCHEME, such as 'blocks.0.*=float'",
            )
        made = made.override(scheme.strip(), sites=sites.strip())
    return made
