"""A quantized graph as one program of C++ kernels, called by one operator."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace

import torch
from torch.fx import GraphModule, Node

from fxquant.backends.quantized import QuantizedModule
from fxquant.backends.x86.canonical import canonical
from fxquant.backends.x86.compiled import levels, library
from fxquant.backends.x86.program.build import Built, build
from fxquant.backends.x86.program.encode import encode
from fxquant.backends.x86.program.run import Call, run_program
from fxquant.backends.x86.program.values import Unsupported
from fxquant.backends.x86.tuning import best_micro_batch
from fxquant.errors import BackendError
from fxquant.graph.rule import reasons_of
from fxquant.graph.tensors import add_buffer, call, copy_graph, prune
from fxquant.quant.memory import return_free_memory


@dataclass(frozen=True)
class StepInfo:
    """One call of a program: its kernel, the layer it works for, what it computes, and the other
    layers it computes as well."""

    kernel: str
    layer: str
    text: str
    int8: bool
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Native:
    """``graph_module``: the program's one call. ``kernel_of``: layer to the int8 kernel that runs
    it. ``steps``: what the program does, one by one. ``level``: the instruction set."""

    graph_module: GraphModule
    kernel_of: dict[str, str]
    declined: dict[str, tuple[str, ...]]
    steps: tuple[StepInfo, ...]
    level: str
    micro_batch: int

    def with_micro_batch(self, images: int) -> Native:
        """The same program, ``images`` going through it together."""
        made = GraphModule(self.graph_module, copy_graph(self.graph_module.graph), "Lowered")
        for name in ("program", "constants"):
            made._non_persistent_buffers_set.add(name)
        for node in made.graph.nodes:
            if node.target is run_program:
                node.args = (*node.args[:-1], images)
        made.recompile()
        return replace(self, graph_module=made, micro_batch=images)


def lower_native(quantized: QuantizedModule, *, micro: int | None = None) -> Native:
    """Every node as a step of one program; ``micro`` images go through it together, measured here
    where None.

    Raises :class:`Unsupported` with the reason where a node has no kernel, or none can be built.
    """
    usable = levels()
    if not usable:
        raise Unsupported("the CPU is not x86-64")
    try:
        kernels = library(usable[0])
    except BackendError as error:
        raise Unsupported(": ".join(filter(None, (error.what, error.why)))) from error
    graph_module, log = canonical(quantized)
    built = build(graph_module, kernels)
    return_free_memory()
    encoded = encode(built)
    shapes = tuple(size for shape in built.output_shapes for size in (len(shape), *shape))
    inputs = tuple((held.shape, held.dtype) for held in built.inputs)
    made = Call(encoded.program, encoded.constants, inputs, shapes, usable[0])
    images = best_micro_batch(made) if micro is None else micro
    return Native(
        graph_module=_one_call(graph_module, made, images),
        micro_batch=images,
        kernel_of=_kernel_of(built, usable[0]),
        declined=reasons_of([log]),
        steps=tuple(
            StepInfo(step.kernel.name.lower(), step.layer, step.text, step.int8, step.also)
            for step in built.steps
        ),
        level=usable[0],
    )


def _kernel_of(built: Built, level: str) -> dict[str, str]:
    return {
        layer: f"{level} {step.text}"
        for step in built.steps
        if step.int8
        for layer in (step.layer, *step.also)
    }


def _one_call(graph_module: GraphModule, held: Call, micro: int) -> GraphModule:
    """The graph's inputs, the program, its outputs."""
    made = GraphModule(graph_module, copy_graph(graph_module.graph), class_name="Lowered")
    nodes = list(made.graph.nodes)
    output = next(node for node in nodes if node.op == "output")
    like = next(node for node in reversed(nodes) if node.op == "call_function")
    inputs = [n for n in nodes if n.op == "placeholder" and isinstance(_value(n), torch.Tensor)]
    program = add_buffer(made, "program", held.program, like=like, before=output)
    constants = add_buffer(made, "constants", held.constants, like=like, before=output)
    with made.graph.inserting_before(output):
        shapes = list(held.output_shapes)
        arguments = (program, constants, inputs, shapes, held.level, micro)
        results = call(made, run_program, arguments, like=like)
        parts = [
            call(made, operator.getitem, (results, number), like=like)
            for number in range(len(output.all_input_nodes))
        ]
    given = dict(zip(output.all_input_nodes, parts, strict=True))
    output.args = torch.fx.node.map_arg(output.args, lambda node: given[node])
    for node in reversed(nodes):  # fused attention is never seen as dead: it could draw numbers
        if node.op == "call_function" and not node.users:
            made.graph.erase_node(node)
    prune(made)
    for name in ("program", "constants"):
        made._non_persistent_buffers_set.add(name)
    return made


def _value(node: Node) -> object:
    return node.meta.get("val")
