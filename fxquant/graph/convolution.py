"""What a 2-d convolution does to an image, whatever of it the graph leaves to ATen's defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from fxquant.graph.shapes import shape_of

CONVOLUTION = torch.ops.aten.conv2d.default
_DEFAULTS: tuple[Any, ...] = ((1, 1), (0, 0), (1, 1), 1)


@dataclass(frozen=True)
class Convolution:
    """The settings of a 2-d convolution, pairs ``(height, width)`` all but ``groups``."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @staticmethod
    def of(node: Node) -> Convolution:
        """Those of a ``conv2d`` node."""
        given: tuple[Any, ...] = node.args[3:]
        stride, padding, dilation, groups = (*given, *_DEFAULTS[len(given) :])
        kernel = shape_of(node.args[1])[2:]  # type: ignore[arg-type]
        return Convolution(kernel, tuple(stride), tuple(padding), tuple(dilation), groups)

    @property
    def padded(self) -> bool:
        """Whether zeros are put around the image."""
        return any(self.padding)

    @property
    def dilated(self) -> bool:
        """Whether the elements of a patch lie apart."""
        return any(step != 1 for step in self.dilation)

    def patches(self, x: Tensor) -> Tensor:
        """What an ungrouped one multiplies: ``[B, C, H, W] -> [B, patches, C kh kw]``."""
        unfolded = F.unfold(x, self.kernel, self.dilation, self.padding, self.stride)
        return unfolded.transpose(1, 2)
