"""``torch.compile`` on finished models: few graphs, and every kernel still there."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code

import fxquant
from fxquant.quant.metrics import sqnr_db
from tests.backends.tiny import SeparateVit, images, made

BATCHES = (1, 2, 7)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    counters.clear()


@pytest.fixture(scope="module")
def quantized() -> Any:
    return fxquant.quantize(made(SeparateVit), calibration=images(8))


def outputs_and_code(model: Any) -> tuple[list[torch.Tensor], str]:
    results, texts = [], []
    with torch.inference_mode():
        for batch in BATCHES:
            result, code = run_and_get_code(model, images(batch, seed=batch))
            results.append(result)
            texts.append("\n".join(code))
    return results, max(texts, key=len)


def kernel_calls(code: str) -> int:
    return sum(
        "onednn.qlinear_pointwise" in line and "=" in line and "(" in line
        for line in code.splitlines()
        if not line.lstrip().startswith("#")
    )


def test_a_compiled_lowered_model_keeps_its_kernels_for_every_batch_size(quantized: Any) -> None:
    lowered = fxquant.lower(quantized, executor="eager", strict=True)
    results, code = outputs_and_code(torch.compile(lowered))
    assert counters["stats"]["unique_graphs"] <= 3
    assert not counters["graph_break"]
    assert kernel_calls(code) == len(lowered.int8_kernels)
    for batch, result in zip(BATCHES, results, strict=True):
        with torch.inference_mode():
            assert sqnr_db(lowered(images(batch, seed=batch)), result) > 30.0


@pytest.mark.slow
def test_the_inductor_executor_compiles_by_itself_and_agrees(quantized: Any) -> None:
    lowered = fxquant.lower(quantized, strict=True)
    eager = fxquant.lower(quantized, executor="eager")
    results, code = outputs_and_code(lowered)
    assert counters["stats"]["unique_graphs"] <= 3
    assert kernel_calls(code) == len(lowered.int8_kernels)
    for batch, result in zip(BATCHES, results, strict=True):
        with torch.inference_mode():
            assert sqnr_db(eager(images(batch, seed=batch)), result) > 30.0
    twin = copy.deepcopy(lowered)
    assert twin.executor == "inductor"


@pytest.mark.slow
def test_a_compiled_quantized_model_simulates_for_every_batch_size(quantized: Any) -> None:
    results, _ = outputs_and_code(torch.compile(quantized))
    assert counters["stats"]["unique_graphs"] <= 3
    assert not counters["graph_break"]
    for batch, result in zip(BATCHES, results, strict=True):
        with torch.inference_mode():
            assert sqnr_db(quantized(images(batch, seed=batch)), result) > 30.0
