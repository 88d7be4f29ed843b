"""A quantized graph into a graph of kernels, counted and accounted for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import GraphModule

from fxquant.backends.quantized import QuantizedModule
from fxquant.backends.x86 import ops as kernels
from fxquant.backends.x86.canonical import canonical
from fxquant.backends.x86.patches import PatchConvolution
from fxquant.backends.x86.per_token import PerToken
from fxquant.backends.x86.rules import Activated, Added, Bfloat16, Plain, Requantized
from fxquant.backends.x86.weights import Packer
from fxquant.graph.normal_form import verify
from fxquant.graph.rule import RuleSet, reasons_of
from fxquant.graph.tensors import prune
from fxquant.quant.integer.products import int_linear
from fxquant.report.build import INTEGER_PRODUCTS

_OUTPUT = {torch.uint8: "u8", torch.float32: "f32", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class Lowered:
    """``graph_module`` of kernels; ``kernel_of``: layer to the kernel that runs it; ``declined``:
    layer to the reasons of the rules that matched it and declined."""

    graph_module: GraphModule
    kernel_of: dict[str, str]
    declined: dict[str, tuple[str, ...]]


def lower_graph(quantized: QuantizedModule) -> Lowered:
    """Bring codes into canonical form, then apply the rules, the widest regions first.

    Packed weights are non-persistent buffers. Integer linears (pass ``integer``) are kernels as
    they stand: ``torch._int_mm``, with the integer operators around them fused by Inductor.
    """
    graph_module, log = canonical(quantized)
    packer = Packer(graph_module)
    sweeps = (
        RuleSet((Requantized(packer),)),
        RuleSet((Activated(packer), Bfloat16(packer), Added(packer))),
        RuleSet((Plain(packer), PerToken(packer), PatchConvolution(packer))),
    )
    logs = [log, *(rules.apply(graph_module) for rules in sweeps)]
    prune(graph_module)
    verify(graph_module, after="x86 lowering")
    kernel_of = {
        str(node.meta["layer"]): _describe(node)
        for node in graph_module.graph.nodes
        if node.target in kernels.KERNELS or node.target is int_linear
    }
    return Lowered(graph_module, kernel_of, reasons_of(logs))


def _describe(node: torch.fx.Node) -> str:
    if node.target is int_linear:
        return INTEGER_PRODUCTS[int_linear]
    if node.target is kernels.qlinear_add:
        return "onednn int8, + residual"
    out_dtype, post_op = node.args[9], node.args[10]
    fused = "" if post_op == "none" else f", {post_op}"
    return f"onednn int8{fused}, {_OUTPUT[out_dtype]} out"  # type: ignore[index]
