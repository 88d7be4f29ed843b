"""How a float graph of quantizers is read: every node as a value, products emitted on the way."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from torch.fx import GraphModule, Node

from fxquant.errors import PipelineError
from fxquant.graph.flow import is_movement
from fxquant.graph.normal_form import op_name, where
from fxquant.graph.tensors import constant_of
from fxquant.passes.integers.emit import Emitter
from fxquant.passes.integers.values import Constant, Leaf, Moved, Value, plain
from fxquant.quant import ops
from fxquant.quant.integer.codes import Codes

Form = Callable[["Reader", Node], Value]


class Reader:
    """Values of nodes, each made once; ``forms`` are what operators become."""

    def __init__(self, graph_module: GraphModule, forms: Mapping[Any, Form]) -> None:
        self.graph_module = graph_module
        self.emitter = Emitter(graph_module)
        self._forms = forms
        self._values: dict[Node, Value] = {}

    def value(self, node: Any) -> Value:
        """What a float node is; emits the products it is made of."""
        if node not in self._values:
            self._values[node] = self._value(node)
        return self._values[node]

    def codes_of(self, node: Any) -> Leaf:
        """A node as codes of one step; refused where it has none yet."""
        leaf = plain(self.value(node))
        if leaf is None:
            raise refused(node, "it is read by a product without a quantizer between")
        return leaf

    def _value(self, node: Node) -> Value:
        constant = constant_of(self.graph_module, node)
        if constant is not None:
            return Constant(constant.detach())
        if node.target is ops.dequantize_per_tensor:
            codes = node.args[0]
            assert isinstance(codes, Node)
            given = Codes.of(node.args[1:])
            return Leaf(codes, given.scale, given.zero_point)
        if is_movement(node) or node.target is operator.getitem:
            return self._movement(node)
        form = self._forms.get(node.target)
        if form is None:
            raise refused(node, f"{op_name(node)} has no integer form")
        return form(self, node)

    def _movement(self, node: Node) -> Value:
        inner = self.value(node.args[0])
        leaf = plain(inner)
        if leaf is None:
            return Moved(node, inner)
        return Leaf(self.emitter.move(node, leaf.node), leaf.scale, leaf.zero_point)


def refused(node: Node, why: str) -> PipelineError:
    """The error of a node without an integer form."""
    return PipelineError(
        "a layer has no integer form",
        where=where(node),
        why=why,
        fix="leave the pass 'integer' out: the layer then stays as the plan has it",
    )
