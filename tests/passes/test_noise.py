"""NoisyQuant as a pass: what goes into graph and plan, and comes out of them again."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import Fact, Pipeline, State
from fxquant.errors import CalibrationError, PlanError
from fxquant.graph.tensors import tensor_at
from fxquant.passes import Annotate, Apply, Assign, Calibrate
from fxquant.passes.noise import Noise
from fxquant.passes.running import Runner
from fxquant.passes.smooth import Smooth
from fxquant.passes.stored import weight_value
from fxquant.quant.scheme import Scheme
from tests.backends.tiny import MODELS, Block, images, made, tensor
from tests.passes.noising import choices, noisy, outputs, quantized, site_of, steps, with_choice
from tests.passes.running import calls, start
from tests.passes.smoothing import randomized

DIM, TOKENS = 16, 6
FC2 = "mlp.fc2:input"


def block() -> nn.Module:
    return randomized(made(lambda: Block(DIM, 2 * DIM)))


def block_state(**options: Any) -> State:
    return quantized(block(), tensor(16, TOKENS, DIM), **options)


def pipeline(**options: Any) -> Pipeline:
    return Pipeline((*steps("s4/tensor/minmax"), Noise(**options)))


@pytest.mark.parametrize("name", list(MODELS))
def test_every_quantizer_gets_a_choice_and_the_model_still_runs(name: str) -> None:
    build, side = MODELS[name]
    x = images(16, side=side)
    state = quantized(made(build), x, scheme="s4/tensor/minmax")
    after = noisy(state, seed=1)
    found = choices(after.plan)
    weighted = [layer for layer in state.layers if layer.kind in {"linear", "conv"}]
    assert set(found) == {f"{layer.name}:input" for layer in weighted}
    for place, choice in found.items():
        assert 0.0 <= choice["error_after"] <= choice["error_before"], place
        assert (choice["n"] == 0.0) == (choice["fold"] == "none")
        assert (choice["error_after"] < choice["error_before"]) == (choice["n"] > 0.0)
        assert choice["reason"]
    assert any(choice["n"] > 0.0 for choice in found.values())
    assert outputs(after.graph, x).isfinite().all()
    graph = after.graph
    assert set(graph.state_dict()) == {
        str(n.target) for n in graph.graph.nodes if n.op == "get_attr"
    }


def test_the_recorded_errors_are_those_of_the_graph() -> None:
    """Error of fc2's output on the rows that reached it, measured in the finished graph."""
    x = tensor(16, 40, DIM)
    state = quantized(block(), x, scheme="s4/tensor/minmax")
    after = noisy(state, roles=("fc2",), noise="searched")
    choice = choices(after.plan)[FC2]
    assert choice["n"] > 0.0
    site = site_of(state, FC2)
    weight = weight_value(state.graph, site.readers[0].node)
    assert weight is not None
    errors = {}
    for name, graph in (("error_before", state.graph), ("error_after", after.graph)):
        kept: dict[str, Tensor] = {}
        gelu = calls(graph, "aten.gelu")[0].name
        fc2 = site.readers[0].node.name
        runner = Runner(
            graph,
            outputs={
                gelu: lambda v, k=kept: k.__setitem__("x", v),  # type: ignore[misc]
                fc2: lambda v, k=kept: k.__setitem__("y", v),  # type: ignore[misc]
            },
        )
        runner((x,))
        bias = tensor_at(state.graph, "mlp.fc2.bias")
        exact = kept["x"] @ weight.t()
        error = (kept["y"] - bias - exact).square().sum() / exact.square().sum()
        errors[name] = float(error.detach())
    for name, error in errors.items():
        assert error == pytest.approx(choice[name], rel=1e-3)


def test_the_bias_takes_off_the_image_under_the_final_weight() -> None:
    state = block_state()
    after = noisy(with_choice(state, FC2, n=0.1))
    added = tensor_at(after.graph, "mlp_fc2__noise")
    assert added.dtype is torch.float32
    assert added.abs().max() <= 0.1
    weight = weight_value(state.graph, site_of(state, FC2).readers[0].node)
    assert weight is not None
    moved = tensor_at(state.graph, "mlp.fc2.bias") - tensor_at(after.graph, "mlp_fc2__bias")
    torch.testing.assert_close(moved, weight @ added, rtol=1e-5, atol=1e-7)
    original = block().mlp.fc2.weight  # type: ignore[union-attr]
    assert not torch.allclose(moved, original @ added, rtol=1e-3)  # type: ignore[operator]


def test_one_seed_gives_the_same_bits_and_another_other_ones() -> None:
    state = block_state(scheme="s4/tensor/minmax")
    one, again, other = (noisy(state, seed=seed).graph.state_dict() for seed in (0, 0, 1))
    assert list(one) == list(again)
    assert all(torch.equal(value, again[key]) for key, value in one.items())
    assert any(key not in other or not torch.equal(v, other[key]) for key, v in one.items())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"noise": "gaussian_code", "steps": 1},
        {"noise": "searched", "bias": "recentred", "clip": "search"},
    ],
)
def test_a_saved_plan_gives_the_same_bits_without_a_search(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, model = tensor(16, TOKENS, DIM), block()
    steps_text = pipeline(**options)
    q = fxquant.quantize(model, calibration=x, pipeline=steps_text, backend="reference")
    assert any(choice["n"] or choice["offset"] for choice in choices(q.plan).values())
    q.plan.save(tmp_path / "plan.json")
    plan = fxquant.Plan.load(tmp_path / "plan.json")

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("searched although the plan says what to do")

    monkeypatch.setattr("fxquant.passes.noise.search", never)
    again = fxquant.quantize(
        model, calibration=x, plan=plan, pipeline=steps_text, backend="reference"
    )
    assert choices(again.plan) == choices(q.plan)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in q.state_dict().items())
    with torch.no_grad():
        assert torch.equal(q(x), again(x))


def test_an_artifact_holds_the_noise_exactly(tmp_path: Path) -> None:
    x = tensor(16, TOKENS, DIM)
    q = fxquant.quantize(block(), calibration=x, pipeline=pipeline(), backend="reference")
    q.save(tmp_path / "noisy.fxq")
    loaded = fxquant.load(tmp_path / "noisy.fxq")
    assert choices(loaded.plan) == choices(q.plan)
    with torch.no_grad():
        assert torch.equal(q(x), loaded(x))


def test_a_shared_quantizer_has_one_choice_and_each_reader_a_bias_of_its_own() -> None:
    model = randomized(made(lambda: Block(DIM, 2 * DIM, separate=True)))
    state = quantized(model, tensor(16, TOKENS, DIM), scheme="s4/tensor/minmax")
    after = noisy(with_choice(state, "attn.k:input", n=0.2, fold="layer_norm"))
    found = choices(after.plan)
    assert found["attn.q:input"] == found["attn.k:input"] == found["attn.v:input"]
    moved = tensor_at(after.graph, "norm1__bias") - tensor_at(state.graph, "norm1.bias")
    for reader in site_of(state, "attn.k:input").readers:
        weight = weight_value(state.graph, reader.node)
        assert weight is not None
        name = reader.layer.name
        taken = tensor_at(state.graph, f"{name}.bias") - tensor_at(
            after.graph, name.replace(".", "_") + "__bias"
        )
        torch.testing.assert_close(taken, weight @ moved, rtol=1e-4, atol=1e-6)
    plan = after.plan.with_choice("noise", "attn.q:input", {**found["attn.q:input"], "n": 0.1})
    with pytest.raises(PlanError, match="share a quantizer differ"):
        noisy(state.having(Fact.PLAN, plan))


def test_roles_and_images_bound_what_is_looked_at() -> None:
    state = block_state(scheme="s4/tensor/minmax")
    after = noisy(state, roles=("fc2", "proj"), images=2)
    assert set(choices(after.plan)) == {FC2, "attn.proj:input"}
    assert noisy(state, images=40).log[-1].text.startswith("noise at")


def test_recentring_keeps_the_mean_error_where_it_was() -> None:
    x = tensor(16, TOKENS, DIM)
    state = quantized(block(), x, scheme="s4/tensor/minmax")
    n = site_of(state, FC2).step
    means = {}
    for bias in ("image", "recentred"):
        after = noisy(with_choice(state, FC2, n=n), bias=bias, rows=10**6)
        means[bias] = (outputs(after.graph, x) - outputs(state.graph, x)).mean((0, 1)).abs().max()
    assert means["recentred"] < 1e-5
    assert means["image"] > 1e-3


def test_a_wider_clip_is_followed_in_both_halves_of_the_quantizer() -> None:
    state = block_state()
    after = noisy(with_choice(state, FC2, n=0.0, clip=1.25))
    site, before = site_of(after, FC2), site_of(state, FC2)
    assert site.step == pytest.approx(1.25 * before.step)
    assert site.quantize.args[1:] == site.dequantize.args[1:]
    found = choices(noisy(block_state(scheme="s4/tensor/minmax"), clip="search").plan)
    assert all(choice["error_after"] <= choice["error_before"] for choice in found.values())


def test_noise_comes_after_smoothing_and_goes_into_the_new_norm() -> None:
    x, model = tensor(16, TOKENS, DIM), block()
    assign = Assign(activation=Scheme.parse("s4/tensor/minmax"), attention="float32")
    passes = (Annotate(), Smooth(), assign, Calibrate(), Apply())
    state = Pipeline(passes).run(start(model, x))
    n = site_of(state, "mlp.fc1:input").step / 2
    after = noisy(with_choice(state, "mlp.fc1:input", n=n, fold="layer_norm"))
    place = calls(after.graph, "layer_norm")[1].args[3]
    smooth_place = calls(state.graph, "layer_norm")[1].args[3]
    moved = tensor_at(after.graph, str(place.target)) - tensor_at(  # type: ignore[union-attr]
        state.graph,
        str(smooth_place.target),  # type: ignore[union-attr]
    )
    assert 0.0 < moved.abs().max() <= n * 1.001
    assert not torch.equal(tensor_at(state.graph, str(smooth_place.target)), model.norm2.bias)  # type: ignore[union-attr, arg-type]
    searched = noisy(state)
    for choice in choices(searched.plan).values():
        assert choice["error_after"] <= choice["error_before"]


def test_sites_found_per_token_and_padded_convolutions_decline() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 16, 3, padding=1)
            self.grouped = nn.Conv2d(16, 16, 1, groups=2)
            self.head = nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.grouped(torch.relu(self.conv(x))).mean((2, 3)))
            return out

    state = quantized(made(Padded), images(8))
    after = noisy(state, seed=1)
    found = choices(after.plan)
    assert "zeros are padded in after the quantizer" in found["conv:input"]["reason"]
    assert "grouped convolution" in found["grouped:input"]["reason"]
    assert found["conv:input"]["declined"]
    assert any(note.layer == "conv" and "no noise" in note.text for note in after.log)
    assert "declined" not in found["head:input"]
    dynamic = fxquant.recipe("w8a8-dynamic").pipeline.after("apply", Noise())
    q = fxquant.quantize(block(), example=tensor(2, TOKENS, DIM), pipeline=dynamic)
    assert all("found per token" in choice["reason"] for choice in choices(q.plan).values())
    assert choices(q.plan)


def test_a_patch_embedding_gets_one_value_per_image_channel() -> None:
    x = images(8)
    model = made(lambda: nn.Sequential(nn.Conv2d(3, 16, 4, 4, bias=False), nn.Flatten(2)))
    state = quantized(model, x, scheme="s4/tensor/minmax")
    after = noisy(with_choice(state, "0:input", n=0.5))
    added = tensor_at(after.graph, "0__noise")
    assert added.shape == (3, 1, 1)
    weight = weight_value(state.graph, site_of(state, "0:input").readers[0].node)
    assert weight is not None
    image = torch.nn.functional.conv2d(added.expand(1, 3, 4, 4), weight)[0, :, 0, 0]
    torch.testing.assert_close(tensor_at(after.graph, "0__bias"), -image)
    searched = choices(noisy(state, noise="searched").plan)["0:input"]
    assert searched["error_after"] <= searched["error_before"]


def test_choices_that_do_not_fit_are_refused() -> None:
    state = block_state()
    with pytest.raises(PlanError, match="cannot be folded as 'value_bias'"):
        noisy(with_choice(state, FC2, n=0.1, fold="value_bias"))
    for wrong in (-0.1, float("nan"), "much", None, True):
        with pytest.raises(PlanError, match="n cannot be"):
            noisy(with_choice(state, FC2, n=wrong))
    with pytest.raises(PlanError, match="clip cannot be 0"):
        noisy(with_choice(state, FC2, n=0.1, clip=0))
    padded = quantized(made(lambda: nn.Sequential(nn.Conv2d(3, 16, 3, padding=1))), images(4))
    with pytest.raises(PlanError, match="does not fit the model"):
        noisy(with_choice(padded, "0:input", n=0.1))


def test_searching_needs_calibration_data_and_following_a_plan_does_not() -> None:
    state = block_state().having(Fact.CALIBRATION, None)
    with pytest.raises(CalibrationError, match="searched on calibration data"):
        noisy(state)
    after = noisy(with_choice(state, FC2, n=0.1))
    assert "mlp_fc2__noise" in after.graph.state_dict()


def test_the_x86_graph_gets_no_kernel_and_no_addition_from_folded_noise() -> None:
    x, model = tensor(16, TOKENS, 32), randomized(made(lambda: Block(32, 64)))
    plain = fxquant.recipe("w8a8").pipeline.without("plan")
    roles = ("qkv", "proj", "fc1")
    lowered = []
    for steps_text in (plain, plain.after("apply", Noise(roles=roles, steps=4))):
        q = fxquant.quantize(model, calibration=x, pipeline=steps_text, backend="x86")
        lowered.append(fxquant.lower(q, executor="eager", strict=True))
    assert choices(lowered[1].plan)
    graphs = [low.graph_module.graph for low in lowered]
    kinds = [[str(n.target) for n in graph.nodes if n.op == "call_function"] for graph in graphs]
    assert kinds[0] == kinds[1]


def test_the_pipeline_prints_and_parses() -> None:
    step = Noise(noise="searched", seed=3, roles=("fc2",), fold="free")
    text = str(Pipeline((*steps(), step)))
    assert '"noise": "searched"' in text
    known = {kind.name: kind for kind in (Annotate, Assign, Calibrate, Apply, Noise)}
    assert Pipeline.parse(text, known).passes[-1] == step
    assert copy.deepcopy(step) == step
