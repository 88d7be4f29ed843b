"""Waiting work into steps: each source by its own emitter, each once."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import torch
from torch import Tensor

from fxquant.backends.x86.arguments import (
    AddArguments,
    AttentionArguments,
    DenseArguments,
    FloatAttentionArguments,
    GatherArguments,
    MeanArguments,
    NormKind,
)
from fxquant.backends.x86.program.attentions import attention_codes, attention_floats
from fxquant.backends.x86.program.layout import is_transposed, runs, strided
from fxquant.backends.x86.program.norms import norm_codes, norm_floats
from fxquant.backends.x86.program.products import product_codes, product_floats, settled
from fxquant.backends.x86.program.scores import Attention
from fxquant.backends.x86.program.steps import Kernel, Pointer, Step, constant
from fxquant.backends.x86.program.values import (
    Buffer,
    Codes,
    Dense,
    Joined,
    Linear,
    Mean,
    Norm,
    Product,
    Source,
    Sum,
    Unsupported,
    View,
    whole,
)


class Emitter:
    """Collects the steps of one program for the kernels of ``library``."""

    def __init__(self, library: ctypes.CDLL, *, track: bool = False) -> None:
        self.library = library
        self._track = track
        self.steps: list[Step] = []
        self.values: dict[str, View] = {}
        self._packed: dict[int, tuple[Tensor, Tensor]] = {}

    def floats(self, view: View) -> View:
        """The view on a float buffer, emitting what it waits for."""
        given = view
        if view.factor != 1.0:
            raise Unsupported(f"the result of {view.source.layer} is scaled by a number")
        source = view.source
        if isinstance(source, Product) and source.buffer is None and not view.shared:
            source, index = settled(source, view)
            view = replace(view, source=source, index=index)
        if source.buffer is None:
            self.write(source, Buffer(source.rows, source.columns, source.layer))
            given.source.forget()
        assert source.buffer is not None
        made = View(source.buffer, view.index)
        self.known(view.name, made)
        return made

    def known(self, name: str, view: View) -> None:
        """Where the value of a node lies."""
        if name and self._track:
            self.values[name] = view

    def write(self, source: Source, into: Buffer) -> None:
        """Emit a source into a given buffer."""
        if isinstance(source, Product):
            product_floats(self, source, into)
        elif isinstance(source, Norm):
            norm_floats(self, source, into)
        elif isinstance(source, Attention):
            attention_floats(self, source, into)
        elif isinstance(source, Joined):
            self._join(source, into)
        elif isinstance(source, Mean):
            self._mean(source, into)
        elif isinstance(source, Sum):
            self._add(source, into)
        elif isinstance(source, Dense):
            self._dense(source, into)
        else:
            raise Unsupported(f"{type(source).__name__.lower()} as float values")
        source.buffer = into
        source.forget()

    def codes(self, codes: Codes) -> View:
        """The view on a buffer of codes, emitting them if they were not."""
        if codes.emitted is None:
            source = codes.view.source
            if isinstance(source, Product) and source.buffer is None and not _in_floats(codes):
                codes.emitted = product_codes(self, source, codes)
            elif isinstance(source, Norm) and source.buffer is None:
                codes.emitted = norm_codes(self, source, codes)
            elif isinstance(source, Attention) and source.buffer is None and not codes.per_token:
                codes.emitted = attention_codes(self, source, codes)
            else:
                self._quantize(codes)
        assert codes.emitted is not None
        codes.view = replace(codes.view, source=codes.emitted.source, index=codes.emitted.index)
        index = codes.emitted.index
        index = index.transpose(-1, -2) if codes.turned else index
        self.known(codes.name, View(codes.emitted.source, index))
        return codes.emitted

    def _quantize(self, codes: Codes) -> None:
        """Codes of values that stand in memory, in the view's order or transposed."""
        view = self.floats(replace(codes.view, factor=1.0, name=""))
        base = view.source
        if base.rows > 1 and is_transposed(view.index, base.rows, base.columns):
            rows = _rows_of(whole(base, (base.rows, base.columns)))
            index = view.index
        else:
            rows, index = _rows_of(view), torch.arange(view.index.numel()).reshape(view.shape)
        ordered = Codes(View(rows, index, codes.view.factor), codes.scale, codes.zero_point)
        ordered.per_token = codes.per_token
        codes.emitted = norm_codes(self, rows, ordered)
        codes.ranges = ordered.ranges

    def packed(self, codes: Tensor) -> Tensor:
        """Packed once for each weight."""
        key = id(codes)
        if key not in self._packed:
            columns, inner = codes.shape
            weight = codes.contiguous()
            size = int(self.library.fxq_packed_bytes(_i64(columns), _i64(inner)))
            made = torch.zeros(size, dtype=torch.int8)
            self.library.fxq_pack_weight(
                ctypes.c_void_p(weight.data_ptr()),
                _i64(columns),
                _i64(inner),
                ctypes.c_void_p(made.data_ptr()),
            )
            self._packed[key] = (codes, made)  # holds the key's tensor, so that its id stays its
        return self._packed[key][1]

    def attention_scratch(self, shape: tuple[int, int, int], width: int, *, codes: bool) -> int:
        """Bytes of scratch of an attention call."""
        groups, heads, tokens = shape
        form = AttentionArguments if codes else FloatAttentionArguments
        block = form(groups=groups, heads=heads, tokens=tokens, width=width)
        name = "fxq_attention_scratch" if codes else "fxq_float_attention_scratch"
        return int(getattr(self.library, name)(ctypes.byref(block)))

    def gathered(self, view: View) -> View:
        """The elements of a view, copied into order."""
        size, width = view.index.numel(), view.shape[-1]
        into = Buffer(size // width, width, view.source.layer)
        self.copy(view, into)
        return View(into, torch.arange(size).reshape(view.shape))

    def copy(self, view: View, into: Buffer) -> None:
        """The elements of a view, written in order."""
        on_memory = self.floats(view)
        width = view.shape[-1]
        found = runs(on_memory.index, width)
        starts, length = on_memory.index.reshape(-1), 1
        if found is not None and found.unit % (width // found.pieces) == 0:
            length = width // found.pieces
            starts = found.starts * (found.unit // length)
        block = GatherArguments(pieces=len(starts), piece_bytes=4 * length)
        assert isinstance(on_memory.source, Buffer)
        pointers = {
            "input": Pointer(on_memory.source),
            "map": constant(starts, torch.int32),
            "output": Pointer(into, writes=True),
        }
        self.steps.append(Step(Kernel.GATHER, block, pointers, into.layer, "copy"))

    def _join(self, joined: Joined, into: Buffer) -> None:
        first = 0
        for part in joined.parts:
            if isinstance(part, Tensor):
                rows = len(part)
                held = Buffer(rows, into.columns, joined.layer, home="constant", constant=part)
                index = torch.arange(held.size).reshape(1, rows, into.columns)
                part = View(held, index)
            rows = part.index.numel() // into.columns
            self._below(part, first, into)
            first += rows

    def _below(self, part: View, first: int, into: Buffer) -> None:
        """One part of a joined matrix, written from row ``first`` on."""
        source, index = part.source, part.index
        if isinstance(source, Linear) and source.buffer is None and not part.shared:
            product, index = settled(source, part)
            if torch.equal(index.reshape(-1), torch.arange(product.size)):
                product_floats(self, product, into, first_row=first)
                return
        view = self.floats(part)
        found = strided(view.index, into.columns)
        if found is None or found.stride != into.columns:
            raise Unsupported(f"rows of {source.layer} are joined out of order")
        assert isinstance(view.source, Buffer)
        block = GatherArguments(pieces=found.rows, piece_bytes=4 * into.columns)
        pointers = {
            "input": Pointer(view.source, 4 * found.offset),
            "map": constant(torch.arange(found.rows), torch.int32),
            "output": Pointer(into, 4 * first * into.columns, writes=True),
        }
        self.steps.append(Step(Kernel.GATHER, block, pointers, into.layer, "copy"))

    def _mean(self, mean: Mean, into: Buffer) -> None:
        view = self.floats(mean.input)
        rows = strided(view.index, mean.columns)
        if rows is None:
            raise Unsupported(f"the mean of {mean.layer} is not over rows")
        assert isinstance(view.source, Buffer)
        block = MeanArguments(input_stride=rows.stride, rows=rows.rows, columns=mean.columns)
        pointers = {
            "input": Pointer(view.source, 4 * rows.offset),
            "output": Pointer(into, writes=True),
        }
        self.steps.append(Step(Kernel.MEAN, block, pointers, mean.layer, "mean"))

    def _in_rows(self, view: View, width: int) -> tuple[Pointer, int]:
        """A value in rows of ``width``, copied into order where it is not: first row, distance."""
        on_memory = self.floats(view)
        rows = strided(on_memory.index, width)
        if rows is None:
            on_memory = self.gathered(view)
            rows = strided(on_memory.index, width)
        assert rows is not None
        assert isinstance(on_memory.source, Buffer)
        return Pointer(on_memory.source, 4 * rows.offset), rows.stride

    def _dense(self, dense: Dense, into: Buffer) -> None:
        inner = len(dense.weight)
        pointer, stride = self._in_rows(dense.input, inner)
        block = DenseArguments(
            input_stride=stride, rows=dense.rows, inner=inner, columns=dense.columns
        )
        pointers = {
            "input": pointer,
            "weight": constant(dense.weight),
            "bias": constant(dense.bias),
            "output": Pointer(into, writes=True),
        }
        self.steps.append(Step(Kernel.DENSE, block, pointers, dense.layer, "float linear"))

    def _add(self, added: Sum, into: Buffer) -> None:
        block = AddArguments(rows=added.rows, columns=added.columns)
        pointers = {"output": Pointer(into, writes=True)}
        for name, operand in (("left", added.left), ("right", added.right)):
            pointers[name], stride = self._in_rows(operand, added.columns)
            setattr(block, f"{name}_stride", stride)
        self.steps.append(Step(Kernel.ADD, block, pointers, added.layer, "add"))


def _in_floats(codes: Codes) -> bool:
    """Whether a product is needed in float before it is quantized: for ranges per token, or since
    others read all of it too, and it must not be computed twice."""
    view = codes.view
    return codes.per_token or (view.shared and view.index.numel() == view.source.size)


def _rows_of(view: View) -> Norm:
    """An affine of nothing: rows in the view's order, to be quantized."""
    columns = view.shape[-1]
    rows = view.index.numel() // columns
    return Norm(rows, columns, view.source.layer, view, NormKind.AFFINE, None, None)


def _i64(value: int) -> ctypes.c_int64:
    return ctypes.c_int64(value)
