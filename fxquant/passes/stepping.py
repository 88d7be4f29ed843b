"""The float graph and the quantized graph run side by side, stopping at every weighted layer."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from fxquant.graph.flow import depends_on_input
from fxquant.graph.layers import Layer
from fxquant.graph.tensors import tensor_at
from fxquant.passes.fit import WEIGHTED
from fxquant.passes.running import fast_linear
from fxquant.quant import ops
from fxquant.quant.calibration import Leaves
from fxquant.quant.memory import return_free_memory

aten = torch.ops.aten
Upstream = Literal["float", "quantized"]
_QUANTIZERS = ops.QUANTIZE | ops.DEQUANTIZE


@dataclass(frozen=True)
class Stop:
    """One weighted layer, about to run in both graphs, over the whole sample at once.

    ``x``: its input in the float graph; ``x_hat``: its input in the quantized graph, after the
    layer's own quantize-dequantize. ``float_node`` and ``node``: the layer in the two graphs.
    ``exact`` and ``now`` compute its output in the two, from ``x`` and ``x_hat``; the walk goes on
    with what ``exact`` gave. ``becomes`` tells it the output that the layer has in the quantized
    graph after the visit, which is then not computed again.
    """

    layer: Layer
    float_node: Node
    node: Node
    x: Tensor
    x_hat: Tensor
    exact: Callable[[], Tensor]
    now: Callable[[], Tensor]
    becomes: Callable[[Tensor], Tensor]


class Walker:
    """Runs a graph node by node as far as asked, holding only values that are still to be read.

    Its like is :class:`~fxquant.passes.running.Runner`, which runs from end to end. What does not
    depend on the inputs (weights, their dequantization) is evaluated when it is read, and not
    before: a buffer may be exchanged up to the moment its reader runs.
    """

    def __init__(self, graph_module: GraphModule, leaves: Leaves) -> None:
        self._graph_module = graph_module
        self._reached = depends_on_input(graph_module.graph)
        # A placeholder that nothing reads is still one of the leaves.
        self._waiting = [n for n in graph_module.graph.nodes if n in self._reached]
        self._waiting.reverse()
        self._leaves = list(leaves)[::-1]
        self._values: dict[Node, Any] = {}
        self._given: dict[Node, Any] = {}
        self._dying: dict[Node, list[Node]] = defaultdict(list)
        last: dict[Node, Node] = {}
        for node in reversed(self._waiting):
            last |= dict.fromkeys(node.all_input_nodes, node)
        for read, reader in last.items():
            self._dying[reader].append(read)

    def run_until(self, stop: Node | None) -> None:
        """Run all that comes before ``stop``; everything, where it is None.

        Nothing, where ``stop`` does not depend on the inputs: it needs nothing that runs.
        """
        if stop is not None and stop not in self._reached:
            return
        while self._waiting and self._waiting[-1] is not stop:
            node = self._waiting.pop()
            given = node in self._given
            self._values[node] = self._given.pop(node) if given else self._run(node)
            for dead in self._dying[node]:
                self._values.pop(dead, None)
            if not node.users and node.op != "output":
                del self._values[node]

    def value(self, node: Any) -> Any:
        """The value of a node that ran already, or of a constant as it is now."""
        return self._values[node] if node in self._reached else self._run(node)

    def give(self, node: Node, value: Tensor) -> Tensor:
        """``value``, which ``node`` will have when it is reached, without being run."""
        if self._waiting and node in self._reached:
            self._given[node] = value
        return value

    def quantized(self, node: Any, x: Tensor) -> Any:
        """What ``node`` would be if the tensor before its quantize-dequantize were ``x``."""
        if node not in self._reached:
            return self._run(node)
        part = node.target is operator.getitem and node.args[0].target in ops.QUANTIZE
        if part or node.target in _QUANTIZERS:
            return node.target(*map_arg(node.args, lambda a: self.quantized(a, x)))
        return x

    def output(self, node: Node, x: Tensor) -> Any:
        """What ``node`` gives for a first argument ``x``, the others as they are now."""
        rest = map_arg(node.args[1:], self.value)
        return _call(node, (x, *rest), map_arg(node.kwargs, self.value))

    def _run(self, node: Node) -> Any:
        if node.op == "placeholder":
            return self._leaves.pop()
        if node.op == "get_attr":
            return tensor_at(self._graph_module, str(node.target)).detach()
        if node.op == "output":
            return map_arg(node.args[0], self.value)
        return _call(node, map_arg(node.args, self.value), map_arg(node.kwargs, self.value))


def _call(node: Node, args: Any, kwargs: Any) -> Any:
    if node.target is aten.linear.default and not kwargs:
        return fast_linear(*args)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _output_kept(walker: Walker, node: Node, x: Tensor) -> Tensor:
    return walker.give(node, walker.output(node, x))


def in_lockstep(
    float_graph: GraphModule,
    graph: GraphModule,
    leaves: Leaves,
    layers: tuple[Layer, ...],
    visit: Callable[[Stop], None],
    *,
    upstream: Upstream = "quantized",
) -> None:
    """Call ``visit`` before each linear and convolution of ``layers`` that is in both graphs.

    ``leaves``: inputs in placeholder order, all images in one batch. With ``upstream="quantized"``
    both graphs run, and a layer's input has the errors of all layers before it. ``visit`` may
    exchange the tensors of ``graph`` that the layer reads, and the constant nodes it reads them
    by: the layer, and all after it, run with what is there then. With ``"float"`` only the float
    graph runs, and ``x_hat`` is what the layer's own quantizer makes of ``x``.

    Values die when their last reader has run: memory stays at the widest place of the graphs.
    """
    nodes = {node.name: node for node in graph.graph.nodes}
    wanted = {layer.node: layer for layer in layers if layer.kind in WEIGHTED}
    with torch.no_grad():
        one, other = Walker(float_graph, leaves), Walker(graph, leaves)
        for twin in list(float_graph.graph.nodes):
            node = nodes.get(twin.name)
            if node is None or twin.name not in wanted:
                continue
            one.run_until(twin)
            x = one.value(twin.args[0])
            if upstream == "float":
                x_hat = other.quantized(node.args[0], x)
            else:
                other.run_until(node)
                x_hat = other.value(node.args[0])
            outputs = partial(_output_kept, one, twin, x), partial(other.output, node, x_hat)
            becomes = partial(other.give, node)
            visit(Stop(wanted[twin.name], twin, node, x, x_hat, *outputs, becomes))
            return_free_memory()
