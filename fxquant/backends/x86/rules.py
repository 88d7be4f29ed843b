"""Quantized regions to oneDNN calls: each rule takes one shape of region."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.fx import GraphModule, Node

from fxquant.backends.x86 import ops as kernels
from fxquant.backends.x86.weights import IntWeight, Packer, int_weight
from fxquant.graph.pattern import Any_, Either, Op, Pattern
from fxquant.graph.rule import Decline, Match
from fxquant.graph.shapes import same_shape
from fxquant.graph.tensors import call
from fxquant.quant import ops

aten = torch.ops.aten

LINEAR_LAYERS: frozenset[Any] = frozenset({aten.linear.default})
INPUT = Op((ops.dequantize_per_tensor,), (Any_("codes"),), name="input")
LINEAR = Op((aten.linear.default,), (INPUT, Any_("weight")), name="linear")
SOLE_LINEAR = Op((aten.linear.default,), (INPUT, Any_("weight")), name="linear", sole_user=True)
ACTIVATIONS = (aten.gelu.default, aten.relu.default)


def check_linear(graph_module: GraphModule, match: Match) -> Match | Decline:
    """u8 codes and a packable weight, put into the match as ``int_weight``."""
    codes, given = match["codes"], match["input"]
    if not isinstance(codes, Node) or given.args[5] is not torch.uint8:
        return Decline(f"oneDNN takes u8 activations, not {given.args[5]}")
    weight = int_weight(graph_module, match["weight"])
    if isinstance(weight, Decline):
        return weight
    return match.binding(int_weight=weight)


def bias_of(node: Node) -> Any:
    """The bias argument of a linear, or None."""
    return node.args[2] if len(node.args) > 2 else None


def substitute(root: Node, made: Node) -> None:
    """``made`` stands for ``root`` from now on, and remembers it for comparison."""
    made.meta["replaces"] = root.name
    root.replace_all_uses_with(made)


def post_op(activation: Node | None) -> tuple[str, str]:
    """oneDNN's name and algorithm for an activation node."""
    if activation is None:
        return "none", ""
    if activation.target is aten.relu.default:
        return "relu", ""
    return "gelu", "tanh" if activation.kwargs.get("approximate") == "tanh" else "none"


def emit(
    graph_module: GraphModule,
    packer: Packer,
    match: Match,
    *,
    codes: Node | None = None,
    output: tuple[float, int, torch.dtype] = (1.0, 0, torch.float32),
    activation: Node | None = None,
) -> Node:
    """Insert ``fxquant::qlinear`` before the root and return it."""
    linear, weight = match["linear"], match["int_weight"]
    assert isinstance(weight, IntWeight)
    with graph_module.graph.inserting_before(match.root):
        arguments = packer.arguments(weight, linear)
        parameters = (codes or match["codes"], match["input"].args[1], match["input"].args[2])
        return call(
            graph_module,
            kernels.qlinear,
            (*parameters, *arguments, bias_of(linear), *output, *post_op(activation)),
            like=linear,
        )


@dataclass(frozen=True)
class Requantized:
    """q(act(linear(dq(x), dq(W)))) -> qlinear(x, W, act, u8 out): codes go from layer to layer."""

    packer: Packer
    name: ClassVar[str] = "qlinear-requantized"
    pattern: ClassVar[Pattern] = Op(
        (ops.quantize_per_tensor,),
        (Either((Op(ACTIVATIONS, (SOLE_LINEAR,), name="act", sole_user=True), SOLE_LINEAR)),),
    )

    def check(self, graph_module: GraphModule, match: Match) -> Match | Decline:
        """The output must be u8 over its full range: oneDNN saturates there and nowhere else."""
        low, high, dtype = match.root.args[3:6]
        if dtype is not torch.uint8 or (low, high) != (0, 255):
            return Decline(f"oneDNN requantizes to u8 0..255, not {dtype} {low}..{high}")
        return check_linear(graph_module, match)

    def rewrite(self, graph_module: GraphModule, match: Match) -> None:
        """Replace the quantize node by the kernel."""
        scale, zero_point = match.root.args[1:3]
        output = (scale, zero_point, torch.uint8)
        made = emit(graph_module, self.packer, match, output=output, activation=match.get("act"))  # type: ignore[arg-type]
        substitute(match.root, made)


@dataclass(frozen=True)
class Activated:
    """act(linear(dq(x), dq(W))) -> qlinear(x, W, act, f32 out)."""

    packer: Packer
    name: ClassVar[str] = "qlinear-activated"
    pattern: ClassVar[Pattern] = Op(ACTIVATIONS, (SOLE_LINEAR,))

    def check(self, graph_module: GraphModule, match: Match) -> Match | Decline:
        """Any packable linear."""
        return check_linear(graph_module, match)

    def rewrite(self, graph_module: GraphModule, match: Match) -> None:
        """Replace the activation by the kernel."""
        made = emit(graph_module, self.packer, match, activation=match.root)
        substitute(match.root, made)


@dataclass(frozen=True)
class Bfloat16:
    """bf16(linear(dq(x), dq(W))) -> qlinear(x, W, bf16 out)."""

    packer: Packer
    name: ClassVar[str] = "qlinear-bf16"
    pattern: ClassVar[Pattern] = Op((aten.to.dtype,), (SOLE_LINEAR, torch.bfloat16))

    def check(self, graph_module: GraphModule, match: Match) -> Match | Decline:
        """Any packable linear."""
        return check_linear(graph_module, match)

    def rewrite(self, graph_module: GraphModule, match: Match) -> None:
        """Replace the cast by the kernel."""
        output = (1.0, 0, torch.bfloat16)
        substitute(match.root, emit(graph_module, self.packer, match, output=output))


@dataclass(frozen=True)
class Added:
    """r + linear(dq(x), dq(W)) -> qlinear_add(x, W, r): the residual goes into the kernel."""

    packer: Packer
    name: ClassVar[str] = "qlinear-added"
    pattern: ClassVar[Pattern] = Op(
        (aten.add.Tensor,), (Any_("other"), SOLE_LINEAR), commutative=True
    )

    def check(self, graph_module: GraphModule, match: Match) -> Match | Decline:
        """The other summand must be a float tensor of exactly the output's shape."""
        other = match["other"]
        if match.root.kwargs or not isinstance(other, Node) or other.op == "get_attr":
            return Decline("the other summand is a constant")
        if not same_shape(other, match["linear"]):
            return Decline("the summands differ in shape")
        if other.meta["val"].dtype is not torch.float32:
            return Decline("the other summand is not float32")
        return check_linear(graph_module, match)

    def rewrite(self, graph_module: GraphModule, match: Match) -> None:
        """Replace the addition by the kernel."""
        linear = match["linear"]
        with graph_module.graph.inserting_before(match.root):
            arguments = self.packer.arguments(match["int_weight"], linear)
            parameters = (match["codes"], match["input"].args[1], match["input"].args[2])
            made = call(
                graph_module,
                kernels.qlinear_add,
                (*parameters, *arguments, match["other"], bias_of(linear)),
                like=linear,
            )
        substitute(match.root, made)


@dataclass(frozen=True)
class Plain:
    """linear(dq(x), dq(W)) -> qlinear(x, W, f32 out)."""

    packer: Packer
    name: ClassVar[str] = "qlinear"
    pattern: ClassVar[Pattern] = LINEAR

    def check(self, graph_module: GraphModule, match: Match) -> Match | Decline:
        """Any packable linear."""
        return check_linear(graph_module, match)

    def rewrite(self, graph_module: GraphModule, match: Match) -> None:
        """Replace the linear by the kernel."""
        substitute(match.root, emit(graph_module, self.packer, match))
