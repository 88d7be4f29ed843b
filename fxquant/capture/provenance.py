"""Where a node comes from: the module path it ran in and the line of source that wrote it."""

from __future__ import annotations

import importlib
import inspect
import re
from functools import lru_cache

from torch.fx import Graph, Node

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_NOT_THE_MODEL = re.compile(
    r"[/\\]torch[/\\]|^torch[/\\]|<eval_with_key>|[/\\]fxquant[/\\]capture[/\\]"
)


def module_path(node: Node) -> str:
    """Innermost entry of the module stack: values survive re-export, keys do not."""
    stack = node.meta.get("nn_module_stack") or {}
    for path, kind in reversed(list(stack.values())):
        name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
        if "_empty_nn_module_stack" in path or name.endswith("Wrapper"):
            return ""
        return str(path)
    return ""


@lru_cache(maxsize=1024)
def _class_line(qualified: str) -> str:
    module, _, name = qualified.rpartition(".")
    try:
        forward = getattr(importlib.import_module(module), name).forward
        _, line = inspect.getsourcelines(forward)
        return f"{inspect.getsourcefile(forward)}:{line}"
    except (ImportError, AttributeError, OSError, TypeError, ValueError):
        return ""


def innermost_frame(trace: str) -> str:
    """``file:line`` of the last frame of a printed stack that lies outside torch, else empty."""
    for file, line in reversed(_FRAME.findall(trace)):
        if not _NOT_THE_MODEL.search(file):
            return f"{file}:{line}"
    return ""


def source_line(node: Node) -> str:
    """``file:line`` of the innermost frame outside torch, else of the module's ``forward``."""
    if frame := innermost_frame(node.meta.get("stack_trace") or ""):
        return frame
    stack = node.meta.get("nn_module_stack") or {}
    for _, kind in reversed(list(stack.values())):
        name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
        if not name.startswith("torch.") and (found := _class_line(name)):
            return found
    return ""


def record_provenance(graph: Graph) -> None:
    """Set ``meta["layer"]`` and ``meta["source"]`` on every node.

    A node that has no line of its own (tensors, sizes) takes that of its first reader, and one
    without a reader (a write into an input) that of its last operand.
    """
    for node in graph.nodes:
        node.meta["layer"] = module_path(node)
        node.meta["source"] = source_line(node)
    for node in reversed(list(graph.nodes)):
        if node.meta["source"] == "":
            operand = node.all_input_nodes[-1:] if not node.users else []
            node.meta["source"] = next((n.meta["source"] for n in [*node.users, *operand]), "")
        if node.op == "get_attr" and not node.meta["layer"]:
            node.meta["layer"] = str(node.target).rpartition(".")[0]
