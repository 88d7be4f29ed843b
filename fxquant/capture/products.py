"""Products with constants in one spelling: ``linear``, whatever the model wrote."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxquant.graph.shapes import rank
from fxquant.graph.tensors import add_buffer, attribute_name, call, constant_of, interpose

aten = torch.ops.aten


def unify_spellings(graph_module: GraphModule) -> None:
    """``view -> reshape``; ``softmax``, ``matmul`` and product with a constant in one form each."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in {aten.view.default, aten._unsafe_view.default}:
            node.target = aten.reshape.default
        elif node.target is aten._softmax.default:
            node.target, node.args = aten.softmax.int, node.args[:2]
        elif node.target in {aten.mm.default, aten.bmm.default}:
            node.target = aten.matmul.default
        if node.target is aten.matmul.default:
            _matmul_to_linear(graph_module, node)
        elif node.target is aten.einsum.default:
            _einsum_to_linear(graph_module, node)
        elif node.target is aten.addmm.default and len(node.kwargs) == 0:
            _addmm_to_linear(graph_module, node)
        elif node.target is aten.addcmul.default and len(node.kwargs) == 0:
            _addcmul_to_sum(graph_module, node)


def _matmul_to_linear(graph_module: GraphModule, node: Node) -> None:
    """``x W -> linear(x, W^T)`` and ``W x -> linear(x^T, W)^T`` for a constant matrix ``W``."""
    left, right = node.args[:2]
    weight = constant_of(graph_module, right)
    if weight is not None and weight.dim() == 2:
        _to_linear(graph_module, node, left, weight.detach().t().contiguous(), right, None)
        return
    weight = constant_of(graph_module, left)
    if weight is None or not isinstance(right, Node) or rank(right) < 2 or not _is_matrix(weight):
        return
    if weight.dim() > rank(right):  # its axes of size 1 would be missing from the result
        return
    with graph_module.graph.inserting_before(node):
        turned = call(graph_module, aten.transpose.int, (right, -1, -2), like=node)
    matrix = weight.detach().reshape(weight.shape[-2:])
    linear = _to_linear(graph_module, node, turned, matrix, left, None)
    with graph_module.graph.inserting_after(linear):
        back = call(graph_module, aten.transpose.int, (linear, -1, -2), like=linear)
    interpose(linear, back)


def _is_matrix(weight: Tensor) -> bool:
    return weight.dim() >= 2 and weight.numel() == weight.shape[-1] * weight.shape[-2]


def _einsum_to_linear(graph_module: GraphModule, node: Node) -> None:
    """``einsum("..n..,mn->..m..", x, W) -> linear(x with n last, W)`` with axes moved back.

    One index is contracted, one is new, and all others of the constant have size 1.
    """
    equation, operands = node.args[:2]
    if len(operands) != 2 or not isinstance(equation, str) or "." in equation:  # type: ignore[arg-type]
        return
    inputs, _, output = equation.replace(" ", "").partition("->")
    letters = inputs.split(",")
    for x, w in ((0, 1), (1, 0)):
        weight = constant_of(graph_module, operands[w])  # type: ignore[index]
        if weight is None or constant_of(graph_module, operands[x]) is not None:  # type: ignore[index]
            continue
        given, held = letters[x], letters[w]
        contracted = [c for c in given if c in held and c not in output]
        made = [c for c in held if c in output and c not in given]
        kept = [c for c in given if c not in contracted]
        rest = [c for c in held if c not in contracted + made]
        sizes = dict(zip(held, weight.shape, strict=True))
        plain = len(contracted) == len(made) == 1 and all(sizes[c] == 1 for c in rest)
        if not plain or len(set(given)) != len(given) or sorted(kept + made) != sorted(output):
            return
        order = [held.index(c) for c in rest + made + contracted]
        matrix = weight.detach().permute(order).reshape(sizes[made[0]], sizes[contracted[0]])
        axes = [given.index(c) for c in kept + contracted]
        with graph_module.graph.inserting_before(node):
            moved = call(graph_module, aten.permute.default, (operands[x], axes), like=node)  # type: ignore[index]
        linear = _to_linear(graph_module, node, moved, matrix.contiguous(), operands[w], None)  # type: ignore[index]
        back_axes = [(kept + made).index(c) for c in output]
        with graph_module.graph.inserting_after(linear):
            back = call(graph_module, aten.permute.default, (linear, back_axes), like=linear)
        interpose(linear, back)
        return


def _addmm_to_linear(graph_module: GraphModule, node: Node) -> None:
    """``addmm(b, x, W) -> linear(x, W^T, b)`` for constant ``W`` and ``b``."""
    bias, x, weight_node = node.args[:3]
    weight = constant_of(graph_module, weight_node)
    bias_value = constant_of(graph_module, bias)
    if weight is None or bias_value is None or bias_value.dim() != 1:
        return
    _to_linear(graph_module, node, x, weight.detach().t().contiguous(), weight_node, bias)


def _addcmul_to_sum(graph_module: GraphModule, node: Node) -> None:
    """``addcmul(c, a, b) -> c + a b``, the spelling of every other affine."""
    with graph_module.graph.inserting_before(node):
        product = call(graph_module, aten.mul.Tensor, node.args[1:3], like=node)
        total = call(graph_module, aten.add.Tensor, (product, node.args[0]), like=node)
    node.replace_all_uses_with(total)
    graph_module.graph.erase_node(node)


def _to_linear(
    graph_module: GraphModule, node: Node, x: Any, weight: Tensor, source: Any, bias: Any
) -> Node:
    """``node -> linear(x, weight, bias)``; ``weight`` is ``[out, in]``, made from ``source``."""
    name = str(source.target)
    held = add_buffer(
        graph_module,
        attribute_name(name.removesuffix("weight").rstrip("._"), "weight"),
        weight,
        like=node,
        before=node,
    )
    held.meta["layer"] = name.removesuffix(".weight")
    with graph_module.graph.inserting_before(node):
        arguments = (x, held) if bias is None else (x, held, bias)
        linear = call(graph_module, aten.linear.default, arguments, like=node)
    node.replace_all_uses_with(linear)
    graph_module.graph.erase_node(node)
    return linear
