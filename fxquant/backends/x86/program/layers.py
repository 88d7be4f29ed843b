"""Quantizers, layers and casts: nodes that become waiting work."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from fxquant.backends.x86.arguments import Activation, NormKind
from fxquant.backends.x86.program.layout import is_transposed, strided
from fxquant.backends.x86.program.norms import patch_codes
from fxquant.backends.x86.program.scores import Attention, Exponentials, Scores
from fxquant.backends.x86.program.steps import Emitting
from fxquant.backends.x86.program.values import (
    Codes,
    Dense,
    Image,
    Joined,
    Linear,
    Mean,
    Mix,
    Norm,
    Product,
    Unsupported,
    View,
    Weight,
    copied,
    whole,
)
from fxquant.quant import ops

aten = torch.ops.aten
_BOTH_ENDS = {torch.uint8: (0, 255), torch.int8: (-128, 127)}


def _layer(node: Node) -> str:
    return str(node.meta["layer"])


def quantize_per_tensor(
    node: Node, out: Emitting, x: Any, scale: float, zero_point: int, *ends: Any
) -> Any:
    """Codes of a view; of exponentials, where the scale is the kernel's own 1/255."""
    shift = _u8_shift(*ends)
    if isinstance(x, Exponentials):
        return x.quantized(scale, zero_point + shift)
    if not isinstance(x, View):
        raise Unsupported(f"codes of {type(x).__name__.lower()}")
    return Codes(x, float(scale), float(zero_point + shift))


def quantize_per_channel(
    node: Node, out: Emitting, x: Any, scale: Tensor, zero_point: Tensor, axis: int, *ends: Any
) -> Codes:
    """Codes with a scale for each head: ``[1, heads, 1, 1]``."""
    if not isinstance(x, View):
        raise Unsupported(f"codes of {type(x).__name__.lower()}")
    shape = [1] * len(x.shape)
    shape[axis] = -1
    shifted = zero_point.float() + _u8_shift(*ends)
    return Codes(x, scale.float().reshape(shape), shifted.reshape(shape))


def quantize_per_token(
    node: Node, out: Emitting, x: View, low: int, high: int, dtype: torch.dtype
) -> tuple[Codes, str, str]:
    """Codes with a range per row, which the quantizing kernel finds."""
    _u8_shift(low, high, dtype)
    return Codes(x, 1.0, 0.0, per_token=True), "scale", "zero point"


def dequantize(node: Node, out: Emitting, codes: Any, *rest: Any) -> Any:
    """Codes stand for their values from here on."""
    return codes


def _u8_shift(low: int, high: int, dtype: torch.dtype) -> int:
    """What to add to codes of full range to have them in 0..255."""
    if _BOTH_ENDS.get(dtype) != (low, high):
        raise Unsupported(f"codes {low}..{high} in {dtype}, kernels take 8 bits")
    return -low


def linear(node: Node, out: Emitting, codes: Any, weight: Any, bias: Tensor | None = None) -> View:
    """A product over features, or over tokens where its input is read column by column."""
    if isinstance(codes, View) and isinstance(weight, Tensor) and weight.dim() == 2:
        given = torch.zeros(len(weight)) if bias is None else bias.float()
        rows = math.prod(codes.shape[:-1])
        dense = Dense(rows, len(weight), _layer(node), codes, weight.float().t(), given)
        return whole(dense, (*codes.shape[:-1], len(weight)))
    codes, weight = _operands(codes, weight)
    outputs = len(weight.codes)
    shape = (*codes.view.shape[:-1], outputs)
    given = torch.zeros(outputs) if bias is None else bias.float()
    source = codes.view.source
    scale = weight.scale if codes.per_token else weight.scale * _one(codes.scale)
    if source.rows > 1 and is_transposed(codes.view.index, source.rows, source.columns):
        columns = source.columns
        mix = Mix(outputs, columns, _layer(node), codes, weight, scale, given)
        index = torch.arange(mix.size).reshape(outputs, columns).t().reshape(shape)
        return View(mix, index)
    rows = math.prod(shape[:-1])
    return whole(Linear(rows, outputs, _layer(node), codes, weight, scale, given), shape)


def convolution(
    node: Node,
    out: Emitting,
    codes: Any,
    weight: Any,
    bias: Tensor | None = None,
    stride: Any = (1, 1),
    padding: Any = (0, 0),
    dilation: Any = (1, 1),
    groups: int = 1,
) -> View:
    """A convolution whose stride is its kernel, over an input image: a linear over patches."""
    codes, weight = _operands(codes, weight)
    image, kernel = codes.view.source, tuple(weight.shape[2:])
    if not isinstance(image, Image) or strided(codes.view.index, image.size) is None:
        raise Unsupported("it does not read the input image")
    tiles = not any(n % k for n, k in zip(image.shape[1:], kernel, strict=True))
    plain = tuple(stride) == kernel and not any(padding) and set(dilation) == {1} and groups == 1
    if not (tiles and plain):
        raise Unsupported("its patches overlap, leave gaps or do not tile the image")
    view = patch_codes(out, image, codes, (kernel[0], kernel[1]))
    inner = Codes(view, codes.scale, codes.zero_point, emitted=view)
    made = linear(node, out, inner, Weight(weight.codes, weight.scale, weight.codes.shape), bias)
    rows, columns = image.shape[1] // kernel[0], image.shape[2] // kernel[1]
    return made.moved(made.index.reshape(1, rows, columns, -1).permute(0, 3, 1, 2))


def _operands(codes: Any, weight: Any) -> tuple[Codes, Weight]:
    if not isinstance(weight, Weight):
        raise Unsupported("its weight is not in int8")
    if not isinstance(codes, Codes):
        raise Unsupported("its input is not in u8 codes")
    return codes, weight


def _one(scale: Any) -> float:
    if isinstance(scale, Tensor):
        raise Unsupported("its input has several scales")
    return float(scale)


def layer_norm(
    node: Node,
    out: Emitting,
    x: Any,
    shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    epsilon: float = 1e-5,
    cudnn: bool = True,  # noqa: FBT001, FBT002  (ATen's signature)
) -> View:
    """Rows to be normalized."""
    if not isinstance(x, View) or len(shape) != 1 or x.factor != 1.0:
        raise Unsupported("it does not normalize rows of float values")
    rows, columns = math.prod(x.shape[:-1]), x.shape[-1]
    norm = Norm(rows, columns, _layer(node), x, NormKind.LAYER_NORM, weight, bias, epsilon)
    return whole(norm, x.shape)


def _activation(kind: Activation) -> Callable[..., View]:
    def handler(node: Node, out: Emitting, x: Any, approximate: str = "none") -> View:
        """The activation joins the product before it."""
        joins = isinstance(x, View) and isinstance(x.source, Product) and x.source.bare
        if not joins or x.shared or x.source.buffer is not None:
            raise Unsupported("it does not follow a product with a constant weight")
        made = copied(x.source)
        made.activation = Activation.GELU_TANH if approximate == "tanh" else kind
        return View(made, x.index)

    return handler


def cast(node: Node, out: Emitting, x: Any, dtype: Any = None, *rest: Any, **more: Any) -> Any:
    """Casts between float types end in the kernel that reads the value."""
    wanted = dtype if isinstance(dtype, torch.dtype) else more.get("dtype")
    if isinstance(x, View) and wanted in (torch.float32, torch.bfloat16):
        return x
    raise Unsupported(f"a cast to {wanted}")


def attention(
    node: Node,
    out: Emitting,
    query: View,
    key: View,
    value: View,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    causal: bool = False,  # noqa: FBT001, FBT002  (ATen's signature)
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> View:
    """Fused attention, all heads at once."""
    if causal or enable_gqa or dropout or (mask is not None and mask.dtype is torch.bool):
        raise Unsupported("masked by causality, booleans or shared queries")
    groups, heads, tokens, width = query.shape
    if key.shape != query.shape or value.shape != query.shape:
        raise Unsupported("queries, keys and values differ in shape")
    factor = 1.0 / math.sqrt(width) if scale is None else scale
    bias = None if mask is None else mask.float().expand(groups, heads, tokens, tokens)
    layer = _layer(node)
    rows = groups * heads * tokens
    sizes = (groups, heads, tokens)
    scores = Scores(rows, tokens, layer, query, key, sizes, (*sizes, tokens), factor, bias)
    return attended(scores, value, width, layer)


def attended(scores: Scores, value: Any, width: int, layer: str) -> View:
    """``[groups, heads, tokens, width]`` of rows that hold all heads of a token."""
    groups, heads, tokens = scores.shape
    source = Attention(groups * tokens, heads * width, layer, scores, value)
    index = torch.arange(source.size).reshape(groups, tokens, heads, width)
    return View(source, index.transpose(1, 2))


def concatenated(node: Node, out: Emitting, parts: list[Any], axis: int = 0) -> View:
    """Rows one below the other."""
    shapes = [p.shape if isinstance(p, View) else tuple(p.shape) for p in parts]
    if len(shapes[0]) != 3 or axis % 3 != 1 or any(s[0] != 1 for s in shapes):
        raise Unsupported("other axes than tokens are joined")
    rows, columns = sum(s[1] for s in shapes), shapes[0][2]
    held = tuple(p if isinstance(p, View) else p.reshape(-1, columns) for p in parts)
    return whole(Joined(rows, columns, _layer(node), held), (1, rows, columns))


def mean(
    node: Node,
    out: Emitting,
    x: View,
    axes: Any,
    keepdim: bool = False,  # noqa: FBT001, FBT002  (ATen's signature)
    **more: Any,
) -> View:
    """Mean over all tokens."""
    last = len(x.shape) - 1
    wanted = {axis % len(x.shape) for axis in axes}
    if wanted != set(range(1, last)) or more.get("dtype") is not None:
        raise Unsupported("a mean over other axes than tokens")
    columns = x.shape[-1]
    shape = (1, *[1] * (last - 1), columns) if keepdim else (1, columns)
    return whole(Mean(1, columns, _layer(node), x), shape)


LAYERS: dict[Any, Callable[..., Any]] = {
    ops.quantize_per_tensor: quantize_per_tensor,
    ops.quantize_per_channel: quantize_per_channel,
    ops.quantize_per_token: quantize_per_token,
    ops.dequantize_per_tensor: dequantize,
    ops.dequantize_per_channel: dequantize,
    ops.dequantize_per_token: dequantize,
    aten.linear.default: linear,
    aten.conv2d.default: convolution,
    aten.layer_norm.default: layer_norm,
    aten.gelu.default: _activation(Activation.GELU),
    aten.relu.default: _activation(Activation.RELU),
    aten.silu.default: _activation(Activation.SILU),
    aten.to.dtype: cast,
    aten.scaled_dot_product_attention.default: attention,
    aten.cat.default: concatenated,
    aten.mean.dim: mean,
}
