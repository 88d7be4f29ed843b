"""Lowered regions and whole lowered models against the reference graph."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant.backends.x86 import ops as kernels
from fxquant.backends.x86.conformance import region_differences
from fxquant.quant.metrics import sqnr_db
from tests.backends.tiny import MODELS, Mlp, images, made, shared, shared_lowered, tensor


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch", [1, 7])
def test_every_region_is_within_one_step_of_the_reference(name: str, batch: int) -> None:
    lowered = shared_lowered(name)
    found = region_differences(lowered, (images(batch, side=MODELS[name][1], seed=1),))
    assert {region.layer for region in found} == set(lowered.int8_kernels)
    assert max(region.worst_steps for region in found) <= 1.0
    assert all(region.share < 0.01 for region in found if region.kernel == "u8")


@pytest.mark.parametrize("name", MODELS)
def test_every_weighted_layer_of_the_small_models_runs_in_int8(name: str) -> None:
    lowered = shared_lowered(name)
    totals = lowered.report.totals
    assert totals.int8_layers == totals.layers == len(lowered.int8_kernels)
    assert totals.int8_linear_share == 1.0
    assert not any(row.reason for row in lowered.report.rows if row.int8)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch", [1, 7])
def test_outputs_follow_the_reference_and_the_float_model(name: str, batch: int) -> None:
    model, quantized = shared(name)
    x = images(batch, side=MODELS[name][1], seed=2)
    with torch.inference_mode():
        exact, simulated, ours = model(x), quantized(x), shared_lowered(name)(x)
    assert ours.shape == exact.shape
    assert ours.dtype is torch.float32
    assert sqnr_db(exact, ours) > 25.0
    # Rounding turns last bits into steps: the two differ by no more than quantization noise.
    assert sqnr_db(simulated, ours) > 30.0


@pytest.mark.parametrize("name", ["vit", "mixer", "swin"])
def test_an_image_does_not_depend_on_its_batch_mates(name: str) -> None:
    lowered, x = shared_lowered(name), images(7, seed=3)
    with torch.inference_mode():
        together = lowered(x)
        alone = torch.cat([lowered(image[None]) for image in x])
    assert sqnr_db(together, alone) > 40.0


class Strided(nn.Module):
    """One linear that reads its input through a view."""

    def __init__(self, view: str) -> None:
        super().__init__()
        self.view, self.fc = view, nn.Linear(16, 24)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(x)
        views = {
            "transposed": lambda: x.transpose(1, 2),
            "permuted": lambda: x.reshape(-1, 4, 4, 16).permute(0, 2, 1, 3),
            "sliced": lambda: x[:, ::2],
            "selected": lambda: x[:, 3],
            "expanded": lambda: x[:, :1].expand(-1, 5, -1),
            "flipped": lambda: x.flip(1),
            "chunked": lambda: torch.cat([x, x], -1).chunk(2, -1)[1],
        }
        out: Tensor = self.fc(views[self.view]())
        return out


@pytest.mark.parametrize(
    "view", ["transposed", "permuted", "sliced", "selected", "expanded", "flipped", "chunked"]
)
def test_a_linear_may_read_its_input_through_any_view(view: str) -> None:
    model, x = made(lambda: Strided(view)), tensor(3, 16, 16)
    quantized = fxquant.quantize(model, calibration=x)
    lowered = fxquant.lower(quantized, executor="eager", strict=True)
    with torch.inference_mode():
        torch.testing.assert_close(lowered(x), quantized(x), rtol=1e-5, atol=1e-5)
    assert max(region.worst_steps for region in region_differences(lowered, (x,))) <= 1.0


@pytest.mark.parametrize(
    "strided",
    [
        lambda x: x.transpose(0, 1),
        lambda x: x[::2],
        lambda x: x[:1].expand(4, -1, -1),
        lambda x: x[..., :16],
    ],
    ids=["transposed", "every second", "expanded", "cut"],
)
def test_the_kernel_reads_strided_codes_as_it_reads_contiguous_ones(strided: object) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 256, (8, 6, 32), dtype=torch.uint8, generator=generator)
    x = strided(codes)  # type: ignore[operator]
    weight = torch.randint(-128, 128, (24, x.shape[-1]), dtype=torch.int8, generator=generator)
    scale, zero = torch.rand(24, generator=generator), torch.zeros(1, dtype=torch.int32)
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    output = (None, 1.0, 0, torch.float32, "none", "")
    ours = kernels.qlinear(x, 0.5, 7, packed, scale, zero, *output)
    assert not x.is_contiguous() or x.shape[-1] == 32
    exact = (x.double() - 7) @ weight.double().t() * 0.5 * scale.double()
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-3)
    other = tensor(*ours.shape[:-1][::-1], 24).transpose(0, 1)
    added = kernels.qlinear_add(x, 0.5, 7, packed, scale, zero, other, None)
    torch.testing.assert_close(added.double(), exact + other.double(), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("width", [16, 33])
def test_ranges_per_token_give_what_the_reference_gives(bias: bool, width: int) -> None:  # noqa: FBT001
    model = made(lambda: nn.Sequential(nn.Linear(width, 40, bias=bias), nn.GELU()))
    # Tokens on very different scales: one range for all would lose the small ones.
    x = tensor(4, 9, width) * torch.logspace(-3, 3, 9).reshape(1, 9, 1)
    quantized = fxquant.quantize(model, example=x, recipe="w8a8-dynamic")
    lowered = fxquant.lower(quantized, executor="eager", strict=True)
    with torch.inference_mode():
        exact, ours, simulated = model(x), lowered(x), quantized(x)
        alone = torch.cat([lowered(sample[None]) for sample in x])
    assert max(region.worst_steps for region in region_differences(lowered, (x,))) <= 1.0
    # The integer sums are exact; what differs is the float32 rounding of the correction.
    assert ((ours - simulated).abs() <= 1e-5 * simulated.abs().amax(-1, keepdim=True)).all()
    assert torch.equal(ours, alone)
    assert min(sqnr_db(exact[:, i], ours[:, i]) for i in range(9)) > 25.0


def test_a_whole_dynamic_model_needs_no_data_and_follows_the_reference() -> None:
    model = made(MODELS["vit"][0])
    quantized = fxquant.quantize(model, example=images(1), recipe="w8a8-dynamic")
    lowered = fxquant.lower(quantized, executor="eager")
    x = images(5, seed=4)
    with torch.inference_mode():
        assert sqnr_db(model(x), lowered(x)) > 25.0
        assert sqnr_db(quantized(x), lowered(x)) > 30.0
    row = lowered.report["patch"]
    assert not row.int8
    assert "needs data" in row.reason


def test_seven_bit_codes_need_no_vnni_and_stay_within_one_step() -> None:
    model = made(lambda: Mlp(24, 40))
    x = tensor(6, 5, 24)
    recipe = fxquant.recipe("w8a8").override("a7/tensor/minmax")
    lowered = fxquant.compile(model, calibration=x, recipe=recipe, executor="eager", strict=True)
    found = region_differences(lowered, (x,))
    assert max(region.worst_steps for region in found) <= 1.0
    assert math.isclose(lowered.report.totals.int8_linear_share, 1.0)
