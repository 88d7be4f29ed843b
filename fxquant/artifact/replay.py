"""``meta["val"]`` of every node, computed anew from the inputs without touching real data."""

from __future__ import annotations

from typing import Any

import torch
from torch import SymInt, Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from fxquant.artifact.arguments import DTYPES, decode_argument
from fxquant.artifact.checks import (
    LARGEST_INTEGER,
    brief,
    integer,
    items,
    mapping,
    unsound,
    unstorable,
)
from fxquant.graph.normal_form import where as place_of
from fxquant.graph.tensors import tensor_at

BATCH = "batch"
# Stands for the batch size where torch wants an example. A prime that no model has as an axis,
# so that no size coincides with it and the batch is not mistaken for a constant.
_EXAMPLE_BATCH = 7919


def encode_input(node: Node) -> dict[str, Any]:
    """Dtype and shape of a tensor input, or the value that a constant input was captured with."""
    value, where = node.meta["val"], place_of(node)
    if not isinstance(value, Tensor):
        if not (value is None or isinstance(value, (bool, int, float))):
            raise unstorable(f"an input {type(value).__name__}", where=where)
        return {"constant": {"float": value.hex()} if isinstance(value, float) else value}
    shape: list[Any] = [size if isinstance(size, int) else BATCH for size in value.shape]
    names = [name for name, dtype in DTYPES.items() if dtype == value.dtype]
    if not names or BATCH in shape[1:]:
        raise unstorable(
            f"an input {value.dtype} of shape {shape}",
            where=where,
            why="only axis 0, the batch, may vary",
        )
    return {"dtype": names[0], "shape": shape}


def replay(graph_module: GraphModule, inputs: list[Any]) -> None:
    """Set ``val`` on every node but the output; raises where an operator refuses its arguments."""
    shapes = ShapeEnv()
    mode = FakeTensorMode(shape_env=shapes)
    batch = _batch_size(shapes)
    remaining = iter(inputs)
    with torch.no_grad():
        for node in graph_module.graph.nodes:
            if node.op == "placeholder":
                where = f"graph.json, input {node.name}"
                node.meta["val"] = _input(next(remaining), mode, batch, where=where)
            elif node.op == "get_attr":
                tensor = tensor_at(graph_module, str(node.target))
                node.meta["val"] = mode.from_tensor(tensor, static_shapes=True)
            elif node.op == "call_function":
                node.meta["val"] = _bounded(_call(node, mode), node)
    if batch.node.maybe_as_int() is not None:
        raise unsound("it fixes the batch size", where="graph.json")


def _call(node: Node, mode: FakeTensorMode) -> Any:
    def value(argument: Node) -> Any:
        return argument.meta["val"]

    args = torch.fx.node.map_arg(node.args, value)
    kwargs = torch.fx.node.map_arg(node.kwargs, value)
    assert callable(node.target)
    try:
        # Without torch's Python decompositions some operators take the batch for a constant.
        with enable_python_dispatcher(), mode:
            return node.target(*args, **kwargs)
    except Exception as error:  # operators raise types of their own
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise unsound(
            f"{node.target} refuses its arguments: {reason[0][:300]}", where=place_of(node)
        ) from error


def _bounded(value: Any, node: Node) -> Any:
    """Sizes stay 64 bits wide: repeated squaring would otherwise eat all memory."""
    size = value.node.hint if isinstance(value, SymInt) else value
    if isinstance(size, int) and abs(size) > LARGEST_INTEGER:
        raise unsound("a size exceeds 64 bits", where=place_of(node))
    return value


def _batch_size(shapes: ShapeEnv) -> Any:
    source = ConstantSource(BATCH)
    symbol = shapes.create_symbol(_EXAMPLE_BATCH, source=source, dynamic_dim=DimDynamic.DYNAMIC)
    return shapes.create_symintnode(symbol, hint=_EXAMPLE_BATCH, source=source)


def _input(entry: Any, mode: FakeTensorMode, batch: Any, *, where: str) -> Any:
    if isinstance(entry, dict) and set(entry) == {"constant"}:
        return decode_argument(entry["constant"], {}, takes_text=False, where=where)
    mapping(entry, {"dtype", "shape"}, where=where)
    shape = items(entry["shape"], where=where)
    if shape[:1] == [BATCH]:
        sizes = [batch, *(integer(size, where=where) for size in shape[1:])]
    else:
        sizes = [integer(size, where=where) for size in shape]
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
        raise unsound(f"unknown dtype {brief(entry['dtype'])}", where=where)
    if any(isinstance(size, int) and size < 0 for size in sizes):
        raise unsound("an input has a negative size", where=where)
    with mode:
        return torch.empty(sizes, dtype=DTYPES[entry["dtype"]], device="cpu")
