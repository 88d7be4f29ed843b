"""Linears, products of activations and sums in exact integer arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor

from fxquant.quant.library import define


def _int_linear(x: Tensor, weight: Tensor, bias: Tensor, offset: int) -> Tensor:
    """``Σ_k (x_k - offset) W_ok + bias_o``: int8 products summed in int32.

    ``x`` ``[..., K]`` uint8 or int8 such that ``x - offset`` fits int8, ``weight`` int8 ``[O, K]``,
    ``bias`` int32 ``[O]``. ``K < 2^17`` keeps the sum in int32.
    """
    narrow = (x.to(torch.int16) - offset).to(torch.int8) if offset else x
    rows = narrow.reshape(-1, x.shape[-1])
    y = torch._int_mm(rows, weight.t()) + bias
    return y.reshape(*x.shape[:-1], weight.shape[0])


def _int_matmul(a: Tensor, b: Tensor, a_zero: int, b_zero: int) -> Tensor:
    """``Σ_k (a_ik - z_a) (b_kj - z_b)`` in int32, over any leading axes of equal size."""
    left, right = a.to(torch.int32) - a_zero, b.to(torch.int32) - b_zero
    shape = (*left.shape[:-1], right.shape[-1])
    batches = left.reshape(-1, *left.shape[-2:]), right.reshape(-1, *right.shape[-2:])
    return torch.bmm(*batches).reshape(shape)


def _int_product(a: Tensor, b: Tensor, a_zero: int, b_zero: int) -> Tensor:
    """``(a - z_a) (b - z_b)`` element by element in int32, for codes of up to 16 bits."""
    return (a.to(torch.int32) - a_zero) * (b.to(torch.int32) - b_zero)


def _int_sum(x: Tensor, dims: list[int], keepdim: bool, zero_point: int) -> Tensor:  # noqa: FBT001
    """``Σ (x - z)`` over ``dims``, int32; the number of summands goes into the step."""
    wide = x.to(torch.int32) - zero_point
    return wide.sum(dims, keepdim=keepdim, dtype=torch.int32)


int_linear = define(
    "int_linear(Tensor x, Tensor weight, Tensor bias, int offset) -> Tensor", _int_linear
)
int_matmul = define("int_matmul(Tensor a, Tensor b, int a_zero, int b_zero) -> Tensor", _int_matmul)
int_product = define(
    "int_product(Tensor a, Tensor b, int a_zero, int b_zero) -> Tensor", _int_product
)
int_sum = define("int_sum(Tensor x, int[] dims, bool keepdim, int zero_point) -> Tensor", _int_sum)
