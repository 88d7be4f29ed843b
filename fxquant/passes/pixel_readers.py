"""Layers made to read pixels in place of normalised images."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.fx import GraphModule, Node

from fxquant.graph.convolution import CONVOLUTION
from fxquant.graph.flow import moved_through
from fxquant.graph.layers import Layer
from fxquant.graph.tensors import add_buffer, attribute_name, call, constant_of
from fxquant.passes.images import image_channels
from fxquant.quant.pixels import PixelGrid

aten = torch.ops.aten


@dataclass
class PixelReaders:
    """The affine map once per image and grid, and new weights."""

    graph_module: GraphModule
    pixels: dict[tuple[Node, PixelGrid], Node] = field(default_factory=dict)

    def rewrite(self, layer: Layer, node: Node, image: Node, grid: PixelGrid) -> None:
        """Let ``node`` read pixels."""
        found = image_channels(node, image)
        assert found is not None
        channels = torch.tensor(found)
        if node.target is CONVOLUTION:
            channels = channels.reshape(-1, 1, 1)
        scale = torch.tensor(grid.scale, dtype=torch.float64)[channels]
        offset = torch.tensor(grid.offset, dtype=torch.float64)[channels]
        weight = constant_of(self.graph_module, node.args[1])
        assert weight is not None
        bias = constant_of(self.graph_module, node.args[2]) if len(node.args) > 2 else None
        divided = weight.detach().to(torch.float64) / scale
        moved = -(divided * offset).flatten(1).sum(1)
        if bias is not None:
            moved += bias.detach()
        pixels = self._pixels(image, grid, node)
        moves = {image: pixels}
        with self.graph_module.graph.inserting_before(node):
            for step in reversed(moved_through(node.args[0])):  # type: ignore[arg-type]
                moves[step] = node.graph.node_copy(step, lambda n: moves.get(n, n))
        made = [
            add_buffer(
                self.graph_module,
                attribute_name(layer.name, slot),
                value.to(torch.float32),
                like=node,
                before=node,
            )
            for slot, value in (("pixel_weight", divided), ("pixel_bias", moved))
        ]
        node.args = (moves[node.args[0]], *made, *node.args[3:])  # type: ignore[index]

    def _pixels(self, image: Node, grid: PixelGrid, like: Node) -> Node:
        if (image, grid) not in self.pixels:
            before = next(n for n in image.graph.nodes if n.op != "placeholder")
            value = image
            for slot, operation, numbers in (
                ("pixel_scale", aten.mul.Tensor, grid.scale),
                ("pixel_offset", aten.add.Tensor, grid.offset),
            ):
                tensor = torch.tensor(numbers).reshape(-1, 1, 1)
                name = attribute_name(str(image.target), slot)
                held = add_buffer(self.graph_module, name, tensor, like=like, before=before)
                with self.graph_module.graph.inserting_before(before):
                    value = call(self.graph_module, operation, (value, held), like=like)
            self.pixels[image, grid] = value
        return self.pixels[image, grid]
