"""What a node stands for while a program is built: data that exists, or work not yet emitted.

Work waits so that what follows can join it: an activation, a residual, a quantizer become the
epilogue of the product they follow. Every source is a matrix ``[rows, columns]`` per image.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from fxquant.backends.x86.arguments import Activation, NormKind


class Unsupported(Exception):
    """No kernel or view of a program does this; the message says what."""


@dataclass(eq=False)
class Source:
    """``layer``: whose work it is. ``buffer``: its float result, once emitted."""

    rows: int
    columns: int
    layer: str
    buffer: Buffer | None = field(default=None, init=False)

    @property
    def size(self) -> int:
        """Elements of one image."""
        return self.rows * self.columns

    def forget(self) -> None:
        """The work is emitted: let go of what it was made of. Otherwise the residual stream would
        hold every value before it, and their indices take more memory than the model."""
        for name, value in list(vars(self).items()):
            if isinstance(value, (View, Codes)):
                setattr(self, name, None)


@dataclass(eq=False)
class Buffer(Source):
    """Memory: ``home`` is ``arena``, ``input``, ``output`` or ``constant``.

    ``quads``: rows interleaved four by four. ``constant``: the data of a constant, the same for
    every image. ``tensor``: which input or output it is. ``shape``: of an input, for one image.
    """

    dtype: torch.dtype = torch.float32
    home: str = "arena"
    quads: bool = False
    shape: tuple[int, ...] = ()
    constant: Tensor | None = None
    tensor: int = 0

    def __post_init__(self) -> None:
        self.buffer = self if self.dtype is torch.float32 and not self.quads else None

    @property
    def image_bytes(self) -> int:
        """Bytes of one image, a multiple of a cache line in the arena; 0 for constants."""
        if self.home == "constant":
            return 0
        rows = -(-self.rows // 4) * 4 if self.quads else self.rows
        size = rows * self.columns * self.dtype.itemsize
        return -(-size // 64) * 64 + 64 if self.home == "arena" else size


@dataclass(frozen=True, eq=False)
class View:
    """A value: elements ``index`` of ``source``, in the value's shape, times ``factor``.

    ``shared``: more than one node reads it, so nothing may join the work behind it. ``name``: the
    node it is the value of.
    """

    source: Source
    index: Tensor
    factor: float = 1.0
    shared: bool = False
    name: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """For one image, with its leading axis of 1 or of windows."""
        return tuple(self.index.shape)

    def moved(self, index: Tensor) -> View:
        """Other elements of the same source."""
        return replace(self, index=index, shared=False, name="")


@dataclass(eq=False)
class Codes:
    """u8 codes of ``view``: ``clamp(round(x / scale + zero_point))``.

    ``scale`` and ``zero_point`` are floats, or tensors that broadcast to the view's shape.
    ``name``: the node they are the value of, ``turned`` with its last two axes exchanged.
    ``per_token``: they are computed row by row, into ``ranges``, and ``view`` is in rows.
    """

    view: View
    scale: Any
    zero_point: Any
    per_token: bool = False
    name: str = ""
    emitted: View | None = None
    ranges: tuple[Buffer, ...] = ()
    turned: bool = False

    def moved(self, index: Tensor) -> Codes:
        """The same codes in another order, where one scale serves all."""
        if self.per_token or isinstance(self.scale, Tensor):
            raise Unsupported("codes with several scales are moved")
        return Codes(self.view.moved(index), self.scale, self.zero_point)


@dataclass(frozen=True, eq=False)
class Weight:
    """A constant weight: s8 codes ``[out, in]`` and float scales ``[out]``."""

    codes: Tensor
    scale: Tensor
    shape: tuple[int, ...]


@dataclass(eq=False)
class Product(Source):
    """A product with a constant weight and what has joined it.

    ``scale`` and ``bias`` belong to outputs: the columns of a linear, the rows of a mix.
    ``row_map[r]``: where row ``r`` of the product is stored.
    """

    codes: Codes
    weight: Weight
    scale: Tensor
    bias: Tensor
    activation: Activation = Activation.NONE
    column_scale: Tensor | None = None
    multiplicand: View | None = None
    residual: View | None = None
    row_map: Tensor | None = None

    @property
    def bare(self) -> bool:
        """Whether nothing follows the product but scale and bias."""
        followed = (self.column_scale, self.multiplicand, self.residual)
        return self.activation is Activation.NONE and all(part is None for part in followed)


class Linear(Product):
    """``[rows, in] x [in, out]``."""


class Mix(Product):
    """A linear over tokens: ``[out, tokens] x [tokens, columns]``."""


@dataclass(eq=False)
class Norm(Source):
    """LayerNorm or affine of ``input`` in rows."""

    input: View
    kind: NormKind
    weight: Tensor | None
    bias: Tensor | None
    epsilon: float = 0.0


@dataclass(eq=False)
class Image(Source):
    """An input image ``[channels, height, width]``, per channel ``x * gain + offset``."""

    buffer_of: Buffer
    shape: tuple[int, int, int]
    gain: Tensor
    offset: Tensor


@dataclass(eq=False)
class Joined(Source):
    """Parts one below the other: values of ``columns`` columns, or constant matrices."""

    parts: tuple[View | Tensor, ...]


@dataclass(eq=False)
class Mean(Source):
    """Mean over the rows of ``input``."""

    input: View


@dataclass(eq=False)
class Dense(Source):
    """A linear that the plan keeps in float: ``weight`` is ``[in, out]``."""

    input: View
    weight: Tensor
    bias: Tensor


@dataclass(eq=False)
class Sum(Source):
    """``left + right``, row by row."""

    left: View
    right: View


def copied(product: Product) -> Product:
    """The same product, not yet emitted."""
    made = copy.copy(product)
    made.buffer = None
    return made


def whole(source: Source, shape: tuple[int, ...]) -> View:
    """All elements of a source in order."""
    return View(source, torch.arange(source.size).reshape(shape))


def said(node: Node) -> str:
    """The layer and operator of a node, for reasons."""
    return f"{node.meta.get('layer') or 'the model'} ({node.target})"
