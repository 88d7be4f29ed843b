"""Layers that read an image, and which of its channels each of their input features is."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.fx import Node

from fxquant.graph.channels import moved, per_channel, route
from fxquant.graph.convolution import CONVOLUTION, Convolution
from fxquant.graph.flow import origin
from fxquant.graph.layers import Layer
from fxquant.graph.shapes import shape_of
from fxquant.quant.calibration import Calibration
from fxquant.quant.pixels import LARGEST, PixelGrid

aten = torch.ops.aten
_IMAGE_RANK = 4
_HALF = 0.5  # of a pixel: what rounding forgives at the ends of the range
_NEAR = 0.01  # of a pixel: what float32 arithmetic leaves, and no resized image keeps to


def image_of(node: Node) -> Node | None:
    """The float image ``[N, C, H, W]`` that a weighted node reads through movement, or None."""
    if node.target not in {CONVOLUTION, aten.linear.default}:
        return None
    source = origin(node.args[0])  # type: ignore[arg-type]
    return source if source.op == "placeholder" and len(shape_of(source)) == _IMAGE_RANK else None


def refusal(layer: Layer, node: Node, bits: int) -> str:
    """Why a layer cannot read pixels with ``bits`` per activation; empty where it can."""
    if bits < 8:
        return f"{bits}-bit activations on this machine cannot hold 8-bit pixels"
    held = [a for a in node.args[1:3] if isinstance(a, Node)]
    if not layer.weight or any(a.op != "get_attr" for a in held):
        return "its weight or bias is computed while the model runs"
    if node.target is not CONVOLUTION:
        return ""
    form = Convolution.of(node)
    if form.padded:
        return "it pads the image with zeros, which are no pixel value"
    return "grouped convolution" if form.groups != 1 else ""


def image_channels(node: Node, image: Node) -> tuple[int, ...] | None:
    """The image's channel that each input feature of a weighted node is; None where they mix."""
    source = node.args[0]
    assert isinstance(source, Node)
    path = route(image, source)
    assert path is not None
    numbers = torch.arange(shape_of(image)[1]).reshape(1, -1, 1, 1)
    labels = moved(numbers.expand(2, *shape_of(image)[1:]), path)
    return per_channel(labels.movedim(1, -1) if node.target is CONVOLUTION else labels)


def calibration_images(calibration: Calibration | None, image: Node) -> Iterator[Tensor]:
    """Calibration images of one input; only the first 16 where they can be read but once."""
    if calibration is None:
        return
    position = [n for n in image.graph.nodes if n.op == "placeholder"].index(image)
    if len(calibration):
        yield from (leaves[position] for leaves in calibration.batches())
    else:
        yield calibration.sample(16)[position]


def misfit(batches: Iterator[Tensor], grid: PixelGrid) -> tuple[str, float]:
    """What in the first batch shows that its images were normalised in another way, else empty;
    and the share of values that lie on no pixel, as resizing leaves them."""
    for images in batches:
        steps = grid.pixels(images)
        low, high = (float(end) for end in steps.aminmax())
        off = float(((steps - steps.round()).abs() > _NEAR).double().mean())
        if low < -_HALF or high > LARGEST + _HALF:
            return (
                f"the calibration images reach from {low:.0f} to {high:.0f} in steps of a pixel: "
                "input_normalization is not what they were made with"
            ), off
        return "", off
    return "", 0.0
