"""Models that cannot be quantized, and examples that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fxquant
from fxquant.errors import (
    BackendError,
    CalibrationError,
    CaptureError,
    InputError,
    UnsupportedOpError,
)
from tests.bad_inputs.place import (
    Call,
    Cases,
    Place,
    Small,
    Two,
    good,
    lowered_small,
    quantized_small,
)

CASES = Cases()


@torch.library.custom_op("fxquant_tests::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    return x * 2


@doubled.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Around(Small):
    """The small model with one line more."""

    def __init__(self, line: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.line = line

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(self.line(x))
        return out


def branches(x: Tensor) -> Tensor:
    return x if bool(x.sum() > 0) else -x


def loops(x: Tensor) -> Tensor:
    for _ in range(int(x.abs().sum())):
        x = x + 1
    return x


def raises(x: Tensor) -> Tensor:
    raise RuntimeError("the model's own complaint")


LINES: list[tuple[str, Any]] = [
    ("a model that branches on data", (CaptureError, branches)),
    ("a model that loops as often as data says", (CaptureError, loops)),
    ("a model that goes through numpy", (CaptureError, lambda x: torch.tensor(x.numpy()))),
    ("a model that raises", (CaptureError, raises)),
    ("a model with a shape error", (CaptureError, lambda x: x @ x)),
    ("a model whose result has a data-dependent size", (CaptureError, lambda x: x[x > 0])),
    ("a model with an FFT", (UnsupportedOpError, lambda x: torch.fft.fft(x, dim=-1).real)),
    ("a model with an operator of its own", (UnsupportedOpError, doubled)),
    ("a model that draws random numbers", (UnsupportedOpError, lambda x: x + torch.rand(16))),
    ("a model with dropout left on", (UnsupportedOpError, lambda x: torch.dropout(x, 0.5, True))),
    ("a model that fixes the batch size", (CaptureError, lambda x: x.reshape(2, 16))),
]
for label, (kind, line) in LINES:
    CASES.family(
        kind,
        [(label, line)],
        lambda place, value: place.quantize(lambda: Around(value), calibration=good(2)),
    )


def not_a_model(place: Place, value: Any) -> Call:
    return lambda: fxquant.quantize(value, calibration=good())


CASES.family(
    CaptureError,
    [
        ("None as a model", None),
        ("a path as a model", "model.pt"),
        ("a state_dict as a model", Small().state_dict()),
        ("a function as a model", branches),
        ("a class in place of its instance", Small),
        ("a tensor as a model", good()),
    ],
    not_a_model,
)


def spoilt(place: Place, spoil: Callable[[nn.Module], Any]) -> Call:
    model = Small().eval()
    spoil(model)
    if not any(p.is_meta for p in model.parameters()):
        place.watch(model)
    return lambda: fxquant.quantize(model, calibration=good())


def half_of_it(model: nn.Module) -> None:
    model.fc2.half()


def one_part_trains(model: nn.Module) -> None:
    model.fc2.train()


CASES.family(
    CaptureError,
    [
        ("a model in training mode", nn.Module.train),
        ("a model of which one part trains", one_part_trains),
        ("a model in half precision", nn.Module.half),
        ("a model of which one part is half", half_of_it),
        ("a model in bfloat16", nn.Module.bfloat16),
        ("a model in double precision", nn.Module.double),
        ("a model on the meta device", lambda model: model.to("meta")),
    ],
    spoilt,
)


@CASES("a model whose weight holds NaN", CalibrationError)
def _(place: Place) -> Call:
    model = place.model()
    with torch.no_grad():
        model.fc2.weight[0, 0] = float("nan")  # type: ignore[union-attr,index]
    return lambda: fxquant.quantize(model, calibration=good())


@CASES("a model whose activations overflow", CalibrationError)
def _(place: Place) -> Call:
    return place.quantize(lambda: Around(lambda x: x * 3e38 * 3e38), calibration=good())


@CASES("a model without weights", BackendError)
def _(place: Place) -> Call:
    activation = place.watch(nn.Sequential(nn.GELU()).eval())
    return lambda: fxquant.compile(activation, calibration=good(), executor="eager")


@CASES("an already quantized model", CaptureError)
def _(place: Place) -> Call:
    return lambda: fxquant.quantize(quantized_small(), calibration=good())


@CASES("an already lowered model", CaptureError)
def _(place: Place) -> Call:
    return lambda: fxquant.quantize(lowered_small(), calibration=good())


CASES.family(
    InputError,
    [
        ("running on an image too wide", (torch.zeros(2, 17),)),
        ("running on another rank", (torch.zeros(2, 3, 16),)),
        ("running on integers", (torch.zeros(2, 16, dtype=torch.int64),)),
        ("running on doubles", (good().double(),)),
        ("running on an input too many", (good(), good())),
        ("running on text", ("image",)),
        ("running on nothing", ()),
    ],
    lambda place, value: lambda: lowered_small()(*value),
)


def with_example(place: Place, value: Any) -> Call:
    return place.quantize(example=value, recipe="w8a8-dynamic")


CASES.family(
    InputError,
    [
        ("an example that is text", "images"),
        ("an example that is a number", 3.5),
        ("an example without a tensor", (None, 2)),
        ("an example that is an empty tuple", ()),
        ("an example that is an empty dict", {}),
        ("an example in double precision", good().double()),
        ("an example of integers", torch.ones(2, 16, dtype=torch.int64)),
        ("an example without a batch axis", torch.tensor(1.0)),
        ("an example of no samples", torch.zeros(0, 16)),
        ("an example on the meta device", torch.zeros(2, 16, device="meta")),
    ],
    with_example,
)
CASES.family(
    CaptureError,
    [
        ("an example of the wrong width", torch.zeros(2, 17)),
        ("an example with an input too many", (good(), good())),
        ("an example that names another input", {"images": good()}),
    ],
    with_example,
)
CASES.family(
    InputError,
    [("an example whose inputs disagree on the batch", (good(2), good(3)))],
    lambda place, value: place.quantize(Two, example=value, recipe="w8a8-dynamic"),
)
CASES.family(
    CaptureError,
    [("an example with an input too few", (good(2),))],
    lambda place, value: place.quantize(Two, example=value, recipe="w8a8-dynamic"),
)


@CASES("neither data nor an example", InputError)
def _(place: Place) -> Call:
    return place.quantize()


@CASES("a model without inputs", CaptureError)
def _(place: Place) -> Call:
    class Constant(Small):
        def forward(self) -> Tensor:  # type: ignore[override]
            return super().forward(torch.ones(1, 16))

    return place.quantize(Constant, calibration=good())
