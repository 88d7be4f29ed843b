"""Rows in float to normalized or quantized rows: the norm kernel, also for plain quantization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxquant.backends.x86.arguments import NormArguments, NormKind, PatchesArguments, Store
from fxquant.backends.x86.program.layout import is_transposed, runs, selected_rows
from fxquant.backends.x86.program.steps import Emitting, Kernel, Pointer, Step, constant
from fxquant.backends.x86.program.values import Buffer, Codes, Image, Norm, Unsupported, View


@dataclass(frozen=True)
class Form:
    """How the rows of a norm are stored: float, or codes with a scale and a zero point."""

    store: Store
    scale: float = 1.0
    zero_point: float = 0.0
    per_token: bool = False


FLOATS = Form(Store.F32_ROWS)


def norm_floats(out: Emitting, norm: Norm, into: Buffer) -> None:
    """All rows of a norm in float."""
    _emit(out, norm, None, FLOATS, into, ())


def norm_codes(out: Emitting, norm: Norm, codes: Codes) -> View:
    """Codes of some or all rows of a norm, or of all of it transposed."""
    view = codes.view
    scale, zero_point = _scalars(codes)
    if norm.rows > 1 and is_transposed(view.index, norm.rows, norm.columns):
        into = Buffer(norm.rows, norm.columns, norm.layer, dtype=torch.uint8, quads=True)
        _emit(out, norm, None, Form(Store.U8_QUADS, scale, zero_point), into, ())
        return View(into, view.index)
    rows = selected_rows(view.index, norm.columns)
    if rows is None:
        raise Unsupported(f"the normalized rows of {norm.layer} are taken apart")
    into = Buffer(len(rows), norm.columns, norm.layer, dtype=torch.uint8)
    form = Form(Store.U8_ROWS, scale, zero_point, codes.per_token)
    ranges: tuple[Buffer, ...] = ()
    if codes.per_token:
        ranges = (Buffer(len(rows), 1, norm.layer), Buffer(len(rows), 1, norm.layer))
        codes.ranges = ranges
    _emit(out, norm, rows, form, into, ranges)
    return View(into, torch.arange(into.size).reshape(view.shape))


def _emit(
    out: Emitting,
    norm: Norm,
    rows: Tensor | None,
    form: Form,
    into: Buffer,
    ranges: tuple[Buffer, ...],
) -> None:
    view = out.floats(norm.input)
    index = view.index.reshape(-1, norm.columns)
    index = index if rows is None else index[rows]
    found = runs(index, norm.columns)
    if found is None:
        raise Unsupported(f"the rows that {norm.layer} reads are scattered element by element")
    block = NormArguments(
        rows=len(index),
        columns=norm.columns,
        pieces=found.pieces,
        piece_stride=found.unit,
        epsilon=norm.epsilon,
        kind=norm.kind,
        output_stride=into.columns * (4 if form.store is Store.U8_QUADS else 1),
        inverse_step=1.0 / form.scale,
        zero_point=form.zero_point,
        store=form.store,
    )
    assert isinstance(view.source, Buffer)
    pointers = {"input": Pointer(view.source), "output": Pointer(into, writes=True)}
    expected = torch.arange(len(found.starts)) * (norm.columns // found.pieces)
    if torch.equal(found.starts * found.unit - found.starts[0] * found.unit, expected):
        pointers["input"] = Pointer(view.source, int(found.starts[0]) * found.unit * 4)
        block.pieces, block.piece_stride = 1, norm.columns
    else:
        pointers["piece_map"] = constant(found.starts, torch.int32)
    for name, values in (("weight", norm.weight), ("bias", norm.bias)):
        if values is not None:
            pointers[name] = constant(values)
    for name, made in zip(("row_scale", "row_zero_point"), ranges, strict=False):
        pointers[name] = Pointer(made, writes=True)
    what = "LayerNorm" if norm.kind is NormKind.LAYER_NORM else "affine"
    if norm.kind is NormKind.AFFINE and norm.weight is None and norm.bias is None:
        what = ""
    parts = [what] if what else []
    if form.store is not Store.F32_ROWS:
        parts.append("quantize per token" if form.per_token else "quantize")
    text = ", ".join(parts) or "copy"
    out.steps.append(Step(Kernel.NORM, block, pointers, norm.layer, text))


def patch_codes(out: Emitting, image: Image, codes: Codes, patch: tuple[int, int]) -> View:
    """Codes of an image's patches ``[patches, channels * height * width]``."""
    channels, height, width = image.shape
    scale, zero_point = _scalars(codes)
    rows, inner = (height // patch[0]) * (width // patch[1]), channels * patch[0] * patch[1]
    into = Buffer(rows, inner, image.layer, dtype=torch.uint8)
    raw = image.buffer_of.dtype is torch.uint8
    gain, offset = image.gain / scale, image.offset / scale + zero_point
    if raw and not (bool((gain == 1).all()) and bool((offset == 0).all())):
        raise Unsupported("raw pixels are scaled before they are quantized")
    block = PatchesArguments(
        input_is_u8=int(raw),
        channels=channels,
        height=height,
        width=width,
        patch_height=patch[0],
        patch_width=patch[1],
        output_stride=inner,
    )
    pointers = {
        "input": Pointer(image.buffer_of),
        "inverse_step": constant(gain),
        "zero_point": constant(offset),
        "output": Pointer(into, writes=True),
    }
    text = "patches" if raw else "patches, quantize"
    out.steps.append(Step(Kernel.PATCHES, block, pointers, image.layer, text))
    lines = (height // patch[0], width // patch[1])
    places = torch.arange(into.size).reshape(1, *lines, channels, *patch)
    pixels = places.permute(0, 3, 1, 4, 2, 5).reshape(1, channels, height, width)
    out.known(codes.name, View(into, pixels))
    return View(into, torch.arange(into.size).reshape(1, rows, inner))


def _scalars(codes: Codes) -> tuple[float, float]:
    """The one scale and zero point of codes, the view's own factor taken in."""
    if codes.per_token:
        return 1.0, 0.0
    if isinstance(codes.scale, Tensor) or isinstance(codes.zero_point, Tensor):
        raise Unsupported("codes of a norm or an image have several scales")
    return _plain(codes.scale) / codes.view.factor, _plain(codes.zero_point)


def _plain(value: Any) -> float:
    return float(value)
