"""Exponentials and weighted means: the softmax and its product, taken apart exactly."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from fxquant.graph.weighted import row_exponentials, weighted_mean

SHAPES = st.tuples(
    st.lists(st.integers(1, 3), max_size=2), st.integers(1, 6), st.integers(1, 9), st.integers(1, 5)
)


@st.composite
def operands(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Scores ``[..., n, m]`` of any size, and values ``[..., m, d]``, in float64."""
    batch, queries, keys, depth = draw(SHAPES)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    size, shift = draw(st.sampled_from([1e-3, 1.0, 30.0, 1e3])), draw(st.floats(-1e4, 1e4))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    return normal(*batch, queries, keys) * size + shift, normal(*batch, keys, depth)


@given(operands())
def test_a_weighted_mean_of_exponentials_is_the_softmax_times_the_values(
    given_operands: tuple[Tensor, Tensor],
) -> None:
    scores, values = given_operands
    ours = weighted_mean(row_exponentials(scores), values)
    expected = torch.softmax(scores, -1) @ values
    assert ours.shape == expected.shape
    assert float((ours - expected).abs().max()) <= 1e-12


@given(operands())
def test_exponentials_are_at_most_one_and_one_at_the_largest_score(
    given_operands: tuple[Tensor, Tensor],
) -> None:
    scores, _ = given_operands
    found = row_exponentials(scores)
    assert found.shape == scores.shape
    assert ((found >= 0) & (found <= 1)).all()
    assert (found[scores == scores.amax(-1, keepdim=True)] == 1).all()
    near = scores > scores.amax(-1, keepdim=True) - 700  # beyond, float64 has no smaller numbers
    assert (found[near] > 0).all()


@given(operands(), st.integers(2, 255))
def test_a_weighted_mean_lies_within_the_values_whatever_the_codes_of_its_weights(
    given_operands: tuple[Tensor, Tensor], steps: int
) -> None:
    scores, values = given_operands
    codes = torch.round(row_exponentials(scores) * steps) / steps
    found = weighted_mean(codes, values)
    low, high = values.amin(-2, keepdim=True), values.amax(-2, keepdim=True)
    assert (found >= low - 1e-12).all()
    assert (found <= high + 1e-12).all()


@given(operands(), st.floats(0.01, 100.0))
def test_a_common_factor_of_the_weights_does_not_matter(
    given_operands: tuple[Tensor, Tensor], factor: float
) -> None:
    scores, values = given_operands
    weights = row_exponentials(scores)
    torch.testing.assert_close(
        weighted_mean(weights * factor, values), weighted_mean(weights, values)
    )


def test_known_numbers() -> None:
    scores = torch.tensor([[0.0, math.log(3.0)], [5.0, 5.0]], dtype=torch.float64)
    weights = row_exponentials(scores)
    expected = torch.tensor([[1 / 3, 1.0], [1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(weights, expected)
    values = torch.tensor([[4.0], [8.0]], dtype=torch.float64)
    means = torch.tensor([[7.0], [6.0]], dtype=torch.float64)
    torch.testing.assert_close(weighted_mean(weights, values), means)


def test_a_key_that_a_mask_takes_away_has_no_weight() -> None:
    scores, values = torch.tensor([[1.0, -math.inf, 0.0]]), torch.tensor([[1.0], [1e6], [1.0]])
    weights = row_exponentials(scores)
    assert weights[0, 1] == 0
    assert weighted_mean(weights, values).tolist() == [[1.0]]


class Both(nn.Module):
    def forward(self, scores: Tensor, values: Tensor) -> Tensor:
        out: Tensor = weighted_mean(row_exponentials(scores), values)
        return out


SCORES, VALUES = torch.randn(2, 5, 6), torch.randn(2, 6, 3)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's own
def test_both_are_kept_by_export_and_decompose_into_plain_operators() -> None:
    exported = torch.export.export(Both(), (SCORES, VALUES))
    targets = [n.target for n in exported.graph.nodes if n.op == "call_function"]
    assert targets == [row_exponentials, weighted_mean]
    decomposed = exported.run_decompositions()
    names = {str(n.target) for n in decomposed.graph.nodes if n.op == "call_function"}
    assert not any("fxquant" in name for name in names)
    assert {"aten.exp.default", "aten.amax.default", "aten.div.Tensor"} <= names
    expected = torch.softmax(SCORES, -1) @ VALUES
    for program in (exported, decomposed):
        torch.testing.assert_close(program.module()(SCORES, VALUES), expected)


def test_both_have_shapes_without_data() -> None:
    with FakeTensorMode() as mode:
        scores, values = (mode.from_tensor(x) for x in (SCORES, VALUES))
        weights = row_exponentials(scores)
        assert (weights.shape, weights.dtype) == (SCORES.shape, torch.float32)
        assert weighted_mean(weights, values).shape == (2, 5, 3)
    traced = make_fx(Both(), tracing_mode="symbolic")(SCORES, VALUES)
    longer = torch.randn(3, 4, 7), torch.randn(3, 7, 2)
    torch.testing.assert_close(traced(*longer), Both()(*longer))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_have_the_dtype_of_their_operands(dtype: torch.dtype) -> None:
    assert Both()(SCORES.to(dtype), VALUES.to(dtype)).dtype is dtype


def test_gradients_flow_through_both() -> None:
    scores = SCORES[:1, :2, :3].double().requires_grad_()
    values = VALUES[:1, :3].double().requires_grad_()
    assert torch.autograd.gradcheck(Both(), (scores, values))
