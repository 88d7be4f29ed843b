"""What a legal graph is, and the verifier that says so after every pass.

Normal form: only ``placeholder``, ``get_attr``, ``call_function`` and ``output`` nodes; functions
are functional ATen overloads before dispatch, ``quantized_decomposed`` or ``fxquant`` operators,
or arithmetic on symbolic sizes; every node carries ``val`` (a fake tensor or size), ``layer`` and
``source`` in its ``meta``.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch
from torch.fx import GraphModule, Node

from fxquant.errors import UnsupportedOpError, VerificationError

NAMESPACES = frozenset({"aten", "quantized_decomposed", "fxquant"})
SIZE_ARITHMETIC = frozenset(
    {
        operator.getitem,
        operator.add,
        operator.sub,
        operator.mul,
        operator.floordiv,
        operator.mod,
        operator.neg,
        torch.sym_max,
        torch.sym_min,
        torch.sym_int,
    }
)
_OPCODES = frozenset({"placeholder", "get_attr", "call_function", "output"})


def op_name(node: Node) -> str:
    """``aten.linear.default`` or ``operator.mul``: the printed name of a call's target."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    return f"{getattr(target, '__module__', '').lstrip('_')}.{getattr(target, '__name__', target)}"


def where(node: Node) -> str:
    """Layer and source line of a node, for messages."""
    layer = node.meta.get("layer") or "(model)"
    source = node.meta.get("source")
    return f"layer {layer}, node {node.name}" + (f", {source}" if source else "")


def call_problem(node: Node) -> str:
    """Why a ``call_function`` node is outside the normal form; empty when it is inside."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        if target.namespace not in NAMESPACES:
            return f"operator {target} belongs to namespace {target.namespace!r}"
        if target._schema.is_mutable:
            return f"operator {target} changes its input in place"
        return f"operator {target} draws random numbers" if _draws(node, target) else ""
    if target in SIZE_ARITHMETIC:
        return ""
    return f"{op_name(node)} is not an ATen operator"


def _draws(node: Node, target: torch._ops.OpOverload) -> bool:
    """Whether a call draws random numbers, as dropout does only while training."""
    given = dict(zip((a.name for a in target._schema.arguments), node.args, strict=False))
    given |= node.kwargs
    if target is torch.ops.aten.scaled_dot_product_attention.default:
        return bool(given.get("dropout_p", 0.0) != 0.0)
    if torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    return given.get("train", given.get("training", True)) is not False


def require_supported(graph_module: GraphModule) -> None:
    """Raise :class:`UnsupportedOpError` for the first call outside the normal form."""
    for node in graph_module.graph.nodes:
        problem = call_problem(node) if node.op == "call_function" else ""
        if node.op not in _OPCODES:
            problem = f"{node.op} node {node.target!r}"
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and value.is_complex():
            problem = problem or f"{node.target} holds complex numbers"
        if problem:
            raise UnsupportedOpError(
                f"unsupported operation: {problem}",
                where=where(node),
                why="fxquant works on functional, deterministic ATen graphs of real tensors",
                fix="rewrite this line of the model with ordinary torch operations",
            )


def _problems(graph_module: GraphModule) -> Iterator[str]:
    for node in graph_module.graph.nodes:
        if node.op not in _OPCODES:
            yield f"{node.name}: opcode {node.op}"
            continue
        if node.op == "output":
            continue
        if node.op == "call_function" and (problem := call_problem(node)):
            yield f"{node.name}: {problem}"
        for key in ("val", "layer", "source"):
            if key not in node.meta:
                yield f"{node.name}: meta has no {key!r}"
        if node.op == "get_attr" and not _resolves(graph_module, str(node.target)):
            yield f"{node.name}: no tensor at {node.target!r}"


def _resolves(module: torch.nn.Module, target: str) -> bool:
    value: object = module
    for part in target.split("."):
        if not hasattr(value, part):
            return False
        value = getattr(value, part)
    return isinstance(value, torch.Tensor)


def verify(graph_module: GraphModule, *, after: str = "capture") -> None:
    """Raise :class:`VerificationError` listing what is wrong; ``after`` names the pass."""
    try:
        graph_module.graph.lint()
    except (RuntimeError, ValueError) as error:
        raise VerificationError(
            f"the graph is malformed after {after}", why=str(error), fix=f"correct pass {after!r}"
        ) from error
    problems = list(_problems(graph_module))
    if problems:
        raise VerificationError(
            f"the graph left normal form after {after}",
            where="; ".join(problems[:5]) + (" ..." if len(problems) > 5 else ""),
            fix=f"pass {after!r} must give every node it makes a val, layer and source",
        )
