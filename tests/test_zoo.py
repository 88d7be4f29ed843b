"""Whole models of timm, torchvision and the assets, with random weights and with trained ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code

import fxquant
from fxquant.errors import PipelineError
from fxquant.fidelity import compare, logits_of
from fxquant.passes import Nonlinear
from fxquant.passes.integers.proof import prove_integer
from fxquant.quant.metrics import sqnr_db
from tests.asset_models import data
from tests.asset_models.gmlp import GMlp
from tests.asset_models.resmlp import ResMlp

TIMM = {
    "deit_tiny_patch16_224": 224,
    "vit_base_patch16_224": 224,
    "swin_tiny_patch4_window7_224": 224,
    "swinv2_tiny_window8_256": 256,
    "mixer_b16_224": 224,
    "resmlp_12_224": 224,
    "gmlp_s16_224": 224,
    "deit3_small_patch16_224": 224,
    "cait_xxs24_224": 224,
}
TORCHVISION = {"vit_b_16": 224, "swin_t": 224}
ASSETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "gmlp by einsum": (lambda: GMlp(spatial="einsum"), (1, 28, 28)),
    "gmlp by matmul": (lambda: GMlp(spatial="matmul"), (1, 28, 28)),
    "resmlp": (ResMlp, (3, 32, 32)),
}
LAYER_SCALES = frozenset({"gamma", "gamma_1", "gamma_2", "ls1", "ls2"})


def images(count: int, shape: tuple[int, ...], *, seed: int = 0) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def randomize(model: nn.Module) -> nn.Module:
    """Weights at the scale of trained ones; as libraries start them, whole branches are zero."""
    generator = torch.Generator().manual_seed(0)

    def fill(parameter: Tensor, deviation: float) -> None:
        parameter.copy_(deviation * torch.randn(parameter.shape, generator=generator))

    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.MultiheadAttention):
            for parameter in module.parameters(recurse=False):
                bias = parameter.dim() == 1
                fill(parameter, 0.1 if bias else parameter[0].numel() ** -0.5)
        elif isinstance(module, nn.LayerNorm) and module.weight is not None:
            fill(module.weight, 0.4)
            module.weight.exp_()
    for name, parameter in model.named_parameters():
        leaf = name.rpartition(".")[2]
        if leaf in LAYER_SCALES:
            parameter.fill_(0.3)
        elif name.endswith("sgu.weight"):
            fill(parameter, parameter.shape[-1] ** -0.5)
    return model.eval()


def made(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(0)
    if name in TIMM:
        timm = pytest.importorskip("timm")
        return randomize(timm.create_model(name)), (3, TIMM[name], TIMM[name])
    if name in TORCHVISION:
        models = pytest.importorskip("torchvision.models")
        return randomize(models.get_model(name, weights=None)), (
            3,
            TORCHVISION[name],
            TORCHVISION[name],
        )
    build, shape = ASSETS[name]
    return randomize(build()), shape


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TIMM, *TORCHVISION, *ASSETS])
def test_a_model_is_captured_quantized_lowered_saved_and_loaded(name: str, tmp_path: Path) -> None:
    model, shape = made(name)
    quantized = fxquant.quantize(model, calibration=images(16, shape))
    lowered = fxquant.lower(quantized, executor="eager", strict=True)
    report = lowered.report
    assert report.totals.int8_linear_share >= 0.95, [
        (row.layer, row.reason) for row in report.rows if row.float_bytes and not row.int8
    ]
    assert all(row.reason for row in report.rows if row.float_bytes and not row.int8)
    assert {row.layer for row in report.rows if row.int8} == set(lowered.int8_kernels)
    with torch.inference_mode():
        results = {}
        for batch in (1, 7):
            x = images(batch, shape, seed=batch)
            exact, results[batch] = model(x), lowered(x)
            assert results[batch].shape == exact.shape
            assert sqnr_db(exact, results[batch]) >= 15.0
    del model, quantized
    lowered.save(tmp_path / "model.fxq")
    del lowered
    again = fxquant.load(tmp_path / "model.fxq", executor="eager", strict=True)
    with torch.inference_mode():
        for batch, result in results.items():
            assert torch.equal(again(images(batch, shape, seed=batch)), result)


INTEGER = (
    "deit3_small_patch16_224",
    "swin_tiny_patch4_window7_224",
    "mixer_b16_224",
    "resmlp_12_224",
    "gmlp_s16_224",
    "cait_xxs24_224",
    "swin_t",
    *ASSETS,
)


@pytest.mark.slow
@pytest.mark.parametrize("name", INTEGER)
def test_a_model_becomes_nothing_but_integers(name: str) -> None:
    model, shape = made(name)
    steps = fxquant.recipe("integer-only").pipeline
    steps = steps.replace("nonlinear", Nonlinear(method="i-bert", images=2, rule="mse"))
    x = images(4, shape)
    q = fxquant.quantize(model, calibration=x, pipeline=steps, backend="reference")
    prove_integer(q)
    assert not any("float" in row.kernel for row in q.report.rows)
    with torch.no_grad():
        assert sqnr_db(model(x), q(x)) > 15.0


@pytest.mark.slow
def test_a_model_without_an_integer_form_says_why() -> None:
    model, shape = made("swinv2_tiny_window8_256")  # divides queries and keys by their norms
    steps = fxquant.recipe("integer-only").pipeline
    steps = steps.replace("nonlinear", Nonlinear(method="i-bert", images=2, rule="mse"))
    with pytest.raises(PipelineError, match="only division by a constant"):
        fxquant.quantize(model, calibration=images(4, shape), pipeline=steps, backend="reference")


@pytest.fixture
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    counters.clear()


def compiled(model: Any, shape: tuple[int, ...]) -> tuple[dict[int, Tensor], str]:
    """Outputs at three batch sizes, and the longest code that was generated on the way."""
    runs, results, codes = torch.compile(model), {}, [""]
    with torch.inference_mode():
        for batch in (1, 2, 7):
            results[batch], code = run_and_get_code(runs, images(batch, shape, seed=batch))
            codes.append("\n".join(code))
    return results, max(codes, key=len)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
@pytest.mark.parametrize("kind", ["lowered", "quantized"])
def test_a_model_compiles_into_few_graphs_for_every_batch_size(name: str, kind: str) -> None:
    model, shape = made(name)
    quantized = fxquant.quantize(model, calibration=images(4, shape))
    lowered = fxquant.lower(quantized, executor="eager", strict=True)
    eager = lowered if kind == "lowered" else quantized
    results, code = compiled(eager, shape)
    assert counters["stats"]["unique_graphs"] <= 3
    assert not counters["graph_break"]
    if kind == "lowered":
        calls = [line for line in code.splitlines() if "onednn.qlinear_pointwise" in line]
        calls = [line for line in calls if "=" in line and not line.lstrip().startswith("#")]
        assert len(calls) == len(lowered.int8_kernels)
    with torch.inference_mode():
        for batch, result in results.items():
            assert sqnr_db(eager(images(batch, shape, seed=batch)), result) >= 25.0


TRAINED: dict[str, tuple[Callable[[], nn.Module], Any, Any, float, float]] = {
    "deit_tiny": (data.load_deit_tiny, data.DEIT_TINY_MEAN, data.DEIT_TINY_STD, 0.8, 97.0),
    "vit_tiny": (data.load_vit_tiny, data.VIT_TINY_MEAN, data.VIT_TINY_STD, 2.0, 92.0),
}


@pytest.mark.slow
@pytest.mark.usefixtures("assets")
@pytest.mark.parametrize("name", TRAINED)
def test_a_trained_model_keeps_its_accuracy(name: str) -> None:
    load, mean, std, largest_drop, least_agreement = TRAINED[name]
    model = load()
    calibration, _ = data.imagenet_images(data.CALIBRATION_FOLDER, 128, mean, std)
    lowered = fxquant.compile(
        model, calibration=calibration, recipe="w8a8", backend="x86", strict=True
    )
    x, labels = data.imagenet_images(data.EVALUATION_FOLDER, data.EVALUATION_COUNT, mean, std)
    found = compare(logits_of(model, x, batch=26), logits_of(lowered, x, batch=26), labels)
    assert found.images == data.EVALUATION_COUNT
    assert found.drop is not None
    assert found.drop <= largest_drop
    assert found.agreement >= least_agreement
