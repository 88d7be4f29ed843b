"""All kinds of quantizers through one door: heads, operators in a graph, what cannot be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxquant.errors import InputError, SchemeError
from fxquant.quant import ops
from fxquant.quant.calls import activation_calls
from fxquant.quant.fake import fake_quantize_heads
from fxquant.quant.logarithm import fake_quantize_log_per_head
from fxquant.quant.qparams import QParams, qparams_from_range
from fxquant.quant.quantizer import dequantize, fake_quantize, quantize
from fxquant.quant.region import fake_quantize_region_per_head
from fxquant.quant.scheme import Scheme
from fxquant.quant.weight import weight_qparams

HEADS = 3
KINDS = ["a", "s", "region sign", "region magnitude", "log2", "log_sqrt2", "adalog"]


def of_kind(kind: str, bits: int, seed: int, *, heads: int = HEADS) -> QParams:
    """Parameters with a different scale for each head, or per tensor for no heads."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(heads or 1, generator=generator) + 0.05
    zero_point = torch.zeros(heads or 1, dtype=torch.int64)
    granularity: Any = "head" if heads else "tensor"
    name, _, split = kind.partition(" ")
    if name in {"a", "s"}:
        scheme = Scheme(bits=bits, symmetric=name == "s", granularity=granularity)
        if name == "a":
            zero_point = torch.randint(0, 1 << bits, (heads or 1,), generator=generator)
    else:
        scheme = Scheme(bits=bits, kind=name, granularity=granularity)  # type: ignore[arg-type]
    if not heads:
        scale, zero_point = scale[0], zero_point[0]
    logs = {"base": 21, "offset": 0.125} if "log" in name else {}
    shift = 3 if name == "region" else 0
    return QParams(scheme, scale, zero_point, shift, split=split or "sign", **logs)  # type: ignore[arg-type]


def sample(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3.0


@given(st.sampled_from(KINDS), st.integers(2, 8), st.integers(0, 2**32 - 1))
def test_per_head_is_each_head_by_itself(kind: str, bits: int, seed: int) -> None:
    qparams = of_kind(kind, bits, seed)
    x = sample(seed, 2, HEADS, 5, 4)
    codes, values = quantize(x, qparams), fake_quantize(x, qparams)
    assert codes.shape == values.shape == x.shape
    single = replace(qparams.scheme, granularity="tensor")
    for head in range(HEADS):
        one = replace(
            qparams,
            scheme=single,
            scale=qparams.scale[head],
            zero_point=qparams.zero_point[head],
        )
        assert torch.equal(codes[:, head], quantize(x[:, head], one))
        assert torch.equal(values[:, head], fake_quantize(x[:, head], one))


@given(
    st.sampled_from(KINDS),
    st.integers(2, 8),
    st.sampled_from([0, HEADS]),
    st.integers(0, 2**32 - 1),
)
def test_the_operators_of_a_graph_make_the_same_codes_and_values(
    kind: str, bits: int, heads: int, seed: int
) -> None:
    qparams = of_kind(kind, bits, seed, heads=heads)
    x = sample(seed, 2, HEADS, 5, 4)
    first, second = activation_calls(qparams)
    assert first.target in ops.QUANTIZE
    assert second.target in ops.DEQUANTIZE
    codes = first(x)
    assert codes.dtype is quantize(x, qparams).dtype
    assert torch.equal(codes, quantize(x, qparams))
    assert torch.equal(second(codes), dequantize(codes, qparams))


@given(st.sampled_from(KINDS), st.integers(2, 8), st.integers(0, 2**32 - 1))
def test_fake_quantizers_per_head_have_value_and_gradient(kind: str, bits: int, seed: int) -> None:
    qparams = of_kind(kind, bits, seed)
    x = sample(seed, 2, HEADS, 5, 4).requires_grad_()
    arguments = activation_calls(qparams)[1].arguments
    if qparams.scheme.kind == "region":
        made = fake_quantize_region_per_head(x, *arguments)
    elif qparams.scheme.kind == "uniform":
        scale, zero_point, _, low, high, _ = arguments
        made = fake_quantize_heads(x, scale, zero_point, low, high)
    else:
        made = fake_quantize_log_per_head(x, *arguments)
    assert torch.equal(made, fake_quantize(x.detach(), qparams))
    made.sum().backward()
    assert x.grad is not None
    assert bool(((x.grad - x.grad.round()).abs() < 1e-5).all())
    # the gradient is 0 exactly where the value is cut off, at the ends of the head's levels
    ends = fake_quantize(torch.tensor([-1e6, 1e6])[:, None, None, None].expand(2, 3, 1, 1), qparams)
    outside = (x < ends[0]) | (x > ends[1])
    near = torch.minimum((x - ends[0]).abs(), (x - ends[1]).abs()) < 1e-4
    assert torch.equal((x.grad.round() == 0) | near, outside | near)


def forward(x: Tensor) -> list[Tensor]:
    made = []
    for kind in KINDS[2:]:
        for heads in (0, HEADS):
            first, second = activation_calls(of_kind(kind, 6, 1, heads=heads))
            codes = first(x)
            made += [codes, second(codes)]
    return made


def test_compiled_codes_and_values_are_those_of_eager_mode() -> None:
    x = sample(0, 2, HEADS, 7, 33)
    x[0, 0, 0, :4] = torch.tensor([0.0, -0.125, 1e9, -1e9])
    torch._dynamo.reset()
    for made, expected in zip(torch.compile(forward)(x), forward(x), strict=True):
        assert torch.equal(made, expected)


@pytest.mark.parametrize("kind", KINDS[2:])
def test_fake_tensors_pass_the_operators(kind: str) -> None:
    first, second = activation_calls(of_kind(kind, 4, 0, heads=0))
    meta = torch.empty(2, HEADS, 5, 4, device="meta")
    assert first(meta).dtype in {torch.uint8, torch.int8}
    assert second(first(meta)).shape == meta.shape


REGION = [(0.1, 3, 1, "sign"), (0.1, 3, 9, "sign"), (0.1, 9, 4, "sign"), (0.1, -1, 4, "sign")]


@pytest.mark.parametrize("form", [*REGION, (0.1, 3, 4, "sum")])
def test_regions_that_cannot_be_are_refused(form: tuple[Any, ...]) -> None:
    for operator in (ops.quantize_region, ops.dequantize_region):
        with pytest.raises(InputError, match="no region quantizer"):
            operator(torch.zeros(3), *form)


@pytest.mark.parametrize(("exponent", "bits"), [((0, 1), 4), ((1, 0), 4), ((1, 1), 64)])
def test_logs_that_cannot_be_are_refused(exponent: tuple[int, int], bits: int) -> None:
    with pytest.raises(InputError, match="no log quantizer"):
        ops.quantize_log(torch.ones(3), 1.0, *exponent, 0.0, bits)
    with pytest.raises(InputError, match="no log quantizer"):
        ops.dequantize_log(torch.zeros(3), 1.0, *exponent, 0.0, bits, 0)


@pytest.mark.parametrize("granularity", ["channel", "group", "token"])
def test_other_granularities_have_no_static_operators(granularity: str) -> None:
    size = 4 if granularity == "group" else 0
    rule: Any = "dynamic" if granularity == "token" else "minmax"
    scheme = Scheme(granularity=granularity, group_size=size, rule=rule)  # type: ignore[arg-type]
    qparams = QParams(scheme, torch.ones(4), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(SchemeError, match="no static operators"):
        activation_calls(qparams)


@pytest.mark.parametrize("text", ["region_4/tensor/mse", "log2_4/head/minmax"])
def test_what_is_not_uniform_is_no_weight_and_is_not_made_from_a_range(text: str) -> None:
    scheme = Scheme.parse(text)
    with pytest.raises(SchemeError, match="not for weights"):
        weight_qparams(torch.randn(4, 4), scheme)
    with pytest.raises(SchemeError, match="range alone"):
        qparams_from_range(scheme, torch.tensor(-1.0), torch.tensor(1.0))


@pytest.mark.parametrize("text", ["s8/head/minmax", "s8/head/mse", "s8/tensor/output"])
def test_weights_have_no_heads_and_no_consumer(text: str) -> None:
    with pytest.raises(SchemeError, match="does not apply"):
        weight_qparams(torch.randn(4, 4), Scheme.parse(text))
