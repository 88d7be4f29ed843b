"""The float and the quantized graph run side by side and stop where they should."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

import fxquant
from fxquant import Pipeline, State
from fxquant.graph.tensors import copy_graph
from fxquant.passes import Annotate, Apply, Assign, Calibrate, stepping
from fxquant.passes.data import gather
from fxquant.passes.running import Runner
from fxquant.passes.stepping import Stop, Walker, in_lockstep
from fxquant.passes.stored import exchange_bias
from fxquant.quant import ops
from tests.backends.tiny import MODELS, images, made
from tests.passes.running import start

SCHEME = fxquant.Scheme.parse


def applied(name: str, activation: str = "a4/tensor/minmax") -> tuple[State, Tensor]:
    """A small model with 4-bit weights, and the images it was calibrated on."""
    build, side = MODELS[name]
    data = images(20, side=side)
    assign = Assign(
        weight=SCHEME("s4/channel/minmax"), activation=SCHEME(activation), simulate="ask"
    )
    steps = Pipeline((Annotate(), assign, Calibrate(progress="never"), Apply()))
    return steps.run(start(made(build), data)), data


def seen_by_runner(graph_module: GraphModule, data: Tensor, nodes: list[str]) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    inputs = {name: (lambda x, name=name: seen.__setitem__(name, x.clone())) for name in nodes}
    Runner(graph_module, inputs=inputs)((data,))
    return seen


@pytest.mark.parametrize("name", list(MODELS))
def test_every_weighted_layer_is_met_once_with_the_inputs_of_both_graphs(name: str) -> None:
    state, data = applied(name)
    stops: list[Stop] = []
    in_lockstep(state.float_graph, state.graph, (data,), state.layers, stops.append)
    weighted = [la.node for la in state.layers if la.kind in {"linear", "conv"}]
    assert [stop.layer.node for stop in stops] == weighted
    exact = seen_by_runner(state.float_graph, data, weighted)
    quantized = seen_by_runner(state.graph, data, weighted)
    for stop in stops:
        assert stop.float_node.graph is state.float_graph.graph
        assert stop.node.graph is state.graph.graph
        assert torch.equal(stop.x, exact[stop.layer.node])
        assert torch.equal(stop.x_hat, quantized[stop.layer.node])


@pytest.mark.parametrize("activation", ["a4/tensor/minmax", "a4/token/dynamic"])
def test_with_float_upstream_only_the_layers_own_quantizer_errs(activation: str) -> None:
    build, _ = MODELS["mixer"]
    model, data = made(build), images(8)
    assign = Assign(
        weight=SCHEME("s4/channel/minmax"),
        activation=SCHEME("a4/tensor/minmax"),
        simulate="ask",
        by_role=(fxquant.passes.Override(activation, sites="channels.*:input"),),
    )
    state = Pipeline((Annotate(), assign, Calibrate(progress="never"), Apply())).run(
        start(model, data)
    )
    stops: list[Stop] = []
    in_lockstep(
        state.float_graph, state.graph, (data,), state.layers, stops.append, upstream="float"
    )
    for stop in stops:
        source = stop.node.args[0]
        if source.target is ops.dequantize_per_tensor:  # type: ignore[union-attr]
            codes = ops.quantize_per_tensor(stop.x, *source.args[1:])  # type: ignore[union-attr]
            wanted = ops.dequantize_per_tensor(codes, *source.args[1:])  # type: ignore[union-attr]
        else:
            wanted = ops.dequantize_per_token(*ops.quantize_per_token(stop.x, 0, 15, torch.uint8))
        assert torch.equal(stop.x_hat, wanted)
    kinds = {stop.node.args[0].target for stop in stops}  # type: ignore[union-attr]
    assert (ops.dequantize_per_token in kinds) == (activation == "a4/token/dynamic")


def test_what_a_visit_exchanges_is_what_the_rest_of_the_graph_runs_with() -> None:
    state, data = applied("vit")
    made_graph = GraphModule(state.graph, copy_graph(state.graph.graph))
    first = next(la for la in state.layers if la.kind == "linear")
    scale = str(
        next(n for n in made_graph.graph.nodes if n.name == first.node).args[1].args[1].target
    )
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, tuple[Tensor, Tensor]] = {}

    def visit(stop: Stop) -> None:
        inputs[stop.layer.node] = stop.x_hat
        if stop.layer is first:
            before = stop.now()
            made_graph.register_buffer(scale, made_graph.get_buffer(scale) * 2)
            exchange_bias(made_graph, stop.layer.name, stop.node, torch.ones(before.shape[-1]))
            outputs["first"] = (before, stop.now())

    in_lockstep(state.float_graph, made_graph, (data,), state.layers, visit)
    assert not torch.equal(*outputs["first"])
    made_graph.recompile()
    changed = seen_by_runner(made_graph, data, list(inputs))
    plain = seen_by_runner(state.graph, data, list(inputs))
    assert all(torch.equal(inputs[name], changed[name]) for name in inputs)
    assert any(not torch.equal(changed[name], plain[name]) for name in inputs)


@pytest.mark.parametrize("name", list(MODELS))
def test_what_a_visit_computed_is_not_computed_again(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, data = applied(name)
    weighted = [la.node for la in state.layers if la.kind in {"linear", "conv"}]
    plain = seen_by_runner(state.graph, data, weighted)
    run: list[Node] = []
    call = stepping._call

    def counting(node: Node, args: Any, kwargs: Any) -> Any:
        run.append(node)
        return call(node, args, kwargs)

    def visit(stop: Stop) -> None:
        stop.exact()
        stop.becomes(stop.now())
        assert torch.equal(stop.x_hat, plain[stop.layer.node])

    monkeypatch.setattr(stepping, "_call", counting)
    in_lockstep(state.float_graph, state.graph, (data,), state.layers, visit)
    assert sorted(node.name for node in run if node.name in weighted) == sorted(weighted * 2)


def test_the_graph_runs_on_with_what_a_layer_is_said_to_become() -> None:
    state, data = applied("mixer")
    linears = [la.node for la in state.layers if la.kind == "linear"]
    seen: dict[str, Tensor] = {}

    def visit(stop: Stop) -> None:
        seen[stop.layer.node] = stop.x_hat
        if stop.layer.node == linears[0]:
            stop.becomes(torch.zeros_like(stop.now()))

    in_lockstep(state.float_graph, state.graph, (data,), state.layers, visit)
    plain = seen_by_runner(state.graph, data, linears)
    assert torch.equal(seen[linears[0]], plain[linears[0]])
    assert not torch.equal(seen[linears[1]], plain[linears[1]])


def test_values_are_held_no_longer_than_somebody_will_read_them() -> None:
    state, data = applied("vit")
    walker = Walker(state.float_graph, (data,))
    nodes = list(state.float_graph.graph.nodes)
    with torch.no_grad():
        for i, node in enumerate(nodes):
            if node.op == "get_attr":
                continue
            walker.run_until(node)
            later = {read for reader in nodes[i:] for read in reader.all_input_nodes}
            assert set(walker._values) <= later
        walker.run_until(None)
        result = walker.value(nodes[-1])
        leaves = torch.utils._pytree.tree_leaves(result)
        assert torch.equal(leaves[0], state.float_graph(data))


def test_a_constant_stop_does_not_run_the_graph_to_its_end() -> None:
    state, data = applied("vit")
    walker = Walker(state.graph, (data,))
    constant = next(n for n in state.graph.graph.nodes if n.target is ops.dequantize_per_channel)
    walker.run_until(constant)
    assert not walker._values
    assert walker.value(constant).dtype is torch.float32


def test_a_layer_that_is_in_one_graph_only_is_passed_by() -> None:
    state, data = applied("mixer")
    other = GraphModule(state.graph, copy_graph(state.graph.graph))
    renamed = next(la for la in state.layers if la.kind == "linear")
    next(n for n in other.graph.nodes if n.name == renamed.node).name = "elsewhere"
    stops: list[Stop] = []
    in_lockstep(state.float_graph, other, (data,), state.layers, stops.append)
    wanted = {la.node for la in state.layers if la.kind in {"linear", "conv"}} - {renamed.node}
    assert {stop.layer.node for stop in stops} == wanted


@pytest.mark.parametrize("count", [1, 16, 17, 20, 99])
def test_a_sample_is_the_first_images_even_beyond_one_batch(count: int) -> None:
    state, data = applied("mixer")
    assert state.calibration is not None
    (leaf,) = gather(state.calibration, count, where="test")
    assert torch.equal(leaf, data[:count])
