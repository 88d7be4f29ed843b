"""``f(x) -> dq(k(q(x)))`` with integer kernels k; codes pass from kernel to reader."""

from __future__ import annotations

from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx import GraphModule, Node

from fxquant.graph.flow import is_movement
from fxquant.graph.tensors import add_buffer, attribute_name, call, copy_graph, prune
from fxquant.passes.nonlinearity.places import Place, codes_behind
from fxquant.quant import ops
from fxquant.quant.calls import Call
from fxquant.quant.integer.codes import Codes
from fxquant.quant.integer.families import Learned, Slot, kernels, own_output


def rewritten(
    graph_module: GraphModule, wanted: list[tuple[Place, Slot, str, Learned]]
) -> GraphModule:
    """A copy in which kernels of the named methods stand for the places."""
    made = GraphModule(graph_module, copy_graph(graph_module.graph))
    nodes = {node.name: node for node in made.graph.nodes}
    for place, slot, method, learned in wanted:
        node, source = nodes[place.node.name], nodes[place.source.name]
        readers = [(nodes[user.name], nodes[via.name]) for user, via in place.readers]
        with made.graph.inserting_before(node):
            codes = _given(made, node, source, slot.given, held=place.given == slot.given)
            for step in kernels(slot, method, learned):
                codes = _emit(made, node, codes, step)
            out = own_output(slot, method)
            if not readers or slot.made != place.made:
                value = call(made, ops.dequantize_per_tensor, (codes, *out.arguments), like=node)
                node.replace_all_uses_with(value)
                continue
        node.replace_all_uses_with(codes)
        _pass_codes(codes, readers, node, out)
    prune(made)
    return made


def _given(
    graph_module: GraphModule, node: Node, source: Node, given: Codes, *, held: bool
) -> Node:
    """The codes of the input: those that are there, moved as it is, or new ones."""
    if not held:
        arguments = (source, *given.arguments)
        return call(graph_module, ops.quantize_per_tensor, arguments, like=node)
    codes, movement = codes_behind(source)
    for step in reversed(movement):
        codes = call(graph_module, step.target, (codes, *step.args[1:]), like=node, **step.kwargs)
    return codes


def _emit(graph_module: GraphModule, node: Node, codes: Node, step: Call) -> Node:
    def argument(position: int, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        name = attribute_name(str(node.meta["layer"]), f"kernel_{position}")
        return add_buffer(graph_module, name, value, like=node, before=node)

    arguments = [argument(i, value) for i, value in enumerate(step.arguments)]
    return call(graph_module, step.target, (codes, *arguments), like=node)


def _pass_codes(codes: Node, readers: list[tuple[Node, Node]], node: Node, out: Codes) -> None:
    """Readers take the codes as they are: movement is retyped, quantizers are passed by."""
    stack = [codes]
    while stack:
        current = stack.pop()
        for user in current.users:
            if is_movement(user) and user.args[0] is current:
                kind = codes.meta["val"].dtype
                user.meta["val"] = pytree.tree_map(
                    lambda v, kind=kind: v.to(kind) if isinstance(v, Tensor) else v,
                    user.meta["val"],
                )
                stack.append(user)
    for quantizer, via in readers:
        moved = codes if via is node else via
        for value in list(quantizer.users):
            if value.target is ops.dequantize_per_tensor:
                value.args = (moved, *out.arguments)
