"""Time of a native program's steps."""

import re
from typing import Any

import pytest
import torch
from torch import nn

import fxquant
from fxquant.errors import BackendError
from fxquant.profile import Profile, StepTime, profile
from tests.cli.tiny import CODE


@pytest.fixture(scope="module")
def model() -> nn.Module:
    found: dict[str, Any] = {}
    exec(CODE, found)
    built: nn.Module = found["build"]().eval()
    return built


def calibration() -> torch.Tensor:
    return torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def lowered(model: nn.Module) -> Any:
    made = fxquant.compile(model, calibration=calibration(), recipe="w8a8")
    if getattr(made, "native", None) is None:
        pytest.skip("no native program on this machine")
    return made


@pytest.mark.parametrize("batch", [1, 3])
def test_every_step_has_a_time(lowered: Any, batch: int) -> None:
    found = profile(lowered, calibration()[:batch], repeats=3)
    assert [step.layer for step in found.steps] == [s.layer for s in lowered.native.steps]
    assert all(step.seconds >= 0 for step in found.steps)
    assert sum(step.seconds for step in found.steps) > 0
    assert found.total_s > 0


def test_products_are_counted_once(lowered: Any) -> None:
    found = profile(lowered, calibration()[:2], repeats=1)
    counted = sum(step.macs for step in found.steps)
    assert counted == 2 * lowered.report.totals.int8_macs


def test_groups_sum_to_the_steps() -> None:
    steps = (
        StepTime(kernel="linear", layer="a", text="", int8=True, seconds=1.0, macs=10**9),
        StepTime(kernel="gather", layer="a", text="", int8=False, seconds=0.5),
        StepTime(kernel="linear", layer="b", text="", int8=True, seconds=2.5, macs=10**9),
    )
    found = Profile(steps=steps, total_s=5.0)
    kernels = found.by_kernel()
    assert [(g.name, g.steps, g.seconds, g.share) for g in kernels] == [
        ("linear", 2, 3.5, 0.875),
        ("gather", 1, 0.5, 0.125),
    ]
    assert kernels[0].gops == pytest.approx(4 / 3.5)
    assert [(g.name, g.kernels) for g in found.by_layer()] == [
        ("b", ("linear",)),
        ("a", ("linear", "gather")),
    ]


def test_other_executors_have_no_steps(model: nn.Module, lowered: Any) -> None:
    eager = fxquant.compile(model, calibration=calibration(), recipe="w8a8", executor="eager")
    with pytest.raises(BackendError, match="native program") as caught:
        profile(eager, calibration()[:1])
    assert "'eager'" in caught.value.why
    assert caught.value.fix
    assert caught.value.where


def test_the_reason_for_another_executor_is_told() -> None:
    class Report:
        model = "M"
        notes = (("", "runs through Inductor, not as one program: no kernel for sort"),)

    class Other:
        native = None
        report = Report()
        executor = "inductor"

    with pytest.raises(BackendError, match=re.escape("no kernel for sort")):
        profile(Other(), calibration()[:1])
