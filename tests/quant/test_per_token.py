"""Ranges found per token while a graph runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd

from fxquant.quant import ops

SEEDS = st.integers(0, 2**32 - 1)
CODES = st.sampled_from(
    [(0, 255, torch.uint8), (0, 127, torch.uint8), (0, 15, torch.uint8), (0, 65535, torch.uint16)]
)


def sample(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randn(*shape[:-1], 1, generator=generator).exp()
    shift = torch.randn(*shape[:-1], 1, generator=generator)
    return torch.randn(*shape, generator=generator) * spread + shift


def there_and_back(x: Tensor, low: int = 0, high: int = 255, dtype: Any = torch.uint8) -> Tensor:
    out: Tensor = ops.dequantize_per_token(*ops.quantize_per_token(x, low, high, dtype))
    return out


@given(SEEDS, CODES)
def test_scale_and_zero_point_are_numpys(seed: int, codes: tuple[int, int, torch.dtype]) -> None:
    x = sample(seed, 2, 3, 8)
    made, scale, zero_point = ops.quantize_per_token(x, *codes)
    low = np.minimum(x.double().numpy().min(-1, keepdims=True), 0.0)
    high = np.maximum(x.double().numpy().max(-1, keepdims=True), 0.0)
    step = (high - low) / (codes[1] - codes[0])
    np.testing.assert_allclose(scale.numpy(), step, rtol=1e-6)
    assert np.abs(zero_point.numpy() - -low / step).max() <= 0.51
    assert torch.equal(zero_point, zero_point.round())
    assert (made.dtype, scale.dtype, zero_point.dtype) == (codes[2], torch.float32, torch.float32)
    assert made.shape == x.shape
    assert scale.shape == zero_point.shape == (2, 3, 1)
    assert codes[0] <= int(made.int().min())
    assert int(made.int().max()) <= codes[1]


@given(SEEDS, CODES)
def test_the_error_is_half_a_step_of_the_tokens_own(
    seed: int, codes: tuple[int, int, torch.dtype]
) -> None:
    x = sample(seed, 4, 5, 16)
    _, scale, _ = ops.quantize_per_token(x, *codes)
    error = (there_and_back(x, *codes) - x).abs()
    assert bool((error <= scale * (0.5 + 0.02)).all())


@given(SEEDS, st.integers(1, 6), st.randoms(use_true_random=False))
def test_a_token_does_not_depend_on_its_batch_mates(seed: int, batch: int, random: Any) -> None:
    x = sample(seed, batch, 3, 8)
    whole = there_and_back(x)
    for one, row in zip(x, whole, strict=True):
        assert torch.equal(there_and_back(one[None])[0], row)
    order = list(range(batch))
    random.shuffle(order)
    assert torch.equal(there_and_back(x[order]), whole[order])
    mates = x.clone()
    mates[1:] *= 1000.0
    assert torch.equal(there_and_back(mates)[0], whole[0])


@given(SEEDS)
def test_zero_is_exact_and_twice_is_once(seed: int) -> None:
    x = sample(seed, 3, 8)
    x[:, 0] = 0.0
    once = there_and_back(x)
    assert not once[:, 0].any()
    assert torch.allclose(there_and_back(once), once, rtol=0, atol=float(x.abs().max()) * 1e-5)


@pytest.mark.parametrize("value", [0.0, 1e-42, -1e-42, 1e-30, 5.0, -5.0, 1e30])
def test_a_constant_token_comes_back(value: float) -> None:
    x = torch.full((2, 4), value)
    assert torch.allclose(there_and_back(x), x, rtol=1e-6, atol=1e-35)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_float_types_are_quantized_from_float32(dtype: torch.dtype) -> None:
    x = sample(0, 2, 8).to(dtype)
    codes, scale, _ = ops.quantize_per_token(x, 0, 255, torch.uint8)
    assert torch.equal(codes, ops.quantize_per_token(x.float(), 0, 255, torch.uint8)[0])
    assert scale.dtype is torch.float32


def test_compilers_see_plain_aten_inside() -> None:
    seen: list[str] = []

    def backend(graph_module: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        seen.extend(str(n.target) for n in graph_module.graph.nodes if n.op == "call_function")
        return graph_module.forward

    x = sample(0, 2, 3, 8)
    with torch.no_grad():
        compiled = torch.compile(there_and_back, backend=aot_autograd(fw_compiler=backend))
        result = compiled(x)
    assert torch.equal(result, there_and_back(x))
    assert "aten.amin.default" in seen
    assert not [name for name in seen if not name.startswith("aten.")]


def test_aot_eager_gives_the_same_bits() -> None:
    torch._dynamo.reset()
    x = sample(1, 2, 3, 8)
    with torch.no_grad():
        assert torch.equal(torch.compile(there_and_back, backend="aot_eager")(x), there_and_back(x))
