"""What the plan does to the graph: int8 buffers, q/dq pairs, shared quantizers, shared weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant import Decision, Fact
from fxquant.errors import PlanError
from fxquant.passes import Annotate, Apply, Assign, Calibrate
from fxquant.pipeline.pipeline import Pipeline
from fxquant.quant import ops
from tests.backends.tiny import Attention, Mlp, Vit, fingerprint, images, made, shared, tensor, vit
from tests.passes.running import calls, plain, run, start


def stored(q: Any, kind: torch.dtype = torch.int8) -> dict[str, Tensor]:
    return {name: value for name, value in q.named_buffers() if value.dtype is kind}


def test_every_weighted_layer_reads_an_int8_weight_and_a_quantized_input() -> None:
    model, q = shared("vit")
    weighted = [
        n for n in q.graph.nodes if str(n.target) in {"aten.linear.default", "aten.conv2d.default"}
    ]
    assert len(weighted) == 1 + 2 * 4 + 1
    for node in weighted:
        x, weight = node.args[:2]
        if x.target is ops.dequantize_per_token:  # behind norms
            (triple,) = {part.args[0] for part in x.args}
            assert triple.target is ops.quantize_per_token
            assert triple.args[1:] == (0, 255, torch.uint8)
        else:
            assert x.target is ops.dequantize_per_tensor
            assert x.args[0].target is ops.quantize_per_tensor
            assert x.args[1:] == x.args[0].args[1:]
            assert x.args[3:] == (0, 255, torch.uint8)
        assert weight.target is ops.dequantize_per_channel
        assert [part.op for part in weight.args[:3]] == ["get_attr"] * 3
    floats = sum(p.numel() for p in model.parameters() if p.dim() > 1) - 18 * 32
    assert sum(value.numel() for value in stored(q).values()) == floats
    assert not any(p.shape == (32, 65) for p in q.buffers() if p.is_floating_point())


def test_weights_keep_their_largest_value_at_the_end_of_the_range() -> None:
    model, q = shared("vit")
    q = fxquant.quantize(model, calibration=tensor(8, 3, 16, 16), recipe=plain())
    codes = q.get_buffer("blocks_0_mlp_fc1__weight")
    scale = q.get_buffer("blocks_0_mlp_fc1__weight_scale")
    weight = model.get_parameter("blocks.0.mlp.fc1.weight").detach()
    assert scale.dtype is torch.float32
    torch.testing.assert_close(scale, weight.abs().amax(1) / 127)
    assert torch.equal(codes.abs().amax(1), torch.full((65,), 127, dtype=torch.int8))
    assert ((codes.float() * scale[:, None] - weight).abs() <= 0.5001 * scale[:, None]).all()


def test_layers_that_read_one_tensor_share_one_quantizer() -> None:
    model = made(lambda: Attention(16, 2, separate=True))
    q = fxquant.quantize(model, calibration=tensor(4, 5, 16))
    inputs = {
        n.args[0] for n in calls(q, "aten.linear") if str(n.args[1].args[0].target)[0] in "qkv"
    }
    assert len(inputs) == 1
    assert len(calls(q, "quantize_per_tensor.default")) == 2 * 2  # x and the attention's result
    assert len(stored(q)) == 4


def test_different_schemes_of_one_tensor_get_quantizers_of_their_own() -> None:
    model = made(lambda: Attention(16, 2, separate=True))
    recipe = plain().override("a6/tensor/minmax", sites="k:input")
    q = fxquant.quantize(model, calibration=tensor(4, 5, 16), recipe=recipe)
    quantizers = [
        n for n in calls(q, "quantize_per_tensor.default") if "dequantize" not in str(n.target)
    ]
    assert sorted(n.args[4] for n in quantizers) == [63, 255, 255]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(F.silu(self.a(x)))
        return out


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(F.silu(self.fc(x)))
        return out


@pytest.mark.parametrize(("build", "names"), [(Tied, ("b", "b@2")), (Twice, ("fc", "fc@2"))])
def test_a_shared_weight_is_stored_once_and_decided_once(
    build: Any, names: tuple[str, str]
) -> None:
    model, x = made(build), tensor(8, 16)
    q = fxquant.quantize(model, calibration=x)
    assert len(stored(q)) == 1
    assert [q.plan[f"{name}:weight"].scheme for name in names] == [
        q.plan[f"{names[0]}:weight"].scheme
    ] * 2
    # Each call has an input, and so a range, of its own.
    scales = {n.args[1] for n in calls(q, "quantized_decomposed.quantize_per_tensor")}
    assert len(scales) == 2
    spared = plain().override("float", sites=names[1])
    q = fxquant.quantize(model, calibration=x, recipe=spared)
    assert not stored(q)
    assert f"shares its weight with {names[1]}" in q.plan[f"{names[0]}:weight"].reason
    with torch.no_grad():
        assert torch.equal(q(x), model(x))


def test_the_float_graph_and_the_callers_model_come_out_bit_identical() -> None:
    model, x = vit(), images(8)
    before, output = fingerprint(model), model(x)
    state = start(model, x)
    graph, nodes = state.graph, [str(node) for node in state.graph.graph.nodes]
    after = plain().pipeline.run(state)
    assert after.float_graph is graph
    assert [str(node) for node in graph.graph.nodes] == nodes
    assert after.graph is not graph
    fxquant.compile(model, calibration=x, executor="eager")
    assert fingerprint(model) == before
    assert not any(p.grad is not None for p in model.parameters())
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(model(x), output)
    with torch.no_grad():
        assert torch.equal(graph(x), output)


@pytest.mark.parametrize("name", ["vit", "mixer", "swin"])
def test_a_plan_carried_out_again_gives_the_same_bits(name: str, tmp_path: Any) -> None:
    model, q = shared(name)
    q.plan.save(tmp_path / "plan.json")
    plan = fxquant.Plan.load(tmp_path / "plan.json")
    assert plan == q.plan
    again = fxquant.quantize(model, calibration=images(8), plan=plan)
    before, after = q.state_dict(), again.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert [n.args[1:3] for n in calls(q, "quantize_per_tensor")] == [
        n.args[1:3] for n in calls(again, "quantize_per_tensor")
    ]
    with torch.no_grad():
        assert torch.equal(q(images(3, seed=1)), again(images(3, seed=1)))


def test_batches_of_any_size_make_the_same_model() -> None:
    model, x = made(lambda: Mlp(16, 32)), tensor(24, 16)
    whole = fxquant.quantize(model, calibration=x)
    parts = fxquant.quantize(model, calibration=list(x.split(5)))
    pairs = fxquant.quantize(model, calibration=[(b, torch.zeros(len(b))) for b in x.split(7)])
    for other in (parts, pairs):
        torch.testing.assert_close(other(x), whole(x), rtol=1e-5, atol=1e-6)


def test_a_plan_changed_after_calibration_is_refused() -> None:
    model, x = made(lambda: Mlp(16, 32)), tensor(8, 16)
    state = Pipeline((Annotate(), Assign(), Calibrate())).run(start(model, x))
    scheme = fxquant.Scheme.parse("a6/tensor/minmax")
    late = state.plan.with_decision("fc1:input", Decision(scheme=scheme, reason="late"))
    with pytest.raises(PlanError, match="changed after calibration"):
        Apply().run(state.having(Fact.PLAN, late))


def test_a_float_plan_gives_the_float_model() -> None:
    model, x = vit(), images(4)
    state = run(model, x, plain().override("float").pipeline)
    assert not calls(state.graph, "quantized_decomposed")
    with torch.no_grad():
        assert torch.equal(state.graph(x), model(x))


def test_nodes_made_by_passes_know_their_layer_and_source() -> None:
    q = shared("vit")[1]
    for node in calls(q, "quantize"):
        assert node.meta["layer"]
        assert "tiny.py:" in node.meta["source"]


def test_tensors_that_the_plan_replaced_are_gone() -> None:
    q = shared("vit")[1]
    used = {str(n.target) for n in q.graph.nodes if n.op == "get_attr"}
    assert set(q.state_dict()) == used
    assert not isinstance(q, Vit)
