"""Images at the door of a lowered model: normalised floats in one kernel, raw bytes in none."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor.utils import run_and_get_code

import fxquant
from fxquant.backends.x86.conformance import region_differences
from fxquant.passes import SplitOutliers
from fxquant.quant import ops
from tests.backends.tiny import Vit, made
from tests.passes.test_split import ONE, data, outlier
from tests.quant.test_pixels import MEAN, STD, normalised, pixels

P = pixels(6)
X = normalised(P, MEAN, STD)
ENTRIES = {"float32": X, "uint8": P}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@cache
def quantized(entry: str) -> Any:
    model = made(lambda: Vit(16, 1))
    normalization = (MEAN, STD)
    return fxquant.quantize(
        model,
        calibration=X,
        input_normalization=normalization,
        entry=entry,  # type: ignore[arg-type]
    )


def kernels(model: Any, x: Tensor) -> list[str]:
    """What a compiled model calls, in order."""
    with torch.inference_mode():
        _, code = run_and_get_code(model, x)
    lines = [line.strip() for line in "\n".join(code).splitlines()]
    lines = [line for line in lines if not line.startswith("#")]
    found = [re.search(r"(?:^|= )(cpp_fused\w*|\S*qlinear_pointwise\S*)\(", s) for s in lines]
    return [m[1] for m in found if m is not None]


@pytest.mark.parametrize("entry", ENTRIES)
def test_regions_conform_and_both_doors_give_the_same(entry: str) -> None:
    q, x = quantized(entry), ENTRIES[entry]
    lowered = fxquant.lower(q, executor="eager", strict=True)
    assert lowered.int8_kernels["patch"] == "onednn int8, f32 out"
    found = region_differences(lowered, (x,))
    assert {region.layer for region in found} == set(lowered.int8_kernels)
    assert max(region.worst_steps for region in found) <= 1.0
    other = fxquant.lower(quantized("float32"), executor="eager")
    with torch.inference_mode():
        assert torch.equal(lowered(x), other(X))


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES)
def test_one_kernel_brings_the_image_to_the_patch_embedding(entry: str) -> None:
    names = kernels(fxquant.lower(quantized(entry)), ENTRIES[entry])
    assert "cpp_fused" in names[0]
    assert "pointwise" in names[1]
    arithmetic = ("mul", "add", "quantize")
    assert [part in names[0] for part in arithmetic] == [entry == "float32"] * 3


def test_raw_pixels_meet_no_quantizer_before_the_first_kernel() -> None:
    lowered = fxquant.lower(quantized("uint8"), executor="eager")
    nodes = list(lowered.graph_module.graph.nodes)
    patch = next(i for i, n in enumerate(nodes) if "qlinear" in str(n.target))
    assert not any(n.target in ops.QUANTIZE for n in nodes[:patch])


@cache
def split() -> Any:
    pipeline = fxquant.recipe("w8a8").pipeline.before("assign", SplitOutliers(budget=0.5))
    return fxquant.quantize(outlier(**ONE), calibration=data(), pipeline=pipeline)


def test_split_channels_run_in_int8_and_conform() -> None:
    lowered = fxquant.lower(split(), executor="eager", strict=True)
    assert lowered.int8_kernels == {
        "fc1": "onednn int8, gelu, f32 out",
        "fc2": "onednn int8, + residual",
    }
    found = region_differences(lowered, (data(4, seed=3),))
    assert {region.layer for region in found} == {"fc1", "fc2"}
    assert max(region.worst_steps for region in found) <= 1.0


@pytest.mark.slow
def test_splitting_is_compiled_into_one_quantize_kernel() -> None:
    names = kernels(fxquant.lower(split()), data())
    assert ["pointwise" in name for name in names] == [False, True, False, True]
