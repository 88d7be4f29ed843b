"""Patch embedding: a convolution whose stride is its kernel is a linear over patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx import GraphModule

from fxquant.backends.x86.rules import INPUT, check_linear, emit, substitute
from fxquant.backends.x86.weights import Packer
from fxquant.graph.convolution import CONVOLUTION, Convolution
from fxquant.graph.pattern import Any_, Op, Pattern
from fxquant.graph.rule import Decline, Match
from fxquant.graph.shapes import shape_of
from fxquant.graph.tensors import call

aten = torch.ops.aten


@dataclass(frozen=True)
class PatchConvolution:
    """conv2d(dq(x), dq(W), stride = kernel) -> qlinear(patches(x), W): im2col is a permutation.

    The codes are permuted while they are quantized, in one kernel of Inductor's.
    """

    packer: Packer
    name: ClassVar[str] = "qlinear-patches"
    pattern: ClassVar[Pattern] = Op((CONVOLUTION,), (INPUT, Any_("weight")), name="linear")

    def check(self, graph_module: GraphModule, match: Match) -> Match | Decline:
        """No overlap, padding, dilation or groups, and patches that tile the image."""
        form = Convolution.of(match.root)
        image = shape_of(match["input"])[2:]
        if form.stride != form.kernel:
            return Decline("patches overlap or leave gaps: no int8 convolution kernel yet")
        if form.padded or form.groups != 1:
            return Decline("padded or grouped convolution: no int8 kernel yet")
        if form.dilated or any(n % k for n, k in zip(image, form.kernel, strict=True)):
            return Decline("the patches do not tile the image")
        return check_linear(graph_module, match)

    def rewrite(self, graph_module: GraphModule, match: Match) -> None:
        """Patches, the linear, and the convolution's own layout again."""
        _, channels, height, width = shape_of(match["input"])
        kernel_h, kernel_w = shape_of(match["weight"])[2:]
        rows, columns = height // kernel_h, width // kernel_w
        like = match.root
        with graph_module.graph.inserting_before(like):
            split = [-1, channels, rows, kernel_h, columns, kernel_w]
            x = call(graph_module, aten.reshape.default, (match["codes"], split), like=like)
            x = call(graph_module, aten.permute.default, (x, [0, 2, 4, 1, 3, 5]), like=like)
            flat = [-1, rows, columns, channels * kernel_h * kernel_w]
            x = call(graph_module, aten.reshape.default, (x, flat), like=like)
        made = emit(graph_module, self.packer, match, codes=x)
        with graph_module.graph.inserting_before(like):
            back = call(graph_module, aten.permute.default, (made, [0, 3, 1, 2]), like=like)
        substitute(like, back)
