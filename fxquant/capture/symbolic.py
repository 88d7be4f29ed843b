"""Graphs already traced by ``torch.fx.symbolic_trace``: run node by node into torch.export."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch.fx
from torch import nn
from torch.fx import GraphModule

from fxquant.errors import CaptureError


def trace(model: nn.Module) -> GraphModule:
    """``symbolic_trace`` that keeps the stack trace of every call, so that lines are known."""
    tracer = torch.fx.Tracer()
    tracer.record_stack_traces = True
    try:
        return GraphModule(model, tracer.trace(model))
    except Exception as error:  # a traced forward may raise anything at all
        raise CaptureError(
            "symbolic_trace cannot follow the model",
            where=f"{type(model).__name__}.forward",
            why=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            fix="pass the model itself: torch.export follows more",
        ) from error


def replayable(traced: GraphModule) -> nn.Module:
    """A module with the traced module's parameters whose forward interprets its graph.

    Interpreting keeps each node's ``nn_module_stack`` and ``stack_trace`` through re-export; the
    traced module's generated code would hide them.
    """
    owner = traced.graph.owning_module
    shallow = copy.copy(traced)
    traced.graph.owning_module = owner  # the copy claims the graph it was given
    signature = inspect.signature(traced.forward)

    def forward(*args: Any, **kwargs: Any) -> Any:
        positional = signature.bind(*args, **kwargs).args
        with torch.fx.traceback.preserve_node_meta():
            return torch.fx.Interpreter(traced, garbage_collect_values=True).run(*positional)

    forward.__signature__ = signature  # type: ignore[attr-defined]  # torch.export reads it
    object.__setattr__(shallow, "forward", forward)
    return shallow
