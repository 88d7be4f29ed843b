"""``q(f(dq(x)))`` into integer operators, quantizer by quantizer: ``f`` is read as a value of which
codes are asked at each quantizer's step."""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule, Node

from fxquant.graph.flow import depends_on_input
from fxquant.graph.tensors import copy_graph, prune
from fxquant.passes.integers import elementwise, products
from fxquant.passes.integers.reading import Reader, refused
from fxquant.quant import ops
from fxquant.quant.integer.codes import Codes


def to_integer(graph_module: GraphModule) -> GraphModule:
    """A copy in which every quantizer but those of the inputs gets its codes from integers.

    Raises :class:`PipelineError` naming the first layer that has no integer form.
    """
    made = GraphModule(graph_module, copy_graph(graph_module.graph))
    reader = Reader(made, products.FORMS | elementwise.FORMS)
    variable = depends_on_input(made.graph)
    for node in list(made.graph.nodes):
        if node.target is ops.quantize_per_tensor and not _is_door(node):
            reader.emitter.at = node
            codes = reader.emitter.codes(reader.value(node.args[0]), Codes.of(node.args[1:]))
            node.replace_all_uses_with(codes)
        elif node.target in ops.QUANTIZE and node.target is not ops.quantize_per_tensor:
            raise refused(node, "only quantizers with one step per tensor become integers")
        elif node.op == "output":
            for given in node.all_input_nodes:
                if given.target is not ops.dequantize_per_tensor and given in variable:
                    raise refused(given, "the model's output has no quantizer")
    prune(made)
    return made


def _is_door(node: Node) -> bool:
    """Whether a quantizer reads the model's input, through float arithmetic or none."""
    stack, seen = [node.args[0]], set()
    while stack:
        current: Any = stack.pop()
        if current.target in ops.DEQUANTIZE or current.target in ops.INTEGER:
            return False
        for parent in current.all_input_nodes:
            if parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return True
