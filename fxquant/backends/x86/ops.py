"""``fxquant::qlinear``: oneDNN's packed int8 linear as an operator that Inductor may compile.

Inductor lowers ``onednn.qlinear_pointwise`` itself only when the packed weight is a frozen
constant. These thin operators let the weight be an ordinary buffer, so that a plain
``torch.compile(model)`` works: their Inductor lowering emits the same oneDNN call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._inductor.ir import ExternKernel
from torch._inductor.lowering import fallback_handler, register_lowering

from fxquant.quant.ops import library

_UNARY = torch.ops.onednn.qlinear_pointwise.default
_BINARY = torch.ops.onednn.qlinear_pointwise.binary

library.define(
    "qlinear(Tensor x, float x_scale, int x_zero_point, Tensor packed, Tensor w_scale,"
    " Tensor w_zero_point, Tensor? bias, float out_scale, int out_zero_point,"
    " ScalarType out_dtype, str post_op, str algorithm) -> Tensor"
)
library.define(
    "qlinear_add(Tensor x, float x_scale, int x_zero_point, Tensor packed, Tensor w_scale,"
    " Tensor w_zero_point, Tensor other, Tensor? bias) -> Tensor"
)
qlinear = torch.ops.fxquant.qlinear.default
qlinear_add = torch.ops.fxquant.qlinear_add.default
KERNELS = frozenset({qlinear, qlinear_add})


def _unary_arguments(
    x: Any,
    x_scale: float,
    x_zero_point: int,
    packed: Any,
    w_scale: Any,
    w_zero_point: Any,
    bias: Any,
    out_scale: float,
    out_zero_point: int,
    out_dtype: torch.dtype,
    post_op: str,
    algorithm: str,
) -> tuple[Any, ...]:
    weight = (packed, w_scale, w_zero_point, bias)
    return (
        *(x, x_scale, x_zero_point, *weight, out_scale, out_zero_point, out_dtype),
        *(post_op, [], algorithm),
    )


def _binary_arguments(
    x: Any,
    x_scale: float,
    x_zero_point: int,
    packed: Any,
    w_scale: Any,
    w_zero_point: Any,
    other: Any,
    bias: Any,
) -> tuple[Any, ...]:
    weight = (packed, w_scale, w_zero_point, other, bias)
    output: tuple[Any, ...] = (1.0, 0, torch.float32, 1.0, 0, "add", 1.0, "none", [], "")
    return (x, x_scale, x_zero_point, *weight, *output)


def _contiguous_binary(
    contiguous: Callable[[Any], Any], x: Any, args: tuple[Any, ...]
) -> tuple[Any, ...]:
    x_scale, x_zero_point, packed, w_scale, w_zero_point, other, bias = args
    weight = (packed, w_scale, w_zero_point)
    return _binary_arguments(contiguous(x), x_scale, x_zero_point, *weight, contiguous(other), bias)


def _qlinear(x: Tensor, *args: Any) -> Tensor:
    result: Tensor = _UNARY(*_unary_arguments(x.contiguous(), *args))
    return result


def _qlinear_add(x: Tensor, *args: Any) -> Tensor:
    result: Tensor = _BINARY(*_contiguous_binary(lambda t: t.contiguous(), x, args))
    return result


def _qlinear_fake(*args: Any) -> Tensor:
    x, w_scale, out_dtype = args[0], args[4], args[9]
    return x.new_empty((*x.shape[:-1], w_scale.shape[0]), dtype=out_dtype)  # type: ignore[no-any-return]


def _qlinear_add_fake(*args: Any) -> Tensor:
    x, w_scale = args[0], args[4]
    return x.new_empty((*x.shape[:-1], w_scale.shape[0]), dtype=torch.float32)  # type: ignore[no-any-return]


for _key in ("CPU", "MkldnnCPU"):  # the packed weight's own dispatch key comes second
    library.impl("qlinear", _qlinear, _key)
    library.impl("qlinear_add", _qlinear_add, _key)
torch.library.register_fake("fxquant::qlinear", _qlinear_fake, lib=library)
torch.library.register_fake("fxquant::qlinear_add", _qlinear_add_fake, lib=library)

_contiguous = ExternKernel.require_contiguous  # the kernel misreads strided tensors
_emit_unary = fallback_handler(_UNARY, add_to_fallback_set=False)
_emit_binary = fallback_handler(_BINARY, add_to_fallback_set=False)


@register_lowering(qlinear, type_promotion_kind=None)
def _lower_qlinear(x: Any, *args: Any) -> Any:
    return _emit_unary(*_unary_arguments(_contiguous(x), *args))


@register_lowering(qlinear_add, type_promotion_kind=None)
def _lower_qlinear_add(x: Any, *args: Any) -> Any:
    return _emit_binary(*_contiguous_binary(_contiguous, x, args))
