"""The native patches: pixels as they are and codes of floats."""

from __future__ import annotations

import ctypes

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from fxquant.backends.x86.arguments import PatchesArguments
from fxquant.backends.x86.compiled import levels, library
from tests.backends.x86 import native


@pytest.mark.parametrize("level", levels())
@settings(max_examples=20, deadline=None)
@given(
    channels=st.integers(1, 4),
    patch=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    from_pixels=st.booleans(),
    parts=st.integers(1, 3),
)
def test_patches(
    level: str,
    channels: int,
    patch: tuple[int, int],
    grid: tuple[int, int],
    *,
    from_pixels: bool,
    parts: int,
) -> None:
    height, width = patch[0] * grid[0], patch[1] * grid[1]
    random = torch.Generator().manual_seed(height * width)
    pixels = native.readable(
        torch.randint(0, 256, (channels, height, width), generator=random, dtype=torch.uint8)
    )
    inverse_step = native.readable(torch.rand(channels, generator=random) * 40 + 20)
    zero_point = native.readable(torch.rand(channels, generator=random) * 200)
    floats = native.readable(torch.randn(channels, height, width, generator=random))
    exact = pixels.double()
    if not from_pixels:
        scaled = floats.double() * inverse_step[:, None, None] + zero_point[:, None, None]
        exact = scaled.clamp(0, 255)
    expected = functional.unfold(exact[None], patch, stride=patch)[0].T
    output = native.Buffer(expected.numel(), torch.uint8)
    arguments = PatchesArguments(
        input=(pixels if from_pixels else floats).data_ptr(),
        input_is_u8=from_pixels,
        channels=channels,
        height=height,
        width=width,
        patch_height=patch[0],
        patch_width=patch[1],
        inverse_step=inverse_step.data_ptr(),
        zero_point=zero_point.data_ptr(),
        output=output.pointer,
        output_stride=expected.shape[1],
    )
    for part in range(parts):
        library(level).fxq_patches(ctypes.byref(arguments), part, parts)
    output.check()
    found = output.data.view(expected.shape).double()
    assert (found - expected).abs().max() <= (0 if from_pixels else 0.5001)
