"""Symmetric, narrow and two-region codes at the int8 kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fxquant
from fxquant import FxquantWarning
from fxquant.backends.x86 import machine
from fxquant.backends.x86.canonical import canonical
from fxquant.backends.x86.conformance import region_differences
from fxquant.backends.x86.lower import lower_graph
from fxquant.graph.tensors import call, prune
from fxquant.quant import ops
from tests.backends.test_rules import Line
from tests.backends.tiny import images, made, shared, tensor, vit

X = tensor(4, 6, 16)


def gelu_between(m: Any, x: Tensor) -> Tensor:
    out: Tensor = m.b(F.gelu(m.a(x)))
    return out


def with_codes(shift: int, bits: int, split: str, *, logarithmic: bool = False) -> Any:
    """The quantizer before ``b`` exchanged for one of two regions, or a logarithmic one."""
    nonnegative = split == "magnitude"
    line: Callable[[Any, Tensor], Tensor] = (
        (lambda m, x: m.b(F.relu(m.a(x)))) if nonnegative else gelu_between
    )
    q = fxquant.quantize(made(lambda: Line(line)), calibration=X)
    old = next(n for n in q.graph.nodes if n.target is ops.dequantize_per_tensor and _feeds(n, "b"))
    x, like = old.args[0].args[0], old.args[0]
    form = (2.0**-5 / (1 << shift), shift, bits, split)
    quantize, dequantize = ops.quantize_region, ops.dequantize_region
    extra: tuple[Any, ...] = ()
    if logarithmic:
        form = (4.0, 1, 1, 0.17, bits)
        quantize, dequantize, extra = ops.quantize_log, ops.dequantize_log, (0,)
    with q.graph.inserting_before(old):
        codes = call(q, quantize, (x, *form), like=like)
        values = call(q, dequantize, (codes, *form, *extra), like=old)
    old.replace_all_uses_with(values)
    prune(q)
    return q


def _feeds(node: Any, layer: str) -> bool:
    return any(user.meta["layer"] == layer for user in node.users)


def narrow(*overrides: tuple[str, str]) -> Any:
    """Two linears with GELU between them; no site is spared, however few its bits."""
    recipe = fxquant.recipe("w8a8")
    for scheme, sites in overrides:
        recipe = recipe.override(scheme, sites=sites)
    model = made(lambda: Line(gelu_between))
    return fxquant.quantize(model, calibration=X, pipeline=recipe.pipeline.without("plan"))


@pytest.mark.parametrize("bits", [2, 4, 6, 7, 8])
def test_symmetric_inputs_run_on_unsigned_kernels(bits: int) -> None:
    q = narrow((f"s{bits}/tensor/minmax", "*:input"))
    pairs = [n.args[2:] for n in q.graph.nodes if n.target is ops.quantize_per_tensor]
    half = 1 << (bits - 1)
    assert pairs == [(half, 0, 2 * half - 1, torch.uint8)] * 2
    lowered = fxquant.lower(q, executor="eager", strict=True)
    found = region_differences(lowered, (X,))
    assert {region.layer for region in found} == {"a", "b"}
    assert max(region.worst_steps for region in found) <= 1.0
    # oneDNN saturates at 0 and 255 only: narrower codes are made by a kernel of Inductor's.
    expected = {True: "onednn int8, gelu, u8 out", False: "onednn int8, gelu, f32 out"}
    assert lowered.int8_kernels["a"] == expected[bits == 8]


@pytest.mark.parametrize("bits", [3, 5, 7])
def test_narrow_affine_codes_after_an_activation_are_clamped_to_their_range(bits: int) -> None:
    q = narrow((f"a{bits}/tensor/minmax", "b:input"))
    lowered = fxquant.lower(q, executor="eager", strict=True)
    assert lowered.int8_kernels["a"] == "onednn int8, gelu, f32 out"
    wide = 10 * X  # far beyond what was calibrated: every code must stay inside its range
    assert max(r.worst_steps for r in region_differences(lowered, (wide,))) <= 1.0
    codes = _codes_before(lowered.graph_module, "b", wide)
    assert int(codes.max()) == 2**bits - 1


def _codes_before(graph_module: Any, layer: str, x: Tensor) -> Tensor:
    node = next(n for n in graph_module.graph.nodes if n.meta.get("layer") == layer and _kernel(n))
    seen: list[Tensor] = []

    class Spy(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            value = super().run_node(n)
            if n is node.args[0]:
                seen.append(value)
            return value

    with torch.inference_mode():
        Spy(graph_module).run(x, enable_io_processing=False)
    return seen[0]


def _kernel(node: torch.fx.Node) -> bool:
    return "qlinear" in str(node.target)


def test_a_whole_model_with_symmetric_activations_is_int8() -> None:
    recipe = fxquant.recipe("w8a8").override("s8/tensor/minmax", sites="*:input")
    q = fxquant.quantize(vit(2), calibration=images(8), recipe=recipe)
    lowered = fxquant.lower(q, executor="eager", strict=True)
    totals = lowered.report.totals
    assert totals.int8_layers == totals.layers
    x = images(3, seed=1)
    assert max(region.worst_steps for region in region_differences(lowered, (x,))) <= 1.0


def test_graphs_of_uniform_codes_are_left_as_they_are() -> None:
    q = shared("vit")[1]
    form, log = canonical(q)
    assert [n.name for n in form.graph.nodes] == [n.name for n in q.graph.nodes]
    assert not log.applied
    assert not log.declined


FITTING = [(0, 8, "sign"), (1, 7, "sign"), (2, 6, "sign"), (5, 4, "sign")]
FITTING += [(1, 8, "magnitude"), (3, 6, "magnitude"), (5, 4, "magnitude")]


@pytest.mark.parametrize(("shift", "bits", "split"), FITTING)
def test_regions_that_fit_one_unsigned_code_run_in_int8(shift: int, bits: int, split: str) -> None:
    q = with_codes(shift, bits, split)
    with torch.inference_mode():
        assert torch.equal(canonical(q)[0](X), q(X))
    lowered = fxquant.lower(q, executor="eager", strict=True)
    assert lowered.int8_kernels["b"] == "onednn int8, f32 out"
    found = region_differences(lowered, (X,))
    assert {region.layer for region in found} == {"a", "b"}
    assert max(region.worst_steps for region in found) <= 1.0


@pytest.mark.parametrize(
    ("shift", "bits", "split", "span"),
    [(1, 8, "sign", 382), (3, 6, "sign", 280), (2, 8, "magnitude", 508), (8, 2, "sign", 258)],
)
def test_regions_that_span_more_stay_float_and_say_so(
    shift: int, bits: int, split: str, span: int
) -> None:
    q = with_codes(shift, bits, split)
    reason = f"span {span} of the finer steps, more than the 255"
    with pytest.warns(FxquantWarning, match=f"b .*{reason}"):
        lowered = fxquant.lower(q, executor="eager")
    assert set(lowered.int8_kernels) == {"a"}
    assert "two int8 products would cost twice one" in lowered.report["b"].reason
    with torch.inference_mode():
        torch.testing.assert_close(lowered(X), q(X), rtol=1e-5, atol=1e-5)


def test_logarithmic_codes_stay_float_and_say_so() -> None:
    q = with_codes(0, 4, "sign", logarithmic=True)
    with pytest.warns(FxquantWarning, match="logarithmic codes"):
        lowered = fxquant.lower(q, executor="eager")
    assert set(lowered.int8_kernels) == {"a"}


def test_seven_bit_machines_take_only_regions_that_fit_seven_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "has_vnni", lambda: False)
    narrow, wide = with_codes(1, 6, "sign"), with_codes(2, 6, "sign")
    assert set(lower_graph(narrow).kernel_of) == {"a", "b"}
    assert "more than the 127" in lower_graph(wide).declined["b"][0]


@given(
    shift=st.integers(0, 8),
    bits=st.integers(2, 8),
    split=st.sampled_from(["sign", "magnitude"]),
    exponent=st.integers(-6, 2),
    seed=st.integers(0, 99),
)
@settings(max_examples=60)
def test_aligned_codes_have_the_values_of_region_codes(
    shift: int, bits: int, split: str, exponent: int, seed: int
) -> None:
    """Against the definition, over all codes that can occur."""
    half = 1 << (bits - 1)
    zero_point = half if split == "sign" else 0
    span = zero_point + ((half - 1) << shift)
    codes = torch.arange(-half, half) if split == "sign" else torch.arange(2 * half)
    if split == "sign":
        expected = torch.where(codes < 0, codes, codes * 2**shift)
        stored = codes.to(torch.int8)
    else:
        expected = torch.where(codes < half, codes, (codes - half) * 2**shift)
        stored = codes.to(torch.uint8)
    scale = 1.37 * 2.0**exponent
    multiples = ops.dequantize_region(stored, 1.0, shift, bits, split)
    assert torch.equal(multiples, expected.to(torch.float32))
    assert int(multiples.min()) + zero_point >= 0
    assert int(multiples.max()) + zero_point <= span
    if span <= 255:
        aligned = (multiples + zero_point).to(torch.uint8)
        ours = ops.dequantize_per_tensor(aligned, scale, zero_point, 0, 255, torch.uint8)
        assert torch.equal(ours, ops.dequantize_region(stored, scale, shift, bits, split))
