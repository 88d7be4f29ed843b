"""Raw 8-bit images at the door: no normalisation is computed at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.utils._pytree as pytree
from torch.fx import GraphModule, Node

from fxquant.errors import PipelineError
from fxquant.graph.flow import consumers, moved_through
from fxquant.graph.tensors import copy_graph, prune
from fxquant.passes.exact_input import ExactInput, pixel_schemes
from fxquant.pipeline.base import Pass
from fxquant.pipeline.plan import Plan
from fxquant.pipeline.state import Fact, State
from fxquant.quant import ops
from fxquant.quant.pixels import LARGEST

aten = torch.ops.aten
_ASKS_SIZES = frozenset({aten.sym_size.int, aten.sym_numel.default})


@dataclass(frozen=True)
class RawPixels(Pass):
    """q(a x + c - z) -> p: behind :class:`ExactInput` the image's codes are the image's own pixels.

    The graph then takes ``uint8 [N, C, H, W]``, 0..255, in place of normalised floats. Comes after
    every pass that runs the graph on calibration data, which is always what the float model takes.
    """

    name: ClassVar[str] = "raw_pixels"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.GRAPH, Fact.PLAN, Fact.QUANTIZED})
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.GRAPH})

    def run(self, state: State) -> State:
        """Set ``graph``; :class:`PipelineError` where the model cannot do with raw pixels."""
        source = state.graph
        graph_module = GraphModule(source, copy_graph(source.graph))
        zero_points = {int(s.parameter or 0) for s in pixel_schemes(state.plan).values()}
        inputs = [n for n in graph_module.graph.nodes if n.op == "placeholder"]
        images = [n for n in inputs if _scaled(n, zero_points) is not None]
        if not images:
            raise PipelineError(
                "no input of the model takes raw pixels",
                where=f"pass {self.name}",
                why=_why(state.plan),
                fix="give entry='float32', or input_normalization=(mean, std) of 8-bit images",
            )
        for image in images:
            _take_raw(image, zero_points)
        prune(graph_module)
        return state.having(Fact.GRAPH, graph_module)


def _scaled(image: Node, zero_points: set[int]) -> Node | None:
    """``a x + c - z`` as :class:`ExactInput` writes it, at an image."""
    for product in image.users:
        reader = next(iter(product.users), None)
        constant = product.args[1] if product.target is aten.mul.Tensor else None
        if isinstance(constant, Node) and constant.op == "get_attr" and reader is not None:
            readers = [user for user, _ in consumers(reader)]
            holds = any(_holds_pixels(user, zero_points) for user in readers)
            if reader.target is aten.add.Tensor and holds:
                return reader
    return None


def _holds_pixels(node: Node, zero_points: set[int]) -> bool:
    """Whether a node's codes are pixels: scale 1, and the zero point that was subtracted."""
    if node.target is not ops.quantize_per_tensor or node.args[2] not in zero_points:
        return False
    return bool(node.args[1] == 1.0) and node.args[3:] == (0, LARGEST, torch.uint8)


def _take_raw(image: Node, zero_points: set[int]) -> None:
    pixels = _scaled(image, zero_points)
    assert pixels is not None
    uses = list(consumers(pixels))
    scaled = pixels.all_input_nodes
    others = [n for n in image.users if n not in scaled and n.target not in _ASKS_SIZES]
    floating = others + [reader for reader, _ in uses if not _holds_pixels(reader, zero_points)]
    if floating:
        raise PipelineError(
            "raw pixels cannot stand for the image",
            where=f"input {image.target}, read by {floating[0].meta['layer'] or floating[0].name}",
            why="the normalised image is read there in float",
            fix="give entry='float32': the first quantizer is without error there too",
        )
    pixels.replace_all_uses_with(image)
    image.meta["val"] = image.meta["val"].to(torch.uint8)
    for reader, via in uses:
        codes = image if via is pixels else via
        for step in reversed(moved_through(codes)):
            step.meta["val"] = pytree.tree_map(lambda v: v.to(torch.uint8), step.meta["val"])
        reader.replace_all_uses_with(codes)


def _why(plan: Plan) -> str:
    if pixel_schemes(plan):
        return "the plan quantizes the layers that read pixels with another scheme, or not at all"
    start = f"{ExactInput.name}@"
    declined = [c["reason"] for key, c in plan.choices.items() if key.startswith(start)]
    return next(iter(declined), "no convolution or linear reads an image [N, C, H, W] directly")
