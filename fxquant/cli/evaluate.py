"""``fxquant evaluate``: top-1 of an artifact, and its distance to the float model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fxquant.cli.console import output
from fxquant.cli.labels import labelled_files
from fxquant.cli.options import MODEL, Pretrained, Weights, named_model
from fxquant.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fxquant.models.example import Preprocessing


def evaluate(
    artifact: Annotated[Path, typer.Argument(help="A .fxq file.", metavar="X.fxq")],
    *,
    images: Annotated[Path, typer.Option(help="A folder of images.", metavar="DIR")],
    labels: Annotated[
        Path | None,
        typer.Option(
            help="A csv file,label. Without it labels.csv in DIR, or a subfolder per class index.",
            metavar="labels.csv",
        ),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help=f"The float model: {MODEL}.", metavar="timm:NAME")
    ] = None,
    weights: Weights = None,
    pretrained: Pretrained = False,
    mean: Annotated[
        str | None, typer.Option(help="Default: the float model's, else ImageNet's.")
    ] = None,
    std: Annotated[str | None, typer.Option(help="As --mean.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images per call.")] = 16,
    executor: Annotated[
        str, typer.Option(help="native, inductor (compiles first) or eager.")
    ] = "native",
) -> None:
    """Measure an artifact on labelled images, against the float model, or both."""
    import fxquant

    files, classes = labelled_files(images, labels)
    if classes is None and against is None:
        raise InputError(
            "there is nothing to compare with",
            where=str(images),
            why="no labels.csv, no subfolders named by class index, and no float model",
            fix="pass --labels labels.csv, or --against timm:NAME",
        )
    made = fxquant.load(artifact, executor=executor)  # type: ignore[arg-type]
    model = (
        None if against is None else named_model(against, weights=weights, pretrained=pretrained)
    )
    preprocessing = _preprocessing(made, model, mean=mean, std=std)
    found = _measured(made, model, files, classes, preprocessing, batch=batch)
    _show(found, preprocessing)


def _preprocessing(
    made: Any, model: nn.Module | None, *, mean: str | None, std: str | None
) -> Preprocessing:
    """The float model's, at the artifact's input size; ``mean`` and ``std`` go before it."""
    from dataclasses import replace

    from fxquant.cli.shapes import input_shape
    from fxquant.models.example import Preprocessing, preprocessing_of

    shape = input_shape(made)
    if len(shape) != 3 or shape[0] != 3:
        raise InputError(
            "the artifact does not take images of 3 channels",
            why=f"its input is {shape}",
            fix="evaluate it in Python, with fxquant.load",
        )
    found = (None if model is None else preprocessing_of(model)) or Preprocessing()
    found = replace(found, size=(shape[1], shape[2]))
    if mean is not None:
        found = replace(found, mean=_three(mean, "--mean"))
    if std is not None:
        found = replace(found, std=_three(std, "--std"))
    return found


def _three(text: str, option: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 3:
        raise InputError(f"{text!r} is not three numbers", where=option, fix="write 0.5,0.5,0.5")
    return values


def _measured(
    made: Any,
    model: nn.Module | None,
    files: list[Path],
    classes: list[int] | None,
    preprocessing: Preprocessing,
    *,
    batch: int,
) -> dict[str, str]:
    """Both models on the same batches; memory holds one batch of images."""
    import torch

    from fxquant.fidelity import compare, logits_of, top1
    from fxquant.models.images import load_image

    ours: list[Tensor] = []
    theirs: list[Tensor] = []
    for start in range(0, len(files), batch):
        chosen = files[start : start + batch]
        x = torch.stack([load_image(path, preprocessing) for path in chosen])
        ours.append(logits_of(made, x, batch=batch))
        if model is not None:
            theirs.append(logits_of(model, x, batch=batch))
    logits = torch.cat(ours)
    labels = None if classes is None else torch.tensor(classes)
    if labels is not None and int(labels.max()) >= logits.shape[1]:
        raise InputError(f"label {int(labels.max())} is beyond the {logits.shape[1]} classes")
    rows = {"images": str(len(files))}
    if not theirs:
        assert labels is not None
        return rows | {"int8 top-1": f"{top1(logits, labels):.2f} %"}
    found = compare(torch.cat(theirs), logits, labels)
    if found.drop is not None:
        rows["float top-1"] = f"{found.float_top1:.2f} %"
        rows["int8 top-1"] = f"{found.int8_top1:.2f} % ({0 - found.drop:+.2f} points)"
    rows["same class as float"] = f"{found.agreement:.2f} %"
    rows["SQNR of the logits"] = f"{found.sqnr_db:.1f} dB"
    return rows


def _show(rows: dict[str, str], preprocessing: Preprocessing) -> None:
    from rich.table import Table

    height, width = preprocessing.size
    used = f"{height}x{width}, crop {preprocessing.crop:g}, mean {preprocessing.mean}"
    table = Table.grid(padding=(0, 2))
    for name, value in (rows | {"preprocessing": f"{used}, std {preprocessing.std}"}).items():
        table.add_row(name, value)
    output().print(table)
