"""Does each lowered region reproduce the reference? Compared on the reference's own inputs.

End to end two correct implementations part by quantization noise, because rounding amplifies the
last bit; region by region they must agree within one output step.
"""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import CDLL
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from fxquant.backends.x86 import ops as kernels
from fxquant.backends.x86.canonical import canonical
from fxquant.backends.x86.compiled import library
from fxquant.backends.x86.module import LoweredModule
from fxquant.backends.x86.program.build import Built, build
from fxquant.backends.x86.program.compare import differences
from fxquant.graph.tensors import tensor_at

_BF16_STEP = 2.0**-7
_F32_STEP = 2.0**-18
_GELU_ERROR = 1e-4  # of the kernels' polynomial, absolute: kernels/activation.h
_NATIVE_F32_STEP = 2.0**-16  # the reference adds up in float32, the kernels in integers
_F32_EPS = 2.0**-24
_U8, _S8 = 255, 127  # largest codes


@dataclass(frozen=True)
class RegionDifference:
    """How far a region's output is from the reference's.

    A step is one code for u8 outputs. For floating outputs it is the largest of: one unit of the
    integer accumulator (input step times the channel's weight step), or one float32 rounding of
    the largest sum it can hold, since the reference adds up in float32; one bf16 unit of the value
    for bf16 outputs; 32 float32 units of the largest value for f32 outputs.
    """

    layer: str
    kernel: str
    elements: int
    differing: int
    worst_steps: float

    @property
    def share(self) -> float:
        """Share of differing elements."""
        return self.differing / self.elements


def region_differences(
    lowered: LoweredModule, leaves: tuple[Tensor, ...]
) -> list[RegionDifference]:
    """One entry per int8 region, for flat inputs ``leaves`` (a few images). With the ``native``
    executor a region is a step of the program, compared wherever it leaves a node's value.

    The reference is taken in canonical form, where codes are those of the kernels: its values are
    the same bits, and its nodes bear the names that lowered ones remember.
    """
    graph_module = lowered.graph_module
    reference, _ = canonical(lowered.reference)
    record = _Recorder(reference, _boundary_names(reference))
    if (native := lowered.native) is not None:
        each = zip(*(leaf.split(1) for leaf in leaves), strict=True)
        built_for = library(native.level)
        built = build(reference, built_for, track=True)
        return [entry for image in each for entry in _steps(built, built_for, record(image), image)]
    values = record(leaves)
    found = []
    for node in graph_module.graph.nodes:
        if "replaces" not in node.meta:
            continue
        region = _region(node, values)
        kernel = next(n for n in reversed(region) if n.target in kernels.KERNELS)
        with torch.inference_mode():
            ours = _evaluate(graph_module, region, values)
        found.append(_compare(graph_module, kernel, ours, values[node.meta["replaces"]]))
    return found


def _steps(
    built: Built, kernels: CDLL, values: dict[str, Any], image: tuple[Tensor, ...]
) -> Iterator[RegionDifference]:
    known = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    for found in differences(built, kernels, known, image):
        if not found.step.int8:
            continue
        codes = found.ours.dtype is torch.uint8
        ours, reference = found.ours.to(torch.float64), found.reference.to(torch.float64)
        unit = 1.0 if codes else float(reference.abs().max()) * _NATIVE_F32_STEP
        if not codes and "gelu" in found.step.text:
            unit = max(unit, _GELU_ERROR)
        steps = (ours - reference).abs() / max(unit, torch.finfo(torch.float32).tiny)
        yield RegionDifference(
            layer=found.step.layer,
            kernel="u8" if codes else "f32",
            elements=steps.numel(),
            differing=int((steps > 0.5).sum()),
            worst_steps=float(steps.max()),
        )


def _boundary_names(reference: GraphModule) -> set[str]:
    return {n.name for n in reference.graph.nodes if n.op in {"placeholder", "call_function"}}


class _Recorder(Interpreter):
    """Runs the reference and keeps every value."""

    def __init__(self, graph_module: GraphModule, names: set[str]) -> None:
        super().__init__(graph_module, garbage_collect_values=False)
        self._names = names

    def __call__(self, leaves: tuple[Tensor, ...]) -> dict[str, Any]:
        with torch.inference_mode():
            self.run(*leaves, enable_io_processing=False)
        return {n.name: v for n, v in self.env.items() if n.name in self._names}


def _equivalent(node: Node, values: dict[str, Any]) -> str | None:
    name = node.meta.get("replaces", node.name)
    return name if name in values else None


def _region(output: Node, values: dict[str, Any]) -> list[Node]:
    """Lowered nodes between ``output`` and those that have a counterpart in the reference."""
    region, stack = {output}, [output]
    while stack:
        for parent in stack.pop().all_input_nodes:
            if parent not in region and (
                parent.op == "get_attr" or _equivalent(parent, values) is None
            ):
                region.add(parent)
                stack.append(parent)
    return [node for node in output.graph.nodes if node in region]


def _evaluate(graph_module: GraphModule, region: list[Node], values: dict[str, Any]) -> Tensor:
    env: dict[Node, Any] = {}

    def value(node: Node) -> Any:
        if node in env:
            return env[node]
        if node.op == "get_attr":
            return tensor_at(graph_module, str(node.target))
        return values[str(_equivalent(node, values))]

    for node in region:
        if node.op == "call_function":
            target: Any = node.target
            args = torch.fx.node.map_arg(node.args, value)
            env[node] = target(*args, **torch.fx.node.map_arg(node.kwargs, value))
    result: Tensor = env[region[-1]]
    return result


def _accumulator_step(graph_module: GraphModule, kernel: Node, ours: Tensor) -> Tensor:
    """``[channels]``, along the axis of ``ours`` that has them; 0 where each token has a scale."""
    w_scale = tensor_at(graph_module, str(kernel.args[4].target)).to(torch.float64)  # type: ignore[union-attr]
    x_scale: Any = kernel.args[1]
    if kernel.args[2] == 0 and x_scale == 1.0:  # the per-token rule: scales come after the kernel
        return torch.zeros((), dtype=torch.float64)
    features = int(kernel.args[3].meta["val"].shape[1])  # type: ignore[union-attr]
    largest_sum = _U8 * _S8 * features
    step: Tensor = w_scale * float(x_scale) * max(1.0, largest_sum * _F32_EPS)
    if ours.shape[-1] == step.numel():
        return step
    return step.reshape(-1, *[1] * (ours.dim() - 2))  # a convolution's channels come first


def _compare(
    graph_module: GraphModule, kernel: Node, ours: Tensor, reference: Tensor
) -> RegionDifference:
    difference = (ours.to(torch.float64) - reference.to(torch.float64)).abs()
    if ours.dtype is torch.uint8:
        steps, kind = difference, "u8"
    else:
        size = reference.to(torch.float64).abs()
        unit, kind = size.max() * _F32_STEP, "f32"
        if ours.dtype is torch.bfloat16:
            unit, kind = size * _BF16_STEP, "bf16"
        steps = difference / torch.maximum(unit, _accumulator_step(graph_module, kernel, ours))
    return RegionDifference(
        layer=str(kernel.meta["layer"]),
        kernel=kind,
        elements=steps.numel(),
        differing=int((steps > 0.5).sum()),
        worst_steps=float(steps.max()),
    )
