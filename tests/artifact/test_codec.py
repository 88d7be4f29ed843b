"""Graph to JSON and back: equal bits, and nothing that a hostile file could smuggle in."""

from __future__ import annotations

import json
import math
import operator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.fx import GraphModule

from fxquant.artifact import allowlist, checks
from fxquant.artifact.arguments import decode_argument, encode_argument
from fxquant.artifact.codec import graph_to_json
from fxquant.artifact.structure import decode_structure, encode_structure
from fxquant.capture import capture
from fxquant.errors import ArtifactError
from fxquant.graph.normal_form import NAMESPACES, SIZE_ARITHMETIC, verify
from fxquant.graph.tensors import tensor_at
from fxquant.graph.text import print_graph
from tests.artifact.samples import (
    MODELS,
    Structured,
    equal_trees,
    make_graph,
    tensor,
    through_json,
)

Graphs = dict[str, tuple[GraphModule, GraphModule]]


@pytest.fixture(scope="module")
def graphs() -> Graphs:
    made = {name: make_graph(name) for name in MODELS}
    return {name: (graph, through_json(graph)) for name, graph in made.items()}


@pytest.mark.parametrize("name", MODELS)
class TestRoundTrip:
    def test_gives_equal_bits_at_any_batch(self, graphs: Graphs, name: str) -> None:
        before, after = graphs[name]
        for batch in (1, 2, 7):
            args, kwargs = MODELS[name][1](batch)
            assert equal_trees(before(*args, **kwargs), after(*args, **kwargs))

    def test_prints_equally(self, graphs: Graphs, name: str) -> None:
        before, after = graphs[name]
        assert print_graph(after) == print_graph(before)

    def test_stays_in_normal_form(self, graphs: Graphs, name: str) -> None:
        verify(graphs[name][1], after="load")

    def test_twice_is_once(self, graphs: Graphs, name: str) -> None:
        before, after = graphs[name]
        assert graph_to_json(after) == graph_to_json(before)

    def test_keeps_names_and_strides_of_tensors(self, graphs: Graphs, name: str) -> None:
        before, after = graphs[name]
        used = [str(n.target) for n in before.graph.nodes if n.op == "get_attr"]
        assert used
        for target in used:
            old, new = tensor_at(before, target), tensor_at(after, target)
            assert (new.dtype, new.shape, new.stride()) == (old.dtype, old.shape, old.stride())
            assert torch.equal(new, old)
        assert not list(after.parameters())
        assert set(dict(after.named_buffers())) == set(used)

    def test_holds_no_path_of_this_machine(self, graphs: Graphs, name: str) -> None:
        before, _ = graphs[name]
        assert any("/samples.py:" in str(n.meta["source"]) for n in before.graph.nodes)
        text = json.dumps(graph_to_json(before))
        assert str(Path(__file__).resolve().parents[1]) not in text
        assert '"artifact/samples.py:' in text


def test_loaded_module_takes_arguments_by_keyword_too(graphs: Graphs) -> None:
    before, after = graphs["keywords"]
    args = MODELS["keywords"][1](2)[1]
    assert equal_trees(after(**args), before(**args))
    assert equal_trees(after(*args.values()), before(**args))


def test_constant_inputs_keep_the_value_they_were_captured_with(graphs: Graphs) -> None:
    values = {n.target: n.meta.get("val") for n in graphs["positional"][1].graph.nodes}
    assert values["mask"] is None
    assert values["scale"] == 3.0


def test_batch_is_one_symbol_in_all_inputs(graphs: Graphs) -> None:
    nodes = graphs["keywords"][1].graph.nodes
    sizes = {str(n.meta["val"].shape[0]) for n in nodes if n.op == "placeholder"}
    assert len(sizes) == 1
    assert not sizes.pop().isdigit()


def test_flat_graph_without_export_survives() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_function(torch.ops.aten.relu.default, (x,))
    graph.output((y, x))
    graph_module = GraphModule(nn.Module(), graph)
    for node in graph.nodes:
        node.meta.update(val=torch.empty(2, 3), layer="", source="")
    value = tensor(2, 3)
    assert equal_trees(through_json(graph_module)(value), graph_module(value))


@given(st.floats() | st.integers(-(2**63) + 1, 2**63 - 1) | st.booleans() | st.none())
def test_scalars_survive_exactly(value: Any) -> None:
    coded = json.loads(json.dumps(encode_argument(value, where="")))
    back = decode_argument(coded, {}, takes_text=False, where="")
    assert type(back) is type(value)
    if isinstance(value, float):
        assert back.hex() == value.hex()
        assert math.copysign(1, back) == math.copysign(1, value) or math.isnan(value)
    else:
        assert back == value


@pytest.mark.parametrize(
    "value",
    [
        [1, (2, [3])],
        torch.uint16,
        torch.bfloat16,
        torch.channels_last,
        torch.strided,
        torch.device("cpu"),
        [],
        (),
    ],
)
def test_other_arguments_survive(value: Any) -> None:
    coded = json.loads(json.dumps(encode_argument(value, where="")))
    assert decode_argument(coded, {}, takes_text=False, where="") == value


@pytest.mark.parametrize("value", [slice(1), torch.device("meta"), 1j, torch.ones(1), print])
def test_arguments_without_a_form_are_refused(value: Any) -> None:
    with pytest.raises(ArtifactError, match="layer head"):
        encode_argument(value, where="layer head")


@pytest.mark.parametrize("value", [(1, [2, {"a": 3, "b": (4,)}]), 1, (), {"x y": [], "": {}}])
def test_structures_survive(value: Any) -> None:
    spec = torch.utils._pytree.tree_structure(value)
    coded = json.loads(json.dumps(encode_structure(spec, where="")))
    assert decode_structure(coded, where="") == spec


def test_structures_of_other_types_are_refused() -> None:
    class Returns(Structured):
        def forward(self, x: torch.Tensor) -> Any:
            return torch.return_types.max((self.lin(x), x))

    graph = capture(Returns().eval(), tensor(2, 4))
    with pytest.raises(ArtifactError, match="max cannot be stored"):
        graph_to_json(graph)


@pytest.mark.parametrize(
    ("source", "short"),
    [
        ("/home/me/lib/timm/layers/mlp.py:45", "layers/mlp.py:45"),
        ("C:\\Users\\me\\timm\\mlp.py:45", "timm/mlp.py:45"),
        ("mlp.py:1", "mlp.py:1"),
        ("/mlp.py:1", "mlp.py:1"),
        ("/a/b\n'c/d\"e.py:7", "b__c/d_e.py:7"),
        ("", ""),
        ("nonsense", ""),
        ("<eval_with_key>.3:12", "<eval_with_key>.3:12"),
    ],
)
def test_short_source(source: str, short: str) -> None:
    assert checks.short_source(source) == short
    assert checks.source_label(short, where="") == short


class TestAllowlist:
    def test_every_operator_exists_and_is_functional(self) -> None:
        random_but_off = {"aten.scaled_dot_product_attention.default", "aten.lstm.input"}
        for name in sorted(allowlist.OPERATORS):
            function = allowlist.resolve(name)
            assert isinstance(function, torch._ops.OpOverload)
            assert str(function) == name
            assert function.namespace in NAMESPACES
            schema = function._schema
            assert not schema.is_mutable, name
            assert torch.Tag.nondeterministic_seeded not in function.tags or name in random_but_off
            assert not any(a.is_out or "Generator" in str(a.type) for a in schema.arguments), name

    def test_size_arithmetic_is_that_of_the_normal_form(self) -> None:
        assert {f for f, _ in allowlist.SIZE_ARITHMETIC.values()} == SIZE_ARITHMETIC
        assert allowlist.resolve("operator.mul") is operator.mul

    @pytest.mark.parametrize(
        "name",
        [
            "aten.from_file.default",
            "aten.relu_.default",
            "aten.add.out",
            "aten.set_.source_Tensor",
            "aten.resize_.default",
            "aten.rand.default",
            "aten.dropout.default",
            "aten.empty.memory_format",
            "aten.as_strided.default",
            "aten.item.default",
            "builtins.eval",
            "os.system",
            "operator.pow",
            "operator.attrgetter",
            "operator.methodcaller",
            "aten.linear.default.__class__",
            "aten.linear.__class__",
            "aten.__class__.default",
            "aten.linear",
            "torch.ops.aten.linear.default",
            " aten.linear.default",
            "aten.linear.default\n",
            "aten\uff0elinear\uff0edefault",
            "quantized_decomposed.nothing.default",
            "fxquant.quantize_per_token.default.redispatch",
            "",
            None,
            3,
            ["aten.linear.default"],
            {"aten.linear.default": 1},
        ],
    )
    def test_anything_else_is_refused(self, name: object) -> None:
        with pytest.raises(ArtifactError, match="may not occur"):
            allowlist.resolve(name)
