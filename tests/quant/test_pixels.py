"""The grid of normalised 8-bit images: found where there is one, refused where there is doubt."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxquant.errors import InputError, SchemeError
from fxquant.quant.observers import make_observer
from fxquant.quant.pixels import PixelGrid, find_grid, grid_of
from fxquant.quant.scheme import Scheme
from fxquant.quant.uniform import fake_quantize, quantize

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pixels(count: int = 4, *, channels: int = 3, seed: int = 0) -> Tensor:
    """Random images uint8 ``[N, C, 16, 16]`` in which every channel shows 0, 1 and 255."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.randint(0, 256, (count, channels, 16, 16), generator=generator, dtype=torch.uint8)
    p[0, :, 0, :3] = torch.tensor([0, 1, 255], dtype=torch.uint8)
    return p


def normalised(p: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    shape = (-1, 1, 1)
    return (p / 255 - torch.tensor(mean).reshape(shape)) / torch.tensor(std).reshape(shape)


NUMBER = st.floats(-2.0, 2.0, width=32)
POSITIVE = st.floats(2**-7, 8.0, width=32)


@given(st.lists(st.tuples(NUMBER, POSITIVE), min_size=1, max_size=4), st.integers(0, 99))
def test_the_grid_of_any_normalisation_is_found_and_gives_the_pixels_back(
    parameters: list[tuple[float, float]], seed: int
) -> None:
    mean, std = zip(*parameters, strict=True)
    p = pixels(channels=len(mean), seed=seed)
    x = normalised(p, mean, std)
    for grid in (find_grid([x]), grid_of(mean, std)):
        assert isinstance(grid, PixelGrid)
        steps = grid.pixels(x)
        assert float((steps - p).abs().max()) < 2e-3
        scheme = Scheme.parse(f"a8/tensor/pixels@{grid.zero_point}")
        qparams = make_observer(scheme).qparams(scheme)
        assert (float(qparams.scale), int(qparams.zero_point)) == (1.0, grid.zero_point)
        centred = steps.to(torch.float32) - grid.zero_point
        assert torch.equal(quantize(centred, qparams), p)
        assert torch.equal(fake_quantize(centred, qparams), p.float() - grid.zero_point)


def test_the_zero_point_is_the_pixel_that_normalises_to_about_zero() -> None:
    assert grid_of(MEAN, STD).zero_point == 114
    assert grid_of((0.5,), (0.5,)).zero_point == 128
    assert grid_of((0.0, 0.0), (1.0, 1.0)).zero_point == 0
    assert grid_of((-3.0,), (1.0,)).zero_point == 0
    assert grid_of((9.0,), (1.0,)).zero_point == 255


def test_later_batches_complete_what_the_first_do_not_show() -> None:
    p = pixels(3)
    dark = p // 2
    for batches in ([dark, p], [p, dark]):
        assert isinstance(find_grid([normalised(b, MEAN, STD) for b in batches]), PixelGrid)
    assert isinstance(find_grid([normalised(dark, MEAN, STD)]), str)


def resized(x: Tensor) -> Tensor:
    return torch.nn.functional.interpolate(x, scale_factor=0.75, mode="bilinear")


DECLINED: dict[str, tuple[Tensor, str]] = {
    "noise": (torch.randn(4, 3, 32, 32), "not 8-bit"),
    "resized after normalisation": (resized(normalised(pixels(), MEAN, STD)), "lies on no grid"),
    "never 0": (normalised(pixels().clamp(min=3), MEAN, STD), "never at 0 or 255"),
    "never 255": (normalised(pixels().clamp(max=201), MEAN, STD), "never at 0 or 255"),
    "a divisor of 255 wide": (normalised(pixels() // 3, MEAN, STD), "no two neighbouring"),
    "black and white": (normalised((pixels() > 99) * 255, MEAN, STD), "no two neighbouring"),
    "constant": (torch.ones(4, 3, 8, 8), "constant"),
}


@pytest.mark.parametrize("name", DECLINED)
def test_images_on_no_certain_grid_are_declined_with_the_reason(name: str) -> None:
    images, reason = DECLINED[name]
    found = find_grid([images])
    assert isinstance(found, str)
    assert reason in found


def test_without_images_there_is_no_grid() -> None:
    assert find_grid([]) == "there are no images to find the pixel grid from"


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((), ()),
        ((0.5,), (0.5, 0.5)),
        ((0.5,), (0.0,)),
        ((0.5,), (-1.0,)),
        ((float("nan"),), (1.0,)),
    ],
)
def test_a_normalisation_that_cannot_be_undone_is_refused(
    mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    with pytest.raises(InputError):
        grid_of(mean, std)


@pytest.mark.parametrize(
    "text",
    [
        "a7/tensor/pixels@0",
        "s8/tensor/pixels@0",
        "a8/channel/pixels@0",
        "a8/tensor/pixels",
        "a8/tensor/pixels@256",
        "a8/tensor/pixels@1.5",
    ],
)
def test_pixels_are_eight_bits_per_tensor_with_a_zero_point(text: str) -> None:
    with pytest.raises(SchemeError, match="a8/tensor/pixels@Z"):
        Scheme.parse(text)
