"""Carry the plan out: weights become int buffers, activations pass q/dq pairs, casts go in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch.fx import GraphModule, Node

from fxquant.errors import PlanError
from fxquant.graph.layers import Layer
from fxquant.graph.tensors import (
    add_buffer,
    attribute_name,
    constant_of,
    copy_graph,
    prune,
    read_buffer,
    tensor_at,
)
from fxquant.passes.casts import cast_attention
from fxquant.passes.fit import WEIGHTED
from fxquant.passes.nodes import dequantize_weight, quantize_dequantize
from fxquant.passes.watched import OPERAND
from fxquant.pipeline.base import Pass
from fxquant.pipeline.plan import Plan
from fxquant.pipeline.state import Fact, State
from fxquant.quant.qparams import QParams
from fxquant.quant.scheme import Scheme
from fxquant.quant.weight import weight_codes, weight_qparams


@dataclass(frozen=True)
class Apply(Pass):
    """``linear(x, W) -> linear(dq(q(x)), dq(Wq))`` at every layer the plan quantizes, and
    ``matmul(x, y) -> matmul(dq(q(x)), dq(q(y)))`` at every operand.

    Equal quantizers of one tensor are made once; a weight used by several layers is stored once.
    """

    name: ClassVar[str] = "apply"
    needs: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.GRAPH, Fact.LAYERS, Fact.PLAN, Fact.STATISTICS}
    )
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.GRAPH, Fact.QUANTIZED})

    def run(self, state: State) -> State:
        """Set ``graph`` to a quantized copy; the float graph is left as it was."""
        source = state.graph
        graph_module = GraphModule(source, copy_graph(source.graph))
        _Rewriter(graph_module, state.plan, state.statistics).run(state.layers)
        prune(graph_module)
        return state.having(Fact.GRAPH, graph_module).having(Fact.QUANTIZED, True)


class _Rewriter:
    """One application of a plan to one graph; remembers what was already inserted."""

    def __init__(
        self, graph_module: GraphModule, plan: Plan, statistics: Mapping[str, QParams]
    ) -> None:
        self.graph_module = graph_module
        self.plan = plan
        self.statistics = statistics
        self.nodes = {node.name: node for node in graph_module.graph.nodes}
        self.quantized_inputs: dict[tuple[Node, Scheme, tuple[Any, ...]], Node] = {}
        self.quantized_weights: dict[tuple[str, Scheme], list[Node]] = {}

    def run(self, layers: tuple[Layer, ...]) -> None:
        """Rewrite every weighted layer and every matmul, then fused attention."""
        for layer in layers:
            if layer.kind in WEIGHTED:
                self._weighted(layer)
            elif layer.kind == "matmul":
                self._matmul(layer)
        attention = [
            self.nodes[layer.node]
            for layer in layers
            if layer.kind == "attention"
            and (decision := self.plan.get(layer.name, "input")) is not None
            and decision.compute == "bfloat16"
        ]
        cast_attention(self.graph_module, attention)

    def _weighted(self, layer: Layer) -> None:
        weight, x = (
            self.plan[f"{layer.name}:weight"].scheme,
            self.plan[f"{layer.name}:input"].scheme,
        )
        if (weight is None) != (x is None):
            raise PlanError(
                "a layer is quantized on one side only",
                where=layer.name,
                why="there is no kernel for it, so it would only be simulated",
                fix="give both layer:input and layer:weight a scheme, or neither",
            )
        if weight is None or x is None:
            return
        node = self.nodes[layer.node]
        node.update_arg(1, self._weight(layer, node, weight))
        self._activation(layer, node, "input", x)

    def _matmul(self, layer: Layer) -> None:
        for slot in ("lhs", "rhs"):
            decision = self.plan.get(layer.name, slot)
            if decision is not None and decision.scheme is not None:
                self._activation(layer, self.nodes[layer.node], slot, decision.scheme)

    def _weight(self, layer: Layer, node: Node, scheme: Scheme) -> Node:
        source = node.args[1]
        value = constant_of(self.graph_module, source)
        assert isinstance(source, Node)
        assert value is not None
        key = (str(source.target), scheme)
        if key not in self.quantized_weights:
            qparams = weight_qparams(value, scheme, where=f"{layer.name}:weight")
            base = attribute_name(layer.name, "weight")
            held = {
                base: weight_codes(value, qparams),
                base + "_scale": qparams.scale,
                base + "_zero_point": qparams.zero_point,
            }
            parts = [
                add_buffer(self.graph_module, name, tensor, like=node, before=node)
                for name, tensor in held.items()
            ]
            self.quantized_weights[key] = parts
        else:
            parts = [self._again(part, before=node) for part in self.quantized_weights[key]]
        return dequantize_weight(self.graph_module, node, parts, scheme)

    def _again(self, part: Node, *, before: Node) -> Node:
        """Another reader of a buffer that is there already."""
        with self.graph_module.graph.inserting_before(before):
            name = str(part.target)
            value = tensor_at(self.graph_module, name)
            return read_buffer(self.graph_module, name, like=before, value=value)

    def _activation(self, layer: Layer, node: Node, slot: str, scheme: Scheme) -> None:
        """Let ``node`` read the quantized tensor at ``slot``."""
        source = node.args[OPERAND[slot]]
        assert isinstance(source, Node)
        qparams = None
        if scheme.rule != "dynamic":
            qparams = self.statistics.get(f"{layer.name}:{slot}")
            if qparams is None or qparams.scheme != scheme:
                raise PlanError(
                    "the plan was changed after calibration",
                    where=f"{layer.name}:{slot}",
                    fix="run the pass that changes it before 'calibrate'",
                )
        key = (source, scheme, _values(qparams))
        if key not in self.quantized_inputs:
            self.quantized_inputs[key] = quantize_dequantize(
                self.graph_module, node, source, scheme, qparams, slot=slot
            )
        node.update_arg(OPERAND[slot], self.quantized_inputs[key])


def _values(qparams: QParams | None) -> tuple[Any, ...]:
    """What tells quantizers of one scheme apart."""
    if qparams is None:
        return ()
    tensors = (tuple(t.flatten().tolist()) for t in (qparams.scale, qparams.zero_point))
    return (*tensors, qparams.shift, qparams.base, qparams.offset, qparams.split)
