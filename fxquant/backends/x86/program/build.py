"""A canonical quantized graph into steps: every node interpreted for one image."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxquant.backends.x86.program.arithmetic import ARITHMETIC
from fxquant.backends.x86.program.emitter import Emitter
from fxquant.backends.x86.program.layers import LAYERS
from fxquant.backends.x86.program.movement import moved
from fxquant.backends.x86.program.softmax import SOFTMAX
from fxquant.backends.x86.program.steps import Step
from fxquant.backends.x86.program.values import (
    Buffer,
    Codes,
    Image,
    Unsupported,
    View,
    Weight,
    said,
    whole,
)
from fxquant.graph.flow import is_movement
from fxquant.graph.shapes import per_image, shape_of
from fxquant.graph.tensors import tensor_at
from fxquant.quant import ops

HANDLERS: dict[Any, Callable[..., Any]] = {**LAYERS, **ARITHMETIC, **SOFTMAX}


@dataclass(frozen=True)
class Built:
    """Steps in order; inputs and outputs by position; ``values``: where the values of nodes lie in
    memory, for those that come to lie there."""

    steps: tuple[Step, ...]
    inputs: tuple[Buffer, ...]
    outputs: tuple[Buffer, ...]
    output_shapes: tuple[tuple[int, ...], ...]
    values: dict[str, View]


def build(graph_module: GraphModule, library: ctypes.CDLL, *, track: bool = False) -> Built:
    """Interpret a canonical quantized graph; raises :class:`Unsupported` for what has no kernel.

    ``track``: keep where the values of nodes come to lie, for comparison; their indices take more
    memory than the model.
    """
    emitter = Emitter(library, track=track)
    env: dict[Node, Any] = {}
    inputs: list[Buffer] = []
    dying = _last_readers(graph_module)
    for node in graph_module.graph.nodes:
        if node.op == "placeholder":
            env[node] = _input(node, inputs)
        elif node.op == "get_attr":
            env[node] = tensor_at(graph_module, str(node.target)).detach()
        elif node.op == "call_function" and not _is_size(node):
            env[node] = _share(_interpret(node, env, emitter), node)
        for dead in dying.get(node, ()):
            env.pop(dead, None)
    results = _results(graph_module, env)
    outputs = []
    for number, view in enumerate(results):
        outputs.append(_output(emitter, view, number))
    return Built(
        tuple(emitter.steps),
        tuple(inputs),
        tuple(outputs),
        tuple(view.shape for view in results),
        emitter.values,
    )


def _last_readers(graph_module: GraphModule) -> dict[Node, list[Node]]:
    """The nodes that each node is the last to read; results are read to the end."""
    last: dict[Node, Node] = {}
    for node in graph_module.graph.nodes:
        for read in node.all_input_nodes:
            last[read] = node
    found: dict[Node, list[Node]] = {}
    for read, node in last.items():
        if node.op != "output":
            found.setdefault(node, []).append(read)
    return found


def _input(node: Node, inputs: list[Buffer]) -> View:
    shape = shape_of(node)[1:]
    if len(shape) != 3 or node.meta["val"].dtype not in (torch.float32, torch.uint8):
        raise Unsupported(f"an input of shape {list(shape)}")
    channels, height, width = shape
    held = Buffer(
        channels,
        height * width,
        "input",
        dtype=node.meta["val"].dtype,
        home="input",
        shape=shape,
        tensor=len(inputs),
    )
    inputs.append(held)
    gain, offset = torch.ones(channels), torch.zeros(channels)
    image = Image(channels, height * width, "input", held, (channels, height, width), gain, offset)
    return whole(image, (1, channels, height, width))


def _interpret(node: Node, env: dict[Node, Any], emitter: Emitter) -> Any:
    args = torch.fx.node.map_arg(node.args, lambda n: _held(n, env))
    kwargs = torch.fx.node.map_arg(node.kwargs, lambda n: _held(n, env))
    if node.target in ops.DEQUANTIZE and isinstance(args[0], Tensor):
        return _weight(node, args[0], args[1])
    if not _waits((args, kwargs)):
        target: Any = node.target
        return target(*args, **kwargs)  # constants and sizes
    if is_movement(node):
        return moved(node.target, args, kwargs)
    handler = HANDLERS.get(node.target)
    if handler is None:
        raise Unsupported(f"no kernel for {said(node)}")
    try:
        return handler(node, emitter, *args, **kwargs)
    except Unsupported as error:
        raise Unsupported(f"{said(node)}: {error}") from None


def _weight(node: Node, codes: Tensor, scale: Any) -> Weight:
    if codes.dtype is not torch.int8 or node.target is ops.dequantize_per_channel_group:
        raise Unsupported(f"{said(node)}: weights of {codes.dtype}, or scales per group")
    rows = codes.reshape(len(codes), -1).contiguous()
    scales = torch.as_tensor(scale, dtype=torch.float32).expand(len(rows))
    return Weight(rows, scales, tuple(codes.shape))


def _held(node: Node, env: dict[Node, Any]) -> Any:
    return per_image(node.meta["val"]) if _is_size(node) else env[node]


def _is_size(node: Node) -> bool:
    return isinstance(node.meta.get("val"), (torch.SymInt, int))


def _waits(value: Any) -> bool:
    """Whether a value depends on the input."""
    if isinstance(value, (tuple, list)):
        return any(_waits(part) for part in value)
    if isinstance(value, dict):
        return any(_waits(part) for part in value.values())
    return value is not None and _computed(value)


def _computed(value: Any) -> bool:
    return not isinstance(value, (Tensor, Weight, int, float, bool, str, torch.dtype, torch.device))


def _share(value: Any, node: Node) -> Any:
    """Name a value by its node, and mark one that several nodes read."""
    if isinstance(value, View):
        return replace(value, shared=value.shared or len(node.users) > 1, name=node.name)
    if isinstance(value, Codes):
        value.name = value.name or node.name
    if isinstance(value, (tuple, list)) and len(node.users) > 1:
        return tuple(_share(part, node) for part in value)
    return value


def _results(graph_module: GraphModule, env: dict[Node, Any]) -> list[View]:
    output = next(node for node in graph_module.graph.nodes if node.op == "output")
    found: list[View] = []
    for node in output.all_input_nodes:
        value = env[node]
        if not isinstance(value, View):
            raise Unsupported("a result that is not a float tensor of the batch")
        found.append(value)
    return found


def _output(emitter: Emitter, view: View, number: int) -> Buffer:
    width = view.shape[-1]
    into = Buffer(
        view.index.numel() // width, width, view.source.layer, home="output", tensor=number
    )
    source = view.source
    order = torch.arange(view.index.numel())
    in_order = view.index.numel() == source.size and torch.equal(view.index.reshape(-1), order)
    if source.buffer is None and in_order and source.columns == width and view.factor == 1.0:
        emitter.write(source, into)
        emitter.known(view.name, View(into, view.index))
    else:
        emitter.copy(view, into)
    return into
