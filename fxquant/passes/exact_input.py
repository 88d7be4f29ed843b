"""The first quantizer without error: an 8-bit image is quantized already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch.fx import GraphModule, Node

from fxquant.errors import InputError, PlanError
from fxquant.graph.layers import Layer, find_layers
from fxquant.graph.shapes import shape_of
from fxquant.graph.tensors import (
    copy_graph,
    prune,
)
from fxquant.passes.images import (
    calibration_images,
    image_channels,
    image_of,
    misfit,
    refusal,
)
from fxquant.passes.pixel_readers import PixelReaders
from fxquant.pipeline.base import Pass
from fxquant.pipeline.plan import Plan
from fxquant.pipeline.state import Fact, Note, State
from fxquant.quant.pixels import LARGEST, PixelGrid, find_grid, grid_of
from fxquant.quant.scheme import Scheme


@dataclass(frozen=True)
class ExactInput(Pass):
    """conv(x, W) + b -> conv(p - z, W / a) + b - sum(W (c - z) / a) with pixels p = a x + c.

    An 8-bit image normalised per channel, ``x = (p / 255 - mean) / std``, lies on the grid
    ``a = 255 std``, ``c = 255 mean``: behind this rewrite the patch embedding reads whole numbers,
    so its quantizer gets scale 1, its codes are the pixels, and it loses nothing. The zero point z
    is the pixel value nearest to a normalised 0: with any z the quantizer is exact, but the errors
    of the quantized weight are multiplied by ``p - z``, which should be about 0 on average (with
    z = 0 the layer's SQNR is 6 dB lower on DeiT-Tiny). Exact in real arithmetic, at layers without
    padding that read an image ``[N, C, H, W]`` through movement only, where each input feature
    belongs to one colour channel: patch convolutions, and linears over patches.

    ``mean`` and ``std``: the normalisation, one value per channel. Empty: the grid is found in the
    calibration images. A choice ``{"scale", "offset", "zero_point"}`` per layer is recorded and
    followed.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    name: ClassVar[str] = "exact_input"
    needs: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.GRAPH, Fact.LAYERS, Fact.PLAN, Fact.CALIBRATION, Fact.TARGET}
    )
    gives: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.GRAPH, Fact.FLOAT_GRAPH, Fact.LAYERS, Fact.PLAN}
    )

    def __post_init__(self) -> None:
        if self.mean or self.std:
            grid_of(self.mean, self.std)

    def run(self, state: State) -> State:
        """Rewrite every layer that reads an image; where it cannot, the plan says why.

        Raises :class:`InputError` where ``mean`` and ``std`` are given for another number of
        channels than the image has.
        """
        source = state.graph
        graph_module = GraphModule(source, copy_graph(source.graph))
        nodes = {node.name: node for node in graph_module.graph.nodes}
        rewriter, plan, notes = PixelReaders(graph_module), state.plan, []
        for layer in state.layers:
            node = nodes[layer.node]
            image = image_of(node)
            if image is None:
                continue
            chosen = plan.choice(self.name, layer.name)
            if chosen is None:
                chosen = self._choose(layer, node, image, state)
                plan = plan.with_choice(self.name, layer.name, chosen)
            if self.mean:
                notes.append(Note(self.name, layer.name, str(chosen.get("reason", ""))))
            if not chosen.get("declined"):
                node.meta["role"] = layer.role
                rewriter.rewrite(layer, node, image, _read(chosen, layer, shape_of(image)[1]))
        prune(graph_module)
        state = state.having(Fact.PLAN, plan).noting(notes)
        return state.rewritten(graph_module).having(Fact.LAYERS, find_layers(graph_module))

    def _choose(self, layer: Layer, node: Node, image: Node, state: State) -> dict[str, Any]:
        problem = refusal(layer, node, state.target.activation_bits)
        if not problem and image_channels(node, image) is None:
            problem = "its features mix the channels of the image"
        if problem:
            return _declined(problem)
        images = calibration_images(state.calibration, image)
        found = grid_of(self.mean, self.std) if self.mean else find_grid(images)
        if isinstance(found, str):
            return _declined(found)
        channels = shape_of(image)[1]
        if len(found.scale) != channels:
            raise InputError(
                f"{len(found.scale)} channels are normalised, the image has {channels}",
                where=f"input {image.target}",
                fix="give input_normalization one mean and one std per channel",
            )
        told = "found in the calibration images"
        if self.mean:
            problem, off = misfit(images, found)
            told = (
                f"given; {off:.0%} of the calibration values lie between pixels" if off else "given"
            )
            if problem:
                return _declined(problem)
        return {
            "scale": list(found.scale),
            "offset": list(found.offset),
            "zero_point": found.zero_point,
            "reason": f"the image's own 8 bits, without error: normalization {told}",
        }


def _declined(reason: str) -> dict[str, Any]:
    return {"declined": True, "reason": reason}


def _read(chosen: Mapping[str, Any], layer: Layer, channels: int) -> PixelGrid:
    """The map to ``p - z`` that a plan holds."""
    try:
        zero_point = chosen["zero_point"]
        scale = tuple(float(value) for value in chosen["scale"])
        offset = tuple(float(value) - zero_point for value in chosen["offset"])
        sound = zero_point in range(LARGEST + 1) and min(scale) > 0
    except (KeyError, TypeError, ValueError):
        sound, scale, offset = False, (), ()
    if not sound or not len(scale) == len(offset) == channels:
        raise PlanError(
            "the plan's choice cannot be carried out",
            where=f"{ExactInput.name}@{layer.name}",
            fix=f"give {channels} scales above 0, {channels} offsets and a zero point in 0..255",
        )
    return PixelGrid(scale, offset)


def pixel_schemes(plan: Plan) -> dict[str, Scheme]:
    """Schemes of the layers that read pixels by the plan's choices: ``a8/tensor/pixels@Z``."""
    start = f"{ExactInput.name}@"
    return {
        key.removeprefix(start): Scheme(rule="pixels", parameter=float(chosen["zero_point"]))
        for key, chosen in plan.choices.items()
        if key.startswith(start) and not chosen.get("declined")
    }
