"""torch.export: the default door, and the one the others end in."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.fx import GraphModule

from fxquant.errors import CaptureError


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
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CaptureError(
            "torch.export could not capture the model",
            where=_user_line(error),
            why=f"{type(error).__name__}: {reason[0][:500]}",
            fix="make the forward free of data-dependent control flow, check that the example "
            "fits the model, or pass torch.fx.symbolic_trace(model) instead of the model",
        ) from error
    assert isinstance(module, GraphModule)
    return module


def _user_line(error: BaseException) -> str:
    """The innermost frame of the traceback that lies outside torch and fxquant."""
    found, frame = "", error.__traceback__
    while frame is not None:
        name = frame.tb_frame.f_globals.get("__name__", "")
        if not name.startswith(("torch.", "fxquant.", "contextlib")) and name != "torch":
            found = f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}"
        frame = frame.tb_next
    return found
