"""What calibration finds: ranges by observers, searched parameters on samples, gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant import Pipeline, Scheme, State
from fxquant.errors import CalibrationError, PipelineError
from fxquant.passes import Annotate, Assign, Calibrate, OpenAttention, Override
from fxquant.passes.calibrate import static_sites
from fxquant.passes.fisher import values_and_importance
from fxquant.passes.sampling import RowSample
from fxquant.passes.watched import watched_tensors
from fxquant.quant.qparams import QParams
from fxquant.quant.search import search_qparams
from tests.backends.tiny import Attention, Mlp, images, made, tensor, vit
from tests.passes.running import start

MINMAX = Scheme.parse("a4/tensor/minmax")


def calibrated(
    model: nn.Module,
    data: Tensor,
    *overrides: Override,
    step: Calibrate | None = None,
    **given: Any,
) -> State:
    assign = Assign(overrides=overrides, **given)
    steps = Pipeline((Annotate(), OpenAttention(), assign, step or Calibrate()))
    return steps.run(start(model, data))


def same(one: QParams, other: QParams) -> bool:
    fields = ("scheme", "shift", "base", "offset", "split")
    tensors = (one.scale, other.scale), (one.zero_point, other.zero_point)
    return all(getattr(one, f) == getattr(other, f) for f in fields) and all(
        torch.equal(*pair) for pair in tensors
    )


def attention_operands(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Both operands of both products of :class:`Attention`, by site."""
    with torch.no_grad():
        batch, tokens, _ = x.shape
        qkv = model.qkv(x).reshape(batch, tokens, 3, 2, -1)  # type: ignore[operator]
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        shares = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
    return {"qk:lhs": q, "qk:rhs": k.transpose(-2, -1), "av:lhs": shares, "av:rhs": v}


def test_every_static_activation_site_is_calibrated() -> None:
    dynamic = Override("a8/token/dynamic", "proj:input")
    state = calibrated(made(lambda: Attention(16, 2)), tensor(8, 5, 16), dynamic, matmul=MINMAX)
    sites = ["qkv:input", "qk:lhs", "qk:rhs", "av:lhs", "av:rhs"]
    assert list(state.statistics) == list(static_sites(state.plan, state.layers)) == sites
    assert all(state.statistics[s].scheme == state.plan[s].scheme for s in sites)


@pytest.mark.parametrize("text", ["a4/tensor/minmax", "s6/tensor/minmax", "a4/head/minmax"])
def test_operands_of_products_have_their_own_ranges(text: str) -> None:
    model, x, scheme = made(lambda: Attention(16, 2)), tensor(20, 5, 16), Scheme.parse(text)
    state = calibrated(model, x, matmul=scheme)
    for site, value in attention_operands(model, x).items():
        axes = (0, 2, 3) if scheme.granularity == "head" else (0, 1, 2, 3)
        low, high = value.amin(axes).clamp(max=0.0), value.amax(axes).clamp(min=0.0)
        reach = torch.maximum(-low, high) if scheme.symmetric else high - low
        steps = scheme.quant_max if scheme.symmetric else scheme.quant_max - scheme.quant_min
        found = state.statistics[site]
        torch.testing.assert_close(found.scale, reach / steps, rtol=1e-4, atol=1e-7)
        assert found.scale.shape == ((2,) if scheme.granularity == "head" else ())


KINDS = ("region_4/tensor/mse", "log2_4/head/mse", "adalog_4/tensor/minmax", "log_sqrt2_4/head/mse")


@pytest.mark.parametrize("text", KINDS)
def test_other_kinds_are_searched_on_a_sample_of_all_data(text: str) -> None:
    model, x, scheme = made(lambda: Attention(16, 2)), tensor(20, 5, 16), Scheme.parse(text)
    state = calibrated(model, x, matmul=scheme, step=Calibrate(rows=32))
    for site, value in attention_operands(model, x).items():
        sample = RowSample(32, heads=scheme.granularity == "head")
        sample.update(value)
        found = state.statistics[site]
        wanted = search_qparams(scheme, sample.rows(), low=sample.low, high=sample.high)
        torch.testing.assert_close(found.scale, wanted.scale, rtol=1e-3, atol=0.0)
        assert (found.shift, found.base, found.split) == (wanted.shift, wanted.base, wanted.split)
        assert found.scheme == scheme


def test_the_data_decides_not_the_batches() -> None:
    model, x = made(lambda: Mlp(16, 32)), tensor(48, 3, 16)
    assign = Assign(
        overrides=(Override("a4/tensor/output"), Override("adalog_4/tensor/mse", "fc2"))
    )
    steps = Pipeline((Annotate(), assign, Calibrate(rows=50)))
    whole, parts = steps.run(start(model, x)), start(model, x)
    parts.calibration._source = list(x.split(7))  # type: ignore[union-attr]
    for site, found in steps.run(parts).statistics.items():
        torch.testing.assert_close(found.scale, whole.statistics[site].scale)


def test_a_quantizer_that_several_layers_read_is_searched_once_for_all_of_them() -> None:
    model, x = made(lambda: Attention(16, 2, separate=True)), tensor(16, 5, 16)
    state = calibrated(model, x, Override("a4/tensor/output", role="qkv"))
    found = [state.statistics[f"{name}:input"] for name in "qkv"]
    assert found[0] is found[1] is found[2]
    weight = torch.cat([getattr(model, name).weight.detach() for name in "qkv"])
    rows = x.reshape(-1, 16)
    wanted = search_qparams(found[0].scheme, rows, low=x.min(), high=x.max(), output=weight)
    assert same(found[0], wanted)
    sites = static_sites(state.plan, state.layers)
    shared = next(w for w in watched_tensors(state.float_graph, sites) if "q:input" in w.sites)
    assert shared.sites == ["q:input", "k:input", "v:input"]


def test_at_a_convolution_rows_are_patches() -> None:
    """A patch times the weight's row is the convolution, so its errors are the output's."""
    model = made(lambda: nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Flatten(2), nn.Linear(16, 4)))
    x = tensor(4, 3, 8, 8)
    state = calibrated(model, x, Override("a4/tensor/output", "0:input"))
    sites = static_sites(state.plan, state.layers)
    watched = watched_tensors(state.float_graph, sites)[0]
    rows, weight = watched.rows(x), watched.weight(state.float_graph)
    with torch.no_grad():
        output = F.conv2d(x, model[0].weight, stride=2, padding=1)  # type: ignore[index]
    expected = output.flatten(2).transpose(1, 2)
    torch.testing.assert_close(rows @ weight.t(), expected, rtol=1e-4, atol=1e-5)
    wanted = search_qparams(
        MINMAX.parse("a4/tensor/output"),
        rows.reshape(-1, 27),
        low=min(0.0, float(rows.min())),
        high=float(rows.max()),
        output=weight,
    )
    assert same(state.statistics["0:input"], wanted)


def test_errors_cannot_be_weighed_at_a_grouped_convolution() -> None:
    model = made(lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Flatten(2)))
    with pytest.raises(CalibrationError, match="ungrouped") as caught:
        calibrated(model, tensor(4, 4, 8, 8), Override("a4/tensor/output", "0:input"))
    assert "0:input" in caught.value.where


def test_weighed_by_the_other_operand_a_product_loses_less_than_by_its_own_error() -> None:
    """One key channel is tiny, so the query's error there hardly matters; in another one it does.

    The search under ``output`` sees that, and the error of the product is no larger.
    """

    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(self.q(x), self.k(x), x)

    model, x = made(Product), tensor(32, 5, 16)
    with torch.no_grad():
        model.q.weight[0] *= 8.0  # type: ignore[union-attr,index]
        model.k.weight[0] *= 1e-3  # type: ignore[union-attr,index]
        q, k = model.q(x), model.k(x)  # type: ignore[operator]
    errors = {}
    for rule in ("mse", "output"):
        scheme = f"s4/tensor/{rule}"
        state = calibrated(model, x, Override(scheme, "qk:lhs"), step=Calibrate(rows=160))
        found = state.statistics["qk:lhs"]
        quantized = fxquant.quant.uniform.fake_quantize(q, found)
        errors[rule] = float(((quantized - q) @ k.transpose(1, 2)).square().sum())
    assert errors["output"] < 0.5 * errors["mse"]


def test_importance_is_the_squared_gradient_at_each_layers_output() -> None:
    model, x = made(lambda: Mlp(16, 8)), tensor(6, 16)
    state = calibrated(model, x)
    nodes = {layer.name: layer.node for layer in state.layers}
    graph_nodes = {node.name: node for node in state.float_graph.graph.nodes}
    sources = {nodes[n]: graph_nodes[nodes[n]].args[0].name for n in ("fc1", "fc2")}
    found = values_and_importance(state.float_graph, (x,), sources)
    inner = model.fc1(x)  # type: ignore[operator]
    logits = model.fc2(F.gelu(inner))  # type: ignore[operator]
    # the gradient of the cross entropy at the logits has a closed form
    at_logits = logits.softmax(-1) - F.one_hot(logits.argmax(-1), logits.shape[-1])
    torch.testing.assert_close(found[nodes["fc2"]][1], at_logits.square().detach())
    at_inner = torch.autograd.grad(logits, inner, at_logits)[0]
    torch.testing.assert_close(found[nodes["fc1"]][1], at_inner.square().detach())
    torch.testing.assert_close(found[nodes["fc1"]][0], x)
    assert all(p.grad is None for p in model.parameters())


def test_the_fisher_rule_searches_on_the_rows_that_have_gradients() -> None:
    model, x = made(lambda: Mlp(16, 8)), tensor(24, 3, 16)
    state = calibrated(model, x, Override("a4/tensor/fisher", "fc1"))
    graph = state.float_graph
    layer = next(layer for layer in state.layers if layer.name == "fc1")
    source = next(n for n in graph.graph.nodes if n.name == layer.node).args[0].name
    values, importance = values_and_importance(graph, (x[:16],), {layer.node: source})[layer.node]
    wanted = search_qparams(
        Scheme.parse("a4/tensor/fisher"),
        values.reshape(-1, 16),
        low=x.min(),
        high=x.max(),  # of all images
        output=model.fc1.weight.detach(),  # type: ignore[union-attr]
        importance=importance.reshape(-1, 8),
    )
    assert same(state.statistics["fc1:input"], wanted)


@pytest.mark.parametrize("scheme", ["a4/tensor/fisher", "region_4/tensor/fisher"])
def test_the_fisher_rule_reaches_every_weighted_layer(scheme: str) -> None:
    state = calibrated(vit(1), images(4), Override(scheme), step=Calibrate(rows=32))
    assert all(float(q.scale) > 0 for q in state.statistics.values())
    assert len(state.statistics) == 6


def test_the_fisher_rule_needs_scores() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1 = nn.Linear(16, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc1(x).squeeze(-1)

    with pytest.raises(CalibrationError, match="no scores"):
        calibrated(made(Flat), tensor(8, 16), Override("a4/tensor/fisher", "fc1"))


def test_only_the_first_images_are_read_where_a_number_is_given() -> None:
    model, x = made(lambda: Mlp(16, 8)), tensor(40, 16)
    few = calibrated(model, x, step=Calibrate(images=20))
    alone = calibrated(model, x[:20])
    everything = calibrated(model, x)
    for site, found in few.statistics.items():
        assert same(found, alone.statistics[site])
    assert not same(few.statistics["fc1:input"], everything.statistics["fc1:input"])
    more = calibrated(model, x, step=Calibrate(images=400))
    assert same(more.statistics["fc1:input"], everything.statistics["fc1:input"])


@pytest.mark.parametrize("options", [{"images": -1}, {"rows": 0}])
def test_options_that_read_nothing_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(PipelineError, match="cannot calibrate"):
        Calibrate(**options)  # type: ignore[arg-type]


def test_what_is_not_finite_names_its_site() -> None:
    model, x = made(lambda: Mlp(16, 8)), tensor(8, 16)
    with torch.no_grad():
        model.fc1.weight[0, 0] = float("inf")  # type: ignore[union-attr,index]
    for scheme in ("a8/tensor/minmax", "adalog_4/tensor/mse"):
        recipe = fxquant.recipe("w8a8").override(scheme, sites="fc2:input")
        with pytest.raises(CalibrationError, match="NaN or infinity") as caught:
            fxquant.quantize(model, calibration=x, recipe=recipe, backend="reference")
        assert "fc2:input" in caught.value.where
