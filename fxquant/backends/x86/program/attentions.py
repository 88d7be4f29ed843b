"""Attention of all heads and windows in one kernel call, over codes or in float."""

from __future__ import annotations

import math
from ctypes import Structure
from typing import Any

import torch
from torch import Tensor

from fxquant.backends.x86.arguments import AttentionArguments, FloatAttentionArguments, Store
from fxquant.backends.x86.program.layout import is_whole
from fxquant.backends.x86.program.products import joint_codes
from fxquant.backends.x86.program.scores import Attention, Scores
from fxquant.backends.x86.program.steps import Emitting, Kernel, Pointer, Step, constant
from fxquant.backends.x86.program.values import (
    Buffer,
    Codes,
    Linear,
    Unsupported,
    View,
)

_LOG2_E = math.log2(math.e)
_MIDDLE = 128  # the code that stands for 0 in the kernel's keys and values


def attention_floats(out: Emitting, attention: Attention, into: Buffer) -> None:
    """The result in float."""
    _emit(out, attention, into, Store.F32_ROWS, torch.tensor(1.0), torch.tensor(0.0))


def attention_codes(out: Emitting, attention: Attention, codes: Codes) -> View:
    """The result as codes, for the projection behind it."""
    if not is_whole(codes.view.index, attention.size):
        raise Unsupported(f"the result of {attention.layer} is reordered before it is quantized")
    into = Buffer(attention.rows, attention.columns, attention.layer, dtype=torch.uint8)
    scale, zero_point = torch.tensor(codes.scale), torch.tensor(float(codes.zero_point))
    _emit(out, attention, into, Store.U8_ROWS, scale / codes.view.factor, zero_point)
    return View(into, codes.view.index)


def _emit(
    out: Emitting,
    attention: Attention,
    into: Buffer,
    store: Store,
    step: Tensor,
    zero_point: Tensor,
) -> None:
    scores = attention.scores
    parts = (scores.query, scores.key, attention.value)
    if all(isinstance(part, Codes) for part in parts):
        block, pointers, scratch = _int8(out, attention, step, zero_point)
        kernel, text, int8 = Kernel.ATTENTION, "int8 attention", True
    elif all(isinstance(part, View) for part in parts):
        block, pointers, scratch = _float(out, attention, step, zero_point)
        kernel, text, int8 = Kernel.FLOAT_ATTENTION, "float attention", False
    else:
        raise Unsupported(f"only some operands of {attention.layer} are quantized")
    groups, heads, tokens = scores.shape
    word = 4 if int8 else 2  # channels that a dot product takes at once
    if attention.columns // heads % word:
        raise Unsupported(f"the heads of {attention.layer} are not a multiple of {word} wide")
    block.groups, block.heads, block.tokens = groups, heads, tokens
    block.width = attention.columns // heads
    block.output_stride, block.store = into.columns, store
    pointers |= {"output": Pointer(into, writes=True), "scratch": Pointer(None)}
    if scores.bias is not None:
        pointers["score_bias"] = _bias(block, scores)
    text += ", u8 out" if store is Store.U8_ROWS else ", f32 out"
    also = tuple({scores.layer} - {attention.layer})
    out.steps.append(Step(kernel, block, pointers, attention.layer, text, int8, scratch, also))


def _bias(block: Any, scores: Scores) -> Pointer:
    """The additive bias in powers of two, its strides 0 along axes that it is the same for."""
    groups, heads, tokens = scores.shape
    assert scores.bias is not None
    bias = scores.bias.reshape(groups, heads, tokens, tokens) * _LOG2_E
    if torch.equal(bias, bias[:1].expand_as(bias)):
        bias = bias[:1]
    if torch.equal(bias, bias[:, :1].expand_as(bias)):
        bias = bias[:, :1]
    block.bias_row_stride = tokens
    block.bias_head_stride = tokens * tokens if bias.shape[1] > 1 else 0
    block.bias_group_stride = bias.shape[1] * tokens * tokens if bias.shape[0] > 1 else 0
    return constant(bias)


def _int8(
    out: Emitting, attention: Attention, step: Tensor, zero_point: Tensor
) -> tuple[Structure, dict[str, Pointer], int]:
    scores, value = attention.scores, attention.value
    query, key = scores.query, scores.key
    assert isinstance(query, Codes)
    assert isinstance(key, Codes)
    assert isinstance(value, Codes)
    _together(out, [query, key, value])
    operands = {"query": query, "key": key, "value": value}
    pointers, strides = {}, set()
    for name, codes in operands.items():
        pointers[name], stride = _operand(out.codes(codes), scores.shape)
        strides.add(stride)
    if len(strides) > 1:
        raise Unsupported(f"the operands of {attention.layer} lie in different layouts")
    heads = scores.shape[1]
    width = attention.columns // heads
    q_scale, q_zero = _per_head(query, heads)
    k_scale, _ = _per_head(key, heads)  # its zero point adds the same to all scores of a row
    v_scale, v_zero = _per_channel(value, heads, width)
    # oneDNN-style codes are u8 everywhere; the kernel reads keys and values as code - 128.
    pointers |= {
        "score_scale": constant(q_scale * k_scale * scores.factor * _LOG2_E),
        "query_zero_point": constant(q_zero, torch.int32),
        "output_scale": constant(v_scale / step),
        "output_bias": constant((_MIDDLE - v_zero) * v_scale / step + zero_point),
    }
    block = AttentionArguments(input_stride=strides.pop())
    return block, pointers, out.attention_scratch(scores.shape, width, codes=True)


def _together(out: Emitting, several: list[Codes]) -> None:
    """Emit codes of one product in one call, where nothing has been emitted yet."""
    sources = {id(codes.view.source) for codes in several}
    product = several[0].view.source
    if len(sources) > 1 or not isinstance(product, Linear) or not product.bare:
        return
    untouched = all(codes.emitted is None for codes in several) and product.buffer is None
    if untouched and sum(codes.view.index.numel() for codes in several) == product.size:
        joint_codes(out, product, several)


def _float(
    out: Emitting, attention: Attention, step: Tensor, zero_point: Tensor
) -> tuple[Structure, dict[str, Pointer], int]:
    scores, factor = attention.scores, attention.scores.factor
    operands = {"query": scores.query, "key": scores.key, "value": attention.value}
    pointers, strides = {}, set()
    for name, view in operands.items():
        assert isinstance(view, View)
        factor *= view.factor if name != "value" else 1.0
        if name == "value" and view.factor != 1.0:
            raise Unsupported(f"the values of {attention.layer} are scaled")
        on_memory = out.floats(View(view.source, view.index))
        pointer, stride = _operand(on_memory, scores.shape)
        pointers[name] = Pointer(pointer.target, pointer.offset * 4)
        strides.add(stride)
    if len(strides) > 1:
        raise Unsupported(f"the operands of {attention.layer} lie in different layouts")
    heads = scores.shape[1]
    channels = torch.ones(attention.columns)
    pointers |= {
        "output_scale": constant(channels / step),
        "output_bias": constant(channels * zero_point),
    }
    block = FloatAttentionArguments(input_stride=strides.pop(), score_scale=factor * _LOG2_E)
    width = attention.columns // heads
    return block, pointers, out.attention_scratch(scores.shape, width, codes=False)


def _operand(view: View, shape: tuple[int, int, int]) -> tuple[Pointer, int]:
    """Where the first element lies and how far rows are apart, both in elements."""
    groups, heads, tokens = shape
    index = view.index.reshape(groups, heads, tokens, -1)
    width, first = index.shape[-1], int(index[0, 0, 0, 0])
    stride = int(index[0, 0, 1, 0]) - first if tokens > 1 else heads * width
    place = [torch.arange(n) for n in index.shape]
    rows = (place[0][:, None] * tokens + place[2])[:, None, :, None] * stride
    expected = first + rows + place[1][:, None, None] * width + place[3]
    if not torch.equal(index, expected):
        raise Unsupported("the operands of attention are not in rows of heads")
    assert isinstance(view.source, Buffer)
    return Pointer(view.source, first), stride


def _per_head(codes: Codes, heads: int) -> tuple[Tensor, Tensor]:
    """``[heads]``: scale and zero point, which must not differ within a head."""
    found = []
    for value in (codes.scale, codes.zero_point):
        full = torch.as_tensor(value, dtype=torch.float32).expand(codes.view.shape)
        full = full.reshape(-1, heads, *full.shape[-2:])
        first = full[0, :, 0, 0]
        if not torch.equal(full, first[:, None, None].expand_as(full)):
            raise Unsupported("scales of queries and keys differ within a head")
        found.append(first)
    return found[0], found[1]


def _per_channel(codes: Codes, heads: int, width: int) -> tuple[Tensor, Tensor]:
    """``[heads * width]``: scale and zero point of values."""
    found = []
    for value in (codes.scale, codes.zero_point):
        full = torch.as_tensor(value, dtype=torch.float32).expand(codes.view.shape)
        full = full.reshape(-1, heads, full.shape[-2], width)
        first = full[0, :, 0]
        if not torch.equal(full, first[:, None].expand_as(full)):
            raise Unsupported("scales of values differ between tokens")
        found.append(first.reshape(-1))
    return found[0], found[1]
