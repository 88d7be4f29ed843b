"""What has no kernel runs through Inductor, with a note that names the layer and the operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant.backends.x86.program.run import run_program
from tests.backends.tiny import Swin, images, made, tensor
from tests.backends.x86.program_models import KEEP, OneAttention
from tests.backends.x86.test_canonical import with_codes
from tests.passes.running import plain

NOTE = "runs through Inductor, not as one program: "


class Part(nn.Module):
    """A line between two linears, in a layer of its own."""

    def __init__(self, line: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.line = line

    def forward(self, x: Tensor) -> Tensor:
        return self.line(x)


class Between(nn.Module):
    def __init__(
        self, line: Callable[[Tensor], Tensor] = F.gelu, stem: Callable[[], nn.Module] | None = None
    ) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 4, 4) if stem is None else stem()
        self.a, self.part, self.b = nn.Linear(32, 32), Part(line), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        out: Tensor = self.b(self.part(self.a(x)))
        return out


def padded_stem() -> nn.Module:
    return nn.Conv2d(3, 32, 3, 4, 1)


def overridden(scheme: str, sites: str) -> Any:
    return fxquant.recipe("w8a8").override(scheme, sites=sites)


MODELS: dict[str, tuple[Callable[[], nn.Module], Any, str]] = {
    "sine": (lambda: Between(torch.sin), "w8a8", "no kernel for part (aten.sin.default)"),
    "running sum": (
        lambda: Between(lambda x: x.cumsum(1)),
        "w8a8",
        "no kernel for part (aten.cumsum.default)",
    ),
    "boolean mask": (
        lambda: OneAttention(attn_mask=KEEP),
        plain(),
        "attn.sdpa (aten.scaled_dot_product_attention.default): masked",
    ),
    "causal": (
        lambda: OneAttention(is_causal=True),
        plain(),
        "attn.sdpa (aten.scaled_dot_product_attention.default): masked",
    ),
    "padded stem": (
        lambda: Between(stem=padded_stem),
        "w8a8",
        "patch (aten.conv2d.default): its patches overlap",
    ),
    "groups of weights": (
        Between,
        overridden("s8/group16/minmax", "a:weight"),
        "a (quantized_decomposed.dequantize_per_channel_group.default): weights of",
    ),
    "six bits": (
        Between,
        overridden("a6/tensor/minmax", "b:input"),
        "b (quantized_decomposed.quantize_per_tensor.default): codes 0..63",
    ),
    "merged without a norm": (Swin, "w8a8", "the codes that merge reads are not in rows"),
    "tokens joined out of order": (
        lambda: Between(lambda x: torch.cat([x[:, :3], F.layer_norm(x, (32,))[:, ::2]], 1)),
        "w8a8",
        "rows of part.norm are joined out of order",
    ),
    "mean of channels": (
        lambda: Between(lambda x: x + x.mean(-1, keepdim=True)),
        "w8a8",
        "part (aten.mean.dim): a mean over other axes than tokens",
    ),
}


def program_note(model: Any) -> str:
    """The one note that says why a model does not run as one program."""
    (text,) = (text for _, text in model.report.notes if "not as one program" in text)
    return str(text)


@pytest.mark.filterwarnings("ignore::fxquant.FxquantWarning")
@pytest.mark.parametrize("name", MODELS)
def test_what_has_no_kernel_is_named_in_the_report_and_runs_as_before(name: str) -> None:
    build, recipe, reason = MODELS[name]
    quantized = fxquant.quantize(made(build), calibration=images(8), recipe=recipe)
    ours = fxquant.lower(quantized)
    assert program_note(ours).startswith(NOTE + reason)
    assert (ours.executor, ours.native) == ("inductor", None)
    assert not any(n.target is run_program for n in ours.graph_module.graph.nodes)
    eager = fxquant.lower(quantized, executor="eager")
    assert ours.int8_kernels == eager.int8_kernels
    assert all("not as one program" not in text for _, text in eager.report.notes)
    x = images(3, seed=1)
    with torch.inference_mode():
        assert torch.equal(ours.graph_module(x), eager(x))


@pytest.mark.filterwarnings("ignore::fxquant.FxquantWarning")
def test_logarithmic_codes_have_no_program() -> None:
    ours = fxquant.lower(with_codes(2, 4, "sign", logarithmic=True))
    assert (ours.executor, ours.native) == ("inductor", None)
    assert program_note(ours).startswith(NOTE)


def test_an_input_that_is_no_image_has_no_program() -> None:
    model, x = made(lambda: nn.Sequential(nn.Linear(32, 32), nn.GELU())), tensor(4, 6, 32)
    ours = fxquant.compile(model, calibration=x)
    assert program_note(ours) == f"{NOTE}an input of shape [6, 32]"


@pytest.mark.parametrize("executor", ["inductor", "eager"])
def test_an_executor_asked_for_stays(executor: Any) -> None:
    ours = fxquant.compile(made(Between), calibration=images(4), executor=executor)
    assert (ours.executor, ours.native) == (executor, None)
    assert all("not as one program" not in text for _, text in ours.report.notes)
    assert all(kernel.startswith("onednn") for kernel in ours.int8_kernels.values())
