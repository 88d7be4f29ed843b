"""torch.export: the default door, and the one the others end in."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.fx import GraphModule

from fxquant.capture.provenance import innermost_frame
from fxquant.errors import CaptureError

_NOT_THE_MODEL = frozenset({"torch", "fxquant", "contextlib", "inspect"})


def _exported(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> torch.export.ExportedProgram:
    dynamic = torch.export.Dim.DYNAMIC

    def batch_axis(value: Any) -> Any:
        return {0: dynamic} if isinstance(value, Tensor) else None

    shapes = pytree.tree_map(batch_axis, (args, kwargs))
    by_name: Any = shapes[0] if not kwargs else None
    if kwargs:
        import inspect

        names = list(inspect.signature(model.forward).parameters)[: len(args)]
        by_name = dict(zip(names, shapes[0], strict=True)) | shapes[1]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return torch.export.export(model, args, kwargs, dynamic_shapes=by_name, strict=False)


def _is_functional(program: torch.export.ExportedProgram) -> bool:
    return not any(
        isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
        for node in program.graph.nodes
    )


def export_graph(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> GraphModule:
    """An ATen graph with a dynamic batch axis; parameters are shared with ``model``, not copied.

    Raises :class:`CaptureError` with the model's line where torch.export cannot follow it.
    """
    try:
        program = _exported(model, args, kwargs)
        if not _is_functional(program):
            # In-place operations are rewritten by a re-trace; costs seconds, so only on demand.
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                program = program.run_decompositions({})
        module = program.module()
    except Exception as error:  # torch.export raises types of its own at every level
        raise CaptureError(
            "torch.export could not capture the model",
            where=_user_line(error) or f"{type(model).__name__}.forward",
            why=_reason(error),
            fix="make the forward free of data-dependent control flow, check that the example "
            "fits the model, or pass torch.fx.symbolic_trace(model) instead of the model",
        ) from error
    assert isinstance(module, GraphModule)
    return module


def _reason(error: Exception) -> str:
    text = str(error).strip()
    if "your code specialized it to be a constant" in text:
        return "the code fixes the batch size: len(x), int(x.shape[0]) or a number in a reshape"
    first = text.splitlines()[0] if text else ""
    return f"{type(error).__name__}: {first[:500]}".removesuffix(": ")


def _user_line(error: BaseException) -> str:
    """The innermost frame of the traceback that lies outside torch and fxquant; for a traced
    graph, whose own frames are torch's, the line that the message quotes."""
    found, frame = "", error.__traceback__
    while frame is not None:
        name = frame.tb_frame.f_globals.get("__name__", "")
        file = frame.tb_frame.f_code.co_filename
        if name.partition(".")[0] not in _NOT_THE_MODEL and not file.startswith("<"):
            found = f"{file}:{frame.tb_lineno}"
        frame = frame.tb_next
    return found or innermost_frame(str(error))
