"""Calibration data that is missing, damaged, or made for another model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from fxquant.errors import CalibrationError, CaptureError, InputError
from tests.bad_inputs.place import Call, Cases, Pixels, Place, Two, good

CASES = Cases()


def with_data(place: Place, value: Any) -> Call:
    return place.quantize(calibration=value)


def poisoned(value: float) -> Tensor:
    data = good(1)
    data[0, 3] = value
    return data


CASES.family(
    CalibrationError,
    [
        ("data that is a number", 3),
        ("data that is True", True),
        ("data that is bytes", b"images"),
        ("data that is one dict", {"x": good()}),
        ("batches of None", [None, None]),
        ("an empty list of batches", []),
        ("an empty tuple of batches", ()),
        ("a generator of nothing", iter(())),
        ("an empty tensor", torch.zeros(0, 16)),
        ("a tensor without a batch axis", torch.tensor(1.0)),
        ("NaN in a tensor", poisoned(float("nan"))),
        ("infinity in a tensor", poisoned(float("inf"))),
        ("NaN in the first batch", [poisoned(float("nan")), good()]),
        ("infinity in the third batch", [good(), good(), poisoned(float("-inf"))]),
        ("a later batch of another width", [good(), torch.zeros(2, 17)]),
        ("a later batch of another rank", [good(), torch.zeros(2, 3, 16)]),
        ("a later batch of another type", [good(), good().half()]),
        ("a later batch that is empty", [good(), torch.zeros(0, 16)]),
        ("a later batch that is text", [good(), "images"]),
        ("a later batch that is None", [good(), None]),
    ],
    with_data,
)
CASES.family(
    InputError,
    [
        ("data in uint8", torch.zeros(4, 16, dtype=torch.uint8)),
        ("data in int64", torch.zeros(4, 16, dtype=torch.int64)),
        ("data in float64", good().double()),
        ("data in float16", good().half()),
        ("data in complex64", torch.zeros(4, 16, dtype=torch.complex64)),
        ("batches in float64", [good().double()]),
        ("batches of text", ["a", "b"]),
        ("batches of numbers", [1.0, 2.0]),
        ("batches that are empty", [torch.zeros(0, 16)]),
        ("pairs of labels only", [(torch.zeros(4, dtype=torch.int64), 1)]),
        ("data on the meta device", torch.zeros(4, 16, device="meta")),
    ],
    with_data,
)
CASES.family(
    CaptureError,
    [
        ("data of the wrong width", torch.zeros(4, 17)),
        ("a loader of the wrong width", DataLoader(TensorDataset(torch.zeros(4, 15)))),
        ("dict batches that name another input", [{"pixels": good()}]),
    ],
    with_data,
)
CASES.family(
    CalibrationError,
    [
        ("a width that is not the example's", torch.zeros(4, 17)),
        ("a data type that is not the example's", good().double()),
        ("a rank that is not the example's", torch.zeros(4, 2, 16)),
        ("text where batches should be", ["a", "b"]),
    ],
    lambda place, value: place.quantize(calibration=value, example=good(2)),
)
CASES.family(
    CalibrationError,
    [
        ("dict batches with a missing key", [{"first": good()}]),
        ("one input where the model takes two", [good()]),
        ("tuples of one input where it takes two", [(good(),)]),
        ("inputs that disagree on the batch size", [(good(4), good(3))]),
        ("labels where the second input should be", [(good(4), torch.zeros(4).long())]),
    ],
    lambda place, value: place.quantize(Two, calibration=value, example=(good(2), good(2))),
)
CASES.family(
    CalibrationError,
    [("a limit of no samples", 0), ("a negative limit", -1), ("a limit that is text", "many")],
    lambda place, value: place.quantize(calibration=good(), limit=value),
)


def picture(path: Path, *, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (12, 10)).save(path)


@CASES("a folder that does not exist", CalibrationError)
def _(place: Place) -> Call:
    return place.quantize(Pixels, calibration=place.folder / "nowhere")


@CASES("a folder named in text that does not exist", CalibrationError)
def _(place: Place) -> Call:
    return place.quantize(Pixels, calibration=str(place.folder / "nowhere"))


@CASES("a file in place of a folder", CalibrationError)
def _(place: Place) -> Call:
    return place.quantize(Pixels, calibration=place.file("pixels", "image.png"))


@CASES("an empty folder", CalibrationError)
def _(place: Place) -> Call:
    (place.folder / "images").mkdir()
    return place.quantize(Pixels, calibration=place.folder / "images")


@CASES("a folder of other files", CalibrationError)
def _(place: Place) -> Call:
    place.file("labels", "images/labels.csv")
    return place.quantize(Pixels, calibration=place.folder / "images")


@CASES("a corrupt image", CalibrationError)
def _(place: Place) -> Call:
    picture(place.folder / "images" / "a.png")
    place.file(b"not an image", "images/b.png")
    return place.quantize(Pixels, calibration=place.folder / "images")


@CASES("an image cut short", CalibrationError)
def _(place: Place) -> Call:
    picture(place.folder / "images" / "a.png")
    whole = (place.folder / "images" / "a.png").read_bytes()
    place.file(whole[: len(whole) // 2], "images/b.png")
    return place.quantize(Pixels, calibration=place.folder / "images")


@CASES("a corrupt image among later ones", CalibrationError)
def _(place: Place) -> Call:
    for number in range(20):
        picture(place.folder / "images" / f"{number:02d}.png")
    place.file(b"", "images/99.jpg")
    return place.quantize(Pixels, calibration=place.folder / "images")


@CASES("a folder of images for a model that reads none", CaptureError)
def _(place: Place) -> Call:
    picture(place.folder / "images" / "a.png")
    return place.quantize(calibration=place.folder / "images")
