"""Products with constant weights, and the epilogue that what follows has become."""

from __future__ import annotations

import torch
from torch import Tensor

from fxquant.backends.x86.arguments import Activation, LinearArguments, MixArguments, Store
from fxquant.backends.x86.program.layout import (
    is_permutation,
    is_transposed,
    is_whole,
    selected_rows,
    strided,
)
from fxquant.backends.x86.program.steps import (
    Emitting,
    EpilogueParts,
    Kernel,
    Pointer,
    Step,
    constant,
)
from fxquant.backends.x86.program.values import (
    Buffer,
    Codes,
    Linear,
    Mix,
    Product,
    Unsupported,
    View,
    copied,
)


def product_floats(out: Emitting, product: Product, into: Buffer, *, first_row: int = 0) -> None:
    """The whole product in float, from a row of ``into`` on."""
    parts = _epilogue(out, product, into, Store.F32_ROWS, first_row)
    _call(out, product, parts, product.scale, product.bias, "f32")


def product_codes(out: Emitting, product: Product, codes: Codes) -> View:
    """u8 codes of a product, some of its columns, or its transpose."""
    view = codes.view
    if view.index.numel() < product.size:
        product, view = _some_columns(product, view)
    scale, zero_point = _per_column(codes, view, product)
    into = Buffer(product.rows, product.columns, product.layer, dtype=torch.uint8)
    store, index = Store.U8_ROWS, view.index
    if isinstance(product, Mix) and is_transposed(index, product.rows, product.columns):
        store, into.quads = Store.U8_QUADS, True
    elif not is_whole(index, product.size):
        product, index = settled(product, view)
    parts = _epilogue(out, product, into, store)
    factor, shift = product.scale * view.factor, product.bias * view.factor
    if product.bare and isinstance(product, Linear):
        parts.block.inverse_step, parts.block.zero_point = 1.0, 0.0
        _call(out, product, parts, factor / scale, shift / scale + zero_point, "u8")
    else:
        if view.factor != 1.0 or scale.unique().numel() > 1 or zero_point.unique().numel() > 1:
            raise Unsupported(f"the codes of {product.layer} have several scales")
        parts.block.inverse_step = 1.0 / float(scale[0])
        parts.block.zero_point = float(zero_point[0])
        _call(out, product, parts, product.scale, product.bias, "u8")
    return View(into, index)


def joint_codes(out: Emitting, product: Linear, several: list[Codes]) -> None:
    """Codes of all columns at once, each block of columns with scales of its own."""
    scale, zero_point = torch.ones(product.columns), torch.zeros(product.columns)
    for codes in several:
        columns, view = _columns_of(codes.view, product)
        part, _ = _some_columns(product, codes.view)
        scale[columns], zero_point[columns] = _per_column(codes, view, part)
        scale[columns] /= codes.view.factor
    into = Buffer(product.rows, product.columns, product.layer, dtype=torch.uint8)
    parts = _epilogue(out, product, into, Store.U8_ROWS)
    parts.block.inverse_step, parts.block.zero_point = 1.0, 0.0
    _call(out, product, parts, product.scale / scale, product.bias / scale + zero_point, "u8")
    for codes in several:
        codes.emitted = View(into, codes.view.index)


def settled(product: Product, view: View) -> tuple[Product, Tensor]:
    """The product with its rows stored in the order in which ``view`` reads them, unless rows have
    joined it already, which stay in the order they have."""
    if product.residual is not None or product.multiplicand is not None:
        return product, view.index
    rows = selected_rows(view.index, product.columns)
    if rows is None or not is_permutation(rows, product.rows):
        return product, view.index
    place = torch.empty_like(rows)
    place[rows] = torch.arange(len(rows))
    made = copied(product)
    made.row_map = place if product.row_map is None else place[product.row_map]
    return made, torch.arange(product.size).reshape(view.shape)


def _columns_of(view: View, product: Product) -> tuple[slice, View]:
    """The block of columns that a view reads whole, and the view on that block alone."""
    columns = view.index % product.columns
    first, last = int(columns.min()), int(columns.max()) + 1
    width = last - first
    index = view.index // product.columns * width + columns - first
    if not is_permutation(index.reshape(-1), product.rows * width):
        raise Unsupported(f"parts of the result of {product.layer} are quantized")
    return slice(first, last), View(product, index, view.factor)


def _some_columns(product: Product, view: View) -> tuple[Product, View]:
    columns, view = _columns_of(view, product)
    if not (product.bare and isinstance(product, Linear)):
        raise Unsupported(f"some columns of {product.layer} are quantized behind other work")
    made = copied(product)
    made.columns = columns.stop - columns.start
    weight = product.weight
    made.weight = type(weight)(
        weight.codes[columns], weight.scale[columns], (made.columns, *weight.shape[1:])
    )
    made.scale, made.bias = product.scale[columns], product.bias[columns]
    return made, View(made, view.index, view.factor)


def _per_column(codes: Codes, view: View, product: Product) -> tuple[Tensor, Tensor]:
    """``[columns]``: scale and zero point of each column of the product."""
    found = []
    for value in (codes.scale, codes.zero_point):
        if not isinstance(value, Tensor):
            found.append(torch.full((product.columns,), float(value)))
            continue
        matrix = torch.empty(product.size)
        matrix[view.index.reshape(-1)] = value.float().expand(view.shape).reshape(-1)
        matrix = matrix.reshape(product.rows, product.columns)
        if not torch.equal(matrix, matrix[:1].expand_as(matrix)):
            raise Unsupported(f"the scales of {product.layer}'s codes differ between tokens")
        found.append(matrix[0])
    return found[0], found[1]


def _epilogue(
    out: Emitting, product: Product, into: Buffer, store: Store, first_row: int = 0
) -> EpilogueParts:
    parts = EpilogueParts()
    block = parts.block
    block.activation, block.store = product.activation, store
    block.inverse_step, block.zero_point = 1.0, 0.0
    block.output_stride = into.columns * (4 if store is Store.U8_QUADS else 1)
    offset = first_row * into.columns * into.dtype.itemsize
    parts.point("output", Pointer(into, offset, writes=True))
    if product.column_scale is not None:
        parts.point("column_scale", constant(product.column_scale))
    if product.row_map is not None:
        parts.point("row_map", constant(product.row_map, torch.int32))
    for name in ("multiplicand", "residual"):
        given: View | None = getattr(product, name)
        if given is None:
            continue
        view = out.floats(given)
        rows = strided(view.index, product.columns)
        if rows is None:
            raise Unsupported(f"what joins {product.layer} is not in rows")
        assert isinstance(view.source, Buffer)
        parts.point(name, Pointer(view.source, rows.offset * 4))
        setattr(block, f"{name}_stride", rows.stride)
    return parts


def _padded(values: Tensor, count: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, count - len(values)))


def _call(
    out: Emitting, product: Product, parts: EpilogueParts, scale: Tensor, bias: Tensor, kind: str
) -> None:
    emit = _call_linear if isinstance(product, Linear) else _call_mix
    emit(out, product, parts, scale, bias)
    followed = [] if product.activation is Activation.NONE else [product.activation.name.lower()]
    followed += ["x gate"] if product.multiplicand is not None else []
    followed += ["+ residual"] if product.residual is not None else []
    out.steps[-1].text = ", ".join(["int8 linear", *followed, f"{kind} out"])


def _call_linear(
    out: Emitting, product: Product, parts: EpilogueParts, scale: Tensor, bias: Tensor
) -> None:
    view, codes = out.codes(product.codes), product.codes
    inner = product.weight.codes.shape[1]
    rows = strided(view.index, inner)
    assert isinstance(view.source, Buffer)
    if rows is None or view.source.quads:
        raise Unsupported(f"the codes that {product.layer} reads are not in rows")
    packed = out.packed(product.weight.codes)
    columns = packed.numel() // (-(-inner // 4) * 4)
    sums = product.weight.codes.sum(1, dtype=torch.int64)
    start = -sums if codes.per_token else -sums * int(codes.zero_point)
    block = LinearArguments(
        input_stride=rows.stride,
        rows=product.rows,
        inner=inner,
        columns=product.columns,
        epilogue=parts.block,
    )
    pointers = {
        "input": Pointer(view.source, rows.offset),
        "weight": Pointer(packed),
        "start": constant(_padded(start, columns), torch.int32),
        "epilogue.scale": constant(_padded(scale, columns)),
        "epilogue.bias": constant(_padded(bias, columns)),
        **parts.pointers,
    }
    for name, made in zip(("row_scale", "row_zero_point"), codes.ranges, strict=False):
        pointers[name] = Pointer(made)
    out.steps.append(Step(Kernel.LINEAR, block, pointers, product.layer, "", int8=True))


def _call_mix(
    out: Emitting, product: Product, parts: EpilogueParts, scale: Tensor, bias: Tensor
) -> None:
    view, weight = out.codes(product.codes), product.weight.codes
    tokens = weight.shape[1]
    assert isinstance(view.source, Buffer)
    if not view.source.quads:
        raise Unsupported(f"the tokens that {product.layer} mixes are not interleaved")
    start = -weight.sum(1, dtype=torch.int64) * int(product.codes.zero_point)
    block = MixArguments(
        tokens=tokens,
        outputs=product.rows,
        columns=product.columns,
        input_stride=4 * product.columns,
        epilogue=parts.block,
    )
    pointers = {
        "input": Pointer(view.source),
        "weight": constant(torch.nn.functional.pad(weight, (0, -tokens % 4)), torch.int8),
        "start": constant(start, torch.int32),
        "epilogue.scale": constant(scale),
        "epilogue.bias": constant(bias),
        **parts.pointers,
    }
    out.steps.append(Step(Kernel.MIX, block, pointers, product.layer, "", int8=True))
