"""How much the loss hangs on each output of a layer: squared gradients on calibration images."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_leaves

from fxquant.errors import CalibrationError
from fxquant.quant.calibration import Leaves
from fxquant.quant.memory import return_free_memory

Loss = Callable[[Tensor], Tensor]  # of logits [rows, classes], a scalar
IMAGES = 4  # in memory at once, with everything that backpropagation needs


class Kept(Interpreter):
    """Runs a graph under autograd and keeps the values of some nodes."""

    def __init__(self, graph_module: GraphModule, names: Collection[str]) -> None:
        super().__init__(graph_module, garbage_collect_values=True)
        self.extra_traceback = False
        self.names = names
        self.kept: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        """One node, kept where it is wanted."""
        value = super().run_node(n)
        if n.op == "get_attr" and value.is_inference():
            value = value.clone()  # what inference mode made cannot be kept for backpropagation
        if n.name in self.names:
            self.kept[n.name] = value
        return value

    def squared_gradients(
        self, leaves: Leaves, names: Collection[str], loss: Loss
    ) -> dict[str, Tensor]:
        """Those of ``loss`` by kept values, in their shapes, after a run on ``leaves``."""
        with torch.enable_grad():
            inputs = [leaf.detach().clone().requires_grad_() for leaf in leaves]
            logits = logits_of(self.run(*inputs, enable_io_processing=False))
            values = [self.kept[name] for name in names]
            gradients = torch.autograd.grad(loss(logits), values, allow_unused=True)
        return {
            name: (torch.zeros_like(value) if gradient is None else gradient.square()).detach()
            for name, value, gradient in zip(names, values, gradients, strict=True)
        }


def own_entropy(logits: Tensor) -> Tensor:
    """The cross entropy of logits ``[rows, classes]`` with their own argmax for labels, summed.

    The papers (2a) weigh errors by squared gradients of "the loss"; this one is [I]: it needs no
    labels, and as a sum over images it does not mix them.
    """
    return F.cross_entropy(logits, logits.detach().argmax(-1), reduction="sum")


def values_and_importance(
    graph_module: GraphModule, leaves: Leaves, sources: Mapping[str, str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Input value and squared gradient at the output of each layer, by node name, ``[B, ...]``.

    ``sources``: the node that makes a layer's input, by the layer's node. The gradient is that of
    :func:`own_entropy`.
    """
    runner = Kept(graph_module, set(sources) | set(sources.values()))
    squared = runner.squared_gradients(leaves, sources, own_entropy)
    return_free_memory()
    return {name: (runner.kept[of].detach(), squared[name]) for name, of in sources.items()}


def logits_of(result: Any) -> Tensor:
    """The model's first floating output with classes on its last axis, as ``[rows, classes]``."""
    found = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
    floating = [leaf for leaf in found if leaf.is_floating_point() and leaf.dim() > 1]
    if not floating:
        raise CalibrationError(
            "the model gives no scores to take a loss of",
            why="range rule 'fisher' needs an output [batch, classes]",
            fix="use the rule 'output' or 'mse'",
        )
    return floating[0].reshape(-1, floating[0].shape[-1])
