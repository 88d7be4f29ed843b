"""What the operators decompose into, and that a compiled graph gives the same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from fxquant.quant.integer import (
    dyadic,
    gelus,
    norms,
    operators,
    power_norm,
    products,
    softmaxes,
    table,
)

INT8, I16 = torch.int8, torch.int16
SIXTEEN, BYTES = st.integers(-(2**15), 2**15 - 1), st.integers(-128, 127)
ROW = dyadic.dyadic_row(torch.full((24,), 1e-7), torch.full((24,), 3.0))
WIDE = dyadic.dyadic_row(torch.full((24,), 1e-3))
WEIGHT = torch.randint(-127, 128, (24, 24), dtype=INT8, generator=torch.Generator().manual_seed(1))
GAIN, OFFSET = power_norm.affine_of(torch.linspace(-2, 2, 24), torch.linspace(-1, 1, 24), 0.02)
EIGHT = (0, -128, 127, INT8)
FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "i_exp": lambda q: torch.ops.fxquant.i_exp(q, 0.05, 30),
    "shift_exp": lambda q: torch.ops.fxquant.shift_exp(q, 0.05, 15),
    "i_softmax": lambda q: softmaxes.i_softmax(q, 0.05, 16),
    "shiftmax": lambda q: softmaxes.shiftmax(q, 0.05, 16),
    "shiftmax at a fine step": lambda q: softmaxes.shiftmax(q, 5e-4, 16),
    "log_int_softmax": lambda q: softmaxes.exp2_codes(softmaxes.log_int_softmax(q, 0.05, 6), 14),
    "table_softmax": lambda q: softmaxes.table_softmax(q, softmaxes.exp_table(0.05, 24), 16),
    "i_gelu": lambda q: gelus.i_gelu(q, 0.05),
    "shift_gelu": lambda q: gelus.shift_gelu(q, 0.05, 16),
    "i_layer_norm": lambda q: dyadic.requantize_channels(
        norms.i_layer_norm(q, 1), ROW.multiplier, ROW.shift, ROW.addend, *EIGHT
    ),
    "shift_layer_norm": lambda q: dyadic.requantize(
        norms.shift_layer_norm(q, 0), 1 << 30, 54, *EIGHT
    ),
    "power_layer_norm": lambda q: power_norm.power_layer_norm(
        q, torch.arange(24) % 4, 3, GAIN, OFFSET
    ),
    "lookup": lambda q: table.lookup(q, torch.arange(256, dtype=torch.int32) ** 2, -128),
    "int_linear": lambda q: dyadic.requantize_channels(
        products.int_linear(q.to(INT8), WEIGHT, torch.arange(24, dtype=torch.int32), 0),
        *(WIDE.multiplier, WIDE.shift, WIDE.addend, *EIGHT),
    ),
    "int_linear of bytes": lambda q: products.int_linear(
        (q.to(I16) + 128).to(torch.uint8), WEIGHT, torch.arange(24, dtype=torch.int32), 128
    ),
    "int_matmul": lambda q: products.int_matmul(q, q.transpose(-1, -2), 3, 0),
    "int_product": lambda q: products.int_product(q, q.flip(-1), -4, 2),
    "int_sum": lambda q: dyadic.saturate(products.int_sum(q, [1], True, 5), 1, -900, 900, I16),
}


def codes(*shape: int) -> Tensor:
    return torch.randint(-128, 128, shape, generator=torch.Generator().manual_seed(7)).to(INT8)


def decomposed(function: Callable[[Tensor], Tensor]) -> GraphModule:
    return make_fx(function, tracing_mode="symbolic", _allow_non_fake_inputs=True)(codes(3, 5, 24))


def is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


@pytest.mark.parametrize("name", FORMS)
def test_no_float_tensor_occurs_in_the_decomposed_graph(name: str) -> None:
    nodes = [n for n in decomposed(FORMS[name]).graph.nodes if n.op == "call_function"]
    assert len(nodes) > 1
    for node in nodes:
        assert not is_float(node.meta.get("val")), node.format_node()
        ours = getattr(node.target, "namespace", "aten") == "fxquant"
        assert not ours or node.target in operators.LEAVES
        if "div" in str(node.target) and isinstance(node.target, torch._ops.OpOverload):
            assert node.kwargs.get("rounding_mode") == "floor"
    assert not any(isinstance(a, float) for n in nodes for a in _arguments(n))


def _arguments(node: Node) -> list[Any]:
    return [*torch.utils._pytree.tree_leaves((node.args, node.kwargs))]


def test_every_operator_is_walked() -> None:
    walked = {name.partition(" ")[0] for name in FORMS} | {
        *("requantize", "requantize_channels", "saturate", "exp2_codes", "isqrt")
    }
    assert {str(op).split(".")[1] for op in operators.OPERATORS} == walked


@pytest.mark.parametrize("kind", ["matmul", "add"])
def test_the_walk_would_find_a_float(kind: str) -> None:
    def with_float(q: Tensor) -> Tensor:
        x = q.to(torch.float32) * 0.5
        return (x + x if kind == "add" else x @ x.transpose(-1, -2)).to(INT8)

    assert any(is_float(n.meta.get("val")) for n in decomposed(with_float).graph.nodes)


def test_compiled_kernels_give_the_same_bits() -> None:
    def everything(q: Tensor) -> tuple[Tensor, ...]:
        return tuple(form(q) for form in FORMS.values())

    compiled = torch.compile(everything, dynamic=True)
    for batch in (2, 3):
        q = codes(batch, 5, 24)
        for made, wanted in zip(compiled(q), everything(q), strict=True):
            assert made.dtype is wanted.dtype
            assert torch.equal(made, wanted)


def test_products_are_exact_at_the_extremes() -> None:
    low = torch.full((3, 1536), -128, dtype=INT8)
    bias = torch.tensor([5, -5], dtype=torch.int32)
    assert (
        products.int_linear(low, low[:2], bias, 0).tolist()
        == [[1536 * 2**14 + 5, 1536 * 2**14 - 5]] * 3
    )
    x = codes(2, 3, 40)
    weight = codes(7, 40)
    bias = torch.arange(7, dtype=torch.int32)
    wanted = x.long() @ weight.long().t() + bias
    assert torch.equal(products.int_linear(x, weight, bias, 0).long(), wanted)
    raw = (x.long() + 128).to(torch.uint8)
    assert torch.equal(products.int_linear(raw, weight, bias, 128).long(), wanted)
    a, b = codes(2, 3, 5, 8), codes(2, 3, 8, 6)
    wanted = (a.long() - 3) @ (b.long() + 100)
    assert torch.equal(products.int_matmul(a, b, 3, -100).long(), wanted)


@given(st.lists(st.tuples(SIXTEEN, SIXTEEN), min_size=1, max_size=20), BYTES, BYTES)
def test_products_of_elements_are_those_of_python(
    pairs: list[tuple[int, int]], a_zero: int, b_zero: int
) -> None:
    a, b = torch.tensor(pairs, dtype=I16).unbind(1)
    assert products.int_product(a, b, 0, 0).tolist() == [x * y for x, y in pairs]
    narrow = [(x >> 8, y >> 8) for x, y in pairs]
    a, b = torch.tensor(narrow, dtype=INT8).unbind(1)
    wanted = [(x - a_zero) * (y - b_zero) for x, y in narrow]
    assert products.int_product(a, b, a_zero, b_zero).tolist() == wanted
