"""The float graph and the quantized graph run side by side, stopping at every weighted layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from fxquant.errors import CalibrationError
from fxquant.graph.flow import depends_on_input
from fxquant.graph.layers import Layer
from fxquant.graph.tensors import tensor_at
from fxquant.passes.fit import WEIGHTED
from fxquant.passes.running import fast_linear, return_free_memory
from fxquant.quant.calibration import Calibration, Leaves

aten = torch.ops.aten


@dataclass(frozen=True)
class Stop:
    """One weighted layer, about to run in both graphs, over the whole sample at once.

    ``x``: its input in the float graph; ``x_hat``: its input in the quantized graph, after the
    layer's own quantize-dequantize and with the errors of all layers before it. ``float_node`` and
    ``node``: the layer in the two graphs.
    """

    layer: Layer
    float_node: Node
    node: Node
    x: Tensor
    x_hat: Tensor


class Walker:
    """Runs a graph node by node as far as asked, holding only values that are still to be read.

    What does not depend on the inputs (weights, their dequantization) is evaluated when it is
    read, and not before: a buffer may be exchanged up to the moment its reader runs.
    """

    def __init__(self, graph_module: GraphModule, leaves: Leaves) -> None:
        self._graph_module = graph_module
        self._reached = depends_on_input(graph_module.graph)
        # A placeholder that nothing reads is still one of the leaves.
        self._waiting = [n for n in graph_module.graph.nodes if n in self._reached]
        self._waiting.reverse()
        self._leaves = list(leaves)[::-1]
        self._values: dict[Node, Any] = {}
        self._dying: dict[Node, list[Node]] = defaultdict(list)
        last: dict[Node, Node] = {}
        for node in reversed(self._waiting):
            last |= dict.fromkeys(node.all_input_nodes, node)
        for read, reader in last.items():
            self._dying[reader].append(read)

    def run_until(self, stop: Node | None) -> None:
        """Run all that comes before ``stop``; everything, where it is None."""
        while self._waiting and self._waiting[-1] is not stop:
            node = self._waiting.pop()
            self._values[node] = self._run(node)
            for dead in self._dying[node]:
                self._values.pop(dead, None)
            if not node.users and node.op != "output":
                del self._values[node]

    def value(self, node: Any) -> Any:
        """The value of a node that ran already, or of a constant as it is now."""
        return self._values[node] if node in self._reached else self._run(node)

    def _run(self, node: Node) -> Any:
        if node.op == "placeholder":
            return self._leaves.pop()
        if node.op == "get_attr":
            return tensor_at(self._graph_module, str(node.target)).detach()
        if node.op == "output":
            return map_arg(node.args[0], self.value)
        args, kwargs = map_arg(node.args, self.value), map_arg(node.kwargs, self.value)
        if node.target is aten.linear.default and not kwargs:
            return fast_linear(*args)
        assert callable(node.target)
        return node.target(*args, **kwargs)


def in_lockstep(
    float_graph: GraphModule,
    graph: GraphModule,
    leaves: Leaves,
    layers: tuple[Layer, ...],
    visit: Callable[[Stop], None],
) -> Any:
    """Call ``visit`` before each linear and convolution of ``layers`` that is in both graphs.

    ``leaves``: inputs in placeholder order, all images in one batch. ``visit`` may exchange the
    tensors of ``graph`` that the layer reads, and the constant nodes it reads them by: the layer,
    and all after it, run with what is there then. Values die when their last reader has run, so
    memory stays at the widest place of the two graphs. Returns the quantized graph's result.
    """
    exact = {node.name: node for node in float_graph.graph.nodes}
    quantized = {node.name: node for node in graph.graph.nodes}
    wanted = {layer.node: layer for layer in layers if layer.kind in WEIGHTED}
    with torch.no_grad():
        one, other = Walker(float_graph, leaves), Walker(graph, leaves)
        for name, node in quantized.items():
            if name not in wanted or name not in exact:
                continue
            twin = exact[name]
            one.run_until(twin)
            other.run_until(node)
            visit(
                Stop(wanted[name], twin, node, one.value(twin.args[0]), other.value(node.args[0]))
            )
            return_free_memory()
        other.run_until(None)
        return other.value(next(n for n in graph.graph.nodes if n.op == "output"))


def gather(calibration: Calibration, images: int, *, where: str) -> Leaves:
    """The first ``images`` samples as one batch, or all there are if they are fewer.

    Raises :class:`CalibrationError` where the data is empty.
    """
    parts: list[Leaves] = []
    have = 0
    for leaves in calibration.batches():
        parts.append(tuple(leaf[: images - have] for leaf in leaves))
        have += parts[-1][0].shape[0]
        if have >= images:
            break
    if not parts:
        raise CalibrationError("the calibration data is empty", where=where)
    return tuple(torch.cat(leaf) for leaf in zip(*parts, strict=True))
