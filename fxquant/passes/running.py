"""Running a graph to look at its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

aten = torch.ops.aten


def fast_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``aten.linear`` through oneDNN where it is built in.

    On AMD torch's default library takes a path half as fast, and calibration is nothing but
    linears; results differ in the last bits only.
    """
    if x.dtype is torch.float32 and torch.backends.mkldnn.is_available():
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return y
    return torch.nn.functional.linear(x, weight, bias)


def in_turn(callbacks: Sequence[Callable[[Tensor], None]]) -> Callable[[Tensor], None]:
    """One callback that shows a tensor to several."""

    def show(x: Tensor) -> None:
        for callback in callbacks:
            callback(x)

    return show


class Runner(Interpreter):
    """Interprets a graph, frees values when they die, and shows chosen tensors to callbacks.

    ``inputs``: callback for a node's first argument, by node name; ``outputs``: for its value.
    Linears go through :func:`fast_linear`.
    """

    def __init__(
        self,
        graph_module: GraphModule,
        *,
        inputs: Mapping[str, Callable[[Tensor], None]] | None = None,
        outputs: Mapping[str, Callable[[Tensor], None]] | None = None,
    ) -> None:
        super().__init__(graph_module, garbage_collect_values=True)
        self.extra_traceback = False  # errors name the layer themselves
        self._inputs = inputs or {}
        self._outputs = outputs or {}

    def __call__(self, leaves: tuple[Tensor, ...]) -> Any:
        """Run on flat inputs, in placeholder order, without gradients."""
        with torch.inference_mode():
            return self.run(*leaves, enable_io_processing=False)

    def run_node(self, n: Node) -> Any:
        """One node, with its callbacks."""
        if n.name in self._inputs:
            source = n.args[0]
            assert isinstance(source, Node)
            self._inputs[n.name](self.env[source])
        value = super().run_node(n)
        if n.name in self._outputs:
            self._outputs[n.name](value)
        return value

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """ATen, with the faster linear."""
        if target is aten.linear.default:
            return fast_linear(*args)
        return super().call_function(target, args, kwargs)
