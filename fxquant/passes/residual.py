"""The residual stream and the logits in codes, where only linears and products were."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxquant.errors import CalibrationError, PipelineError, PlanError
from fxquant.graph.channels import is_average
from fxquant.graph.flow import consumers, depends_on_input, origin
from fxquant.graph.layers import Layer
from fxquant.graph.tensors import call, copy_graph
from fxquant.passes.running import Runner
from fxquant.pipeline.base import Pass
from fxquant.pipeline.state import Fact, State
from fxquant.quant import ops
from fxquant.quant.integer.codes import Codes
from fxquant.quant.memory import return_free_memory
from fxquant.quant.observers import Observer, make_observer
from fxquant.quant.scheme import Scheme

aten = torch.ops.aten


@dataclass(frozen=True)
class Residual(Pass):
    """``x + f(x) -> dq(q(x + f(x)))``: the stream ``x``, every sum of it, and what a LayerNorm, an
    average or a product of two activations reads.

    Symmetric codes of ``bits`` bits, 16 as in I-ViT (papers, section 4c) or 8, from the largest
    absolute value over ``images`` images times ``headroom``, which at 16 bits costs little and
    saves unseen images from clipping (0: 2 at 16 bits, 1 at 8). The model's outputs get 16 bits
    either way. Choices, by node, hold the step and are followed where the plan has them.
    """

    bits: int = 16
    headroom: float = 0.0
    images: int = 128

    name: ClassVar[str] = "residual"
    needs: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.GRAPH, Fact.LAYERS, Fact.PLAN, Fact.CALIBRATION, Fact.QUANTIZED}
    )
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.GRAPH, Fact.PLAN})

    def __post_init__(self) -> None:
        if self.bits not in (8, 16) or self.images < 1 or not self.headroom >= 0.0:
            raise PipelineError(
                f"no residual stream of {self.bits} bits from {self.images} images",
                where=f"pass {self.name}",
                fix="give 8 or 16 bits, at least 1 image and a headroom of 1 or more",
            )

    def run(self, state: State) -> State:
        """Set ``graph`` and ``plan``."""
        graph_module = GraphModule(state.graph, copy_graph(state.graph.graph))
        wanted = _tensors(graph_module, state.layers, self.bits)
        plan = state.plan
        fresh = {n: b for n, b in wanted.items() if plan.choice(self.name, n.name) is None}
        if fresh:
            largest = self._ranges(state, list(fresh))
            for node, bits in fresh.items():
                chosen = self._chosen(largest[node.name], bits, str(node.meta["layer"]))
                plan = plan.with_choice(self.name, node.name, chosen)
        for node in wanted:
            _insert(graph_module, node, _read(plan.choices[f"{self.name}@{node.name}"], node))
        graph_module.recompile()
        return state.having(Fact.GRAPH, graph_module).having(Fact.PLAN, plan)

    def _ranges(self, state: State, nodes: list[Node]) -> dict[str, float]:
        if state.calibration is None:
            raise CalibrationError(
                "a residual stream in codes needs calibration data",
                where=f"pass {self.name}",
                fix="pass calibration=images",
            )
        observers: dict[str, Observer] = {
            n.name: make_observer(Scheme(symmetric=True)) for n in nodes
        }
        runner = Runner(state.graph, outputs={n: _update(o) for n, o in observers.items()})
        seen = 0
        for leaves in state.calibration.batches():
            runner(tuple(leaf[: self.images - seen] for leaf in leaves))
            return_free_memory()
            seen += leaves[0].shape[0]
            if seen >= self.images:
                break
        scheme = Scheme(symmetric=True)
        return {
            name: float(o.qparams(scheme, where=name).scale) * scheme.quant_max
            for name, o in observers.items()
        }

    def _chosen(self, largest: float, bits: int, layer: str) -> dict[str, Any]:
        room = self.headroom or (2.0 if bits == 16 else 1.0)
        return {
            "scale": room * largest / ((1 << (bits - 1)) - 1),
            "bits": bits,
            "reason": f"{bits}-bit codes up to {room:g} times {largest:.4g}, {layer or 'output'}",
        }


def _update(observer: Observer) -> Callable[[Tensor], None]:
    return observer.update


def _tensors(graph_module: GraphModule, layers: tuple[Layer, ...], bits: int) -> dict[Node, int]:
    """Nodes to quantize with their bits, in graph order."""
    adds = {layer.node for layer in layers if layer.role == "residual_add"}
    varying = depends_on_input(graph_module.graph)
    found: dict[Node, int] = {}
    for node in graph_module.graph.nodes:
        if node.name in adds:
            found[node] = bits
            streams = (origin(a) for a in node.args[:2] if a in varying)
            found |= {s: bits for s in streams if len(list(consumers(s))) > 1}
        if node.target is aten.layer_norm.default:
            found[origin(node.args[0])] = bits
        if is_average(node):
            found.setdefault(origin(node.args[0]), bits)
        if node.target is aten.mul.Tensor and all(a in varying for a in node.args[:2]):
            found |= {origin(a): 16 for a in node.args[:2]}
        if node.op == "output":
            for made in node.all_input_nodes:
                found[origin(made)] = 16
    order = {node: i for i, node in enumerate(graph_module.graph.nodes)}
    computed = (n for n in found if n.op == "call_function" and n.target not in ops.DEQUANTIZE)
    return {n: found[n] for n in sorted(computed, key=lambda n: order[n])}


def _read(chosen: Mapping[str, Any], node: Node) -> Codes:
    try:
        scale, bits = float(chosen["scale"]), int(chosen["bits"])
        sound = scale > 0.0 and bits in (8, 16)
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise PlanError(
            "the plan's choice cannot be carried out",
            where=f"{Residual.name}@{node.name}",
            fix="give a scale above 0 and 8 or 16 bits",
        )
    return Codes.symmetric(scale, bits)


def _insert(graph_module: GraphModule, node: Node, codes: Codes) -> None:
    with graph_module.graph.inserting_after(node):
        made = call(graph_module, ops.quantize_per_tensor, (node, *codes.arguments), like=node)
    with graph_module.graph.inserting_after(made):
        back = call(graph_module, ops.dequantize_per_tensor, (made, *codes.arguments), like=node)
    node.replace_all_uses_with(back, delete_user_cb=lambda user: user not in (made, back))
