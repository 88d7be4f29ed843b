"""Linears whose input has a range per token."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx import GraphModule, Node

from fxquant.backends.x86 import ops as kernels
from fxquant.backends.x86.rules import bias_of, substitute
from fxquant.backends.x86.weights import IntWeight, Packer, int_weight
from fxquant.graph.pattern import Any_, Op, Pattern
from fxquant.graph.rule import Decline, Match
from fxquant.graph.tensors import add_buffer, attribute_name, call
from fxquant.quant import ops

aten = torch.ops.aten


@dataclass(frozen=True)
class PerToken:
    """linear(s (q - z), dq(W)) + b -> s (qlinear(q, W) - z colsum(W)) + b.

    ``s`` and ``z`` are ``[..., 1]``, one per token; the kernel multiplies plain codes with scale 1
    and zero point 0, and Inductor fuses the correction into what follows.
    """

    packer: Packer
    name: ClassVar[str] = "qlinear-per-token"
    pattern: ClassVar[Pattern] = Op(
        (aten.linear.default,),
        (
            Op(
                (ops.dequantize_per_token,),
                (Op((operator.getitem,), (Any_("triple"), 0), name="codes"), Any_("s"), Any_("z")),
            ),
            Any_("weight"),
        ),
    )

    def check(self, graph_module: GraphModule, match: Match) -> Match | Decline:
        """u8 codes and a packable weight."""
        triple = match["triple"]
        if not isinstance(triple, Node) or triple.args[3] is not torch.uint8:
            return Decline("oneDNN takes u8 activations")
        weight = int_weight(graph_module, match["weight"])
        if isinstance(weight, Decline):
            return weight
        return match.binding(int_weight=weight)

    def rewrite(self, graph_module: GraphModule, match: Match) -> None:
        """The kernel and its correction."""
        root, weight = match.root, match["int_weight"]
        assert isinstance(weight, IntWeight)
        sums = weight.codes.sum(1, dtype=torch.float32) * weight.scale
        base = attribute_name(str(root.meta["layer"]), "column_sums")
        column_sums = add_buffer(graph_module, base, sums, like=root, before=root)
        with graph_module.graph.inserting_before(root):
            arguments = self.packer.arguments(weight, root)
            output = (None, 1.0, 0, torch.float32, "none", "")
            y = call(
                graph_module,
                kernels.qlinear,
                (match["codes"], 1.0, 0, *arguments, *output),
                like=root,
            )
            shift = call(graph_module, aten.mul.Tensor, (match["z"], column_sums), like=root)
            y = call(graph_module, aten.sub.Tensor, (y, shift), like=root)
            y = call(graph_module, aten.mul.Tensor, (y, match["s"]), like=root)
            if bias_of(root) is not None:
                y = call(graph_module, aten.add.Tensor, (y, bias_of(root)), like=root)
        substitute(root, y)
