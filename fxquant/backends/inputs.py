"""Checks at the door of a finished model, before a kernel meets a tensor it cannot read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx import GraphModule

from fxquant.errors import InputError
from fxquant.graph.shapes import shape_of

_KINDS = (
    ("float32", "apply the model's preprocessing: (image / 255 - mean) / std"),
    (
        "uint8",
        "pass the raw pixels 0..255: the model was made with entry='uint8' and normalizes nothing",
    ),
)


@dataclass(frozen=True)
class InputCheck:
    """A forward pre-hook: CPU tensors of the graph's own types and shapes, one batch size.

    An input is float32, or uint8 where the model was made with ``entry="uint8"``. Silent inside
    ``torch.compile``, which traces the call it is given.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]

    @staticmethod
    def of(graph_module: GraphModule) -> InputCheck:
        """The check for a graph's tensor inputs."""
        inputs = [
            node
            for node in graph_module.graph.nodes
            if node.op == "placeholder" and isinstance(node.meta.get("val"), Tensor)
        ]
        return InputCheck(
            tuple(str(node.target) for node in inputs),
            tuple(shape_of(node)[1:] for node in inputs),
            tuple(node.meta["val"].dtype for node in inputs),
        )

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise :class:`InputError` naming the first input that does not fit."""
        if torch.compiler.is_compiling():
            return
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if len(tensors) != len(self.names):
            raise InputError(
                f"the model takes {len(self.names)} tensors, not {len(tensors)}",
                where=f"inputs {', '.join(self.names)}",
                fix="call it as the float model was called when it was captured",
            )
        wanted = zip(self.names, self.shapes, self.dtypes, strict=True)
        for (name, shape, dtype), x in zip(wanted, tensors, strict=True):
            if x.dtype is not dtype or x.device.type != "cpu":
                kind, fix = _KINDS[dtype is torch.uint8]
                raise InputError(
                    f"inputs must be {kind} on the CPU, not {x.dtype} on {x.device}",
                    where=f"input {name}",
                    fix=fix,
                )
            if x.dim() != len(shape) + 1 or tuple(x.shape[1:]) != shape:
                raise InputError(
                    f"shape {tuple(x.shape)} does not fit the model",
                    where=f"input {name}",
                    why=f"it was captured for [batch, {', '.join(map(str, shape))}]",
                    fix="resize the input, or quantize the model again with example= of that shape",
                )
        if len({x.shape[0] for x in tensors}) > 1:
            raise InputError("inputs disagree on the batch size", where=", ".join(self.names))
