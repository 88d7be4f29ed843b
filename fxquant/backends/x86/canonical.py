"""Two-region codes as oneDNN takes them: unsigned, with one step and one zero point. The rewrite is
exact: the canonical graph computes the same bits as the portable one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.fx import GraphModule

from fxquant.backends.x86 import machine
from fxquant.graph.pattern import Any_, Op, Pattern
from fxquant.graph.rule import Decline, Match, RewriteLog, RuleSet
from fxquant.graph.tensors import call, copy_graph, prune
from fxquant.quant import ops

aten = torch.ops.aten
_KERNELS = (aten.linear.default, aten.conv2d.default)


@dataclass(frozen=True)
class Aligned:
    """linear(dq_region(c, s, m), W) -> linear(s (u - z), W), u = z + (c or c << m), z = 2^(b-1).

    The steps of the two regions are a power of two apart, so all values are multiples of the finer
    one, and where these span no more than an unsigned code they are the codes of a uniform
    quantizer. ``z`` is 0 for codes of non-negative data, which have no sign region.
    """

    name: ClassVar[str] = "aligned-region"
    pattern: ClassVar[Pattern] = Op(
        _KERNELS, (Op((ops.dequantize_region,), (Any_("codes"),), name="input"),)
    )

    def check(self, graph_module: GraphModule, match: Match) -> Match | Decline:
        """The multiples of the finer step must fit the codes that this machine multiplies."""
        _, _, shift, bits, split = match["input"].args
        half, widest = 1 << (bits - 1), (1 << machine.activation_bits()) - 1
        zero_point = half if split == "sign" else 0
        span = zero_point + ((half - 1) << shift)
        if span > widest:
            return Decline(
                f"its two regions are {1 << shift} apart and span {span} of the finer steps, more "
                f"than the {widest} of one u8 code; two int8 products would cost twice one"
            )
        return match.binding(zero_point=zero_point)

    def rewrite(self, graph_module: GraphModule, match: Match) -> None:
        """Aligned codes for all readers of the region codes' values."""
        given, zero_point = match["input"], match["zero_point"]
        codes, scale, *form = given.args

        def emit(target: Any, *args: Any) -> Any:
            return call(graph_module, target, args, like=given)

        with graph_module.graph.inserting_before(given):
            multiples = emit(ops.dequantize_region, codes, 1.0, *form)
            shifted = emit(aten.add.Tensor, multiples, zero_point)
            aligned = emit(aten.to.dtype, shifted, torch.uint8)
            ends = (zero_point, 0, 255, torch.uint8)
            made = emit(ops.dequantize_per_tensor, aligned, scale, *ends)
        given.replace_all_uses_with(made)


@dataclass(frozen=True)
class Logarithmic:
    """linear(dq_log(c), W) stays as it is: a product by powers of two has no kernel here."""

    name: ClassVar[str] = "logarithmic"
    pattern: ClassVar[Pattern] = Op(_KERNELS, (Op((ops.dequantize_log,)),))

    def check(self, graph_module: GraphModule, match: Match) -> Match | Decline:
        """Always declined."""
        return Decline("its input has logarithmic codes, which no int8 kernel multiplies")

    def rewrite(self, graph_module: GraphModule, match: Match) -> None:
        """Never reached."""


def canonical(quantized: GraphModule) -> tuple[GraphModule, RewriteLog]:
    """A copy of a quantized graph with canonical codes, and what could not be made so."""
    graph_module = GraphModule(quantized, copy_graph(quantized.graph), class_name="Lowered")
    log = RuleSet((Aligned(), Logarithmic())).apply(graph_module)
    prune(graph_module)
    return graph_module, log
