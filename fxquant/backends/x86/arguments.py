"""The kernels' argument blocks, as ``kernels/abi.h`` declares them."""

from __future__ import annotations

from ctypes import Structure, c_float, c_int32, c_int64, c_void_p
from enum import IntEnum
from typing import Any, ClassVar


class Activation(IntEnum):
    """What follows a linear."""

    NONE = 0
    GELU = 1
    GELU_TANH = 2
    RELU = 3
    SILU = 4


class Store(IntEnum):
    """How results lie in memory."""

    F32_ROWS = 0
    U8_ROWS = 1
    U8_QUADS = 2


class NormKind(IntEnum):
    """Row statistics, or none."""

    AFFINE = 0
    LAYER_NORM = 1


class Epilogue(Structure):
    """``fxq_epilogue``."""

    _fields_: ClassVar = [
        ("scale", c_void_p),
        ("bias", c_void_p),
        ("column_scale", c_void_p),
        ("multiplicand", c_void_p),
        ("multiplicand_stride", c_int64),
        ("residual", c_void_p),
        ("residual_stride", c_int64),
        ("row_map", c_void_p),
        ("output", c_void_p),
        ("output_stride", c_int64),
        ("inverse_step", c_float),
        ("zero_point", c_float),
        ("activation", c_int32),
        ("store", c_int32),
    ]


class LinearArguments(Structure):
    """``fxq_linear_arguments``."""

    _fields_: ClassVar = [
        ("input", c_void_p),
        ("input_stride", c_int64),
        ("rows", c_int64),
        ("inner", c_int64),
        ("columns", c_int64),
        ("weight", c_void_p),
        ("start", c_void_p),
        ("row_scale", c_void_p),
        ("row_zero_point", c_void_p),
        ("epilogue", Epilogue),
    ]


class MixArguments(Structure):
    """``fxq_mix_arguments``."""

    _fields_: ClassVar = [
        ("input", c_void_p),
        ("tokens", c_int64),
        ("outputs", c_int64),
        ("columns", c_int64),
        ("input_stride", c_int64),
        ("weight", c_void_p),
        ("start", c_void_p),
        ("epilogue", Epilogue),
    ]


class NormArguments(Structure):
    """``fxq_norm_arguments``."""

    _fields_: ClassVar = [
        ("input", c_void_p),
        ("rows", c_int64),
        ("columns", c_int64),
        ("pieces", c_int64),
        ("piece_stride", c_int64),
        ("piece_map", c_void_p),
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("epsilon", c_float),
        ("kind", c_int32),
        ("output", c_void_p),
        ("output_stride", c_int64),
        ("inverse_step", c_float),
        ("zero_point", c_float),
        ("store", c_int32),
        ("row_scale", c_void_p),
        ("row_zero_point", c_void_p),
    ]


# What both attention kernels take: where the operands lie, then what becomes of the result.
_OPERANDS: Any = [
    ("query", c_void_p),
    ("key", c_void_p),
    ("value", c_void_p),
    ("input_stride", c_int64),
    ("groups", c_int64),
    ("heads", c_int64),
    ("tokens", c_int64),
    ("width", c_int64),
]
_BIAS_AND_RESULT: Any = [
    ("score_bias", c_void_p),
    ("bias_group_stride", c_int64),
    ("bias_head_stride", c_int64),
    ("bias_row_stride", c_int64),
    ("output_scale", c_void_p),
    ("output_bias", c_void_p),
    ("output", c_void_p),
    ("output_stride", c_int64),
    ("store", c_int32),
    ("scratch", c_void_p),
]


class AttentionArguments(Structure):
    """``fxq_attention_arguments``."""

    _fields_: ClassVar = [
        *_OPERANDS,
        ("score_scale", c_void_p),
        ("query_zero_point", c_void_p),
        *_BIAS_AND_RESULT,
    ]


class FloatAttentionArguments(Structure):
    """``fxq_float_attention_arguments``."""

    _fields_: ClassVar = [*_OPERANDS, ("score_scale", c_float), *_BIAS_AND_RESULT]


class PatchesArguments(Structure):
    """``fxq_patches_arguments``."""

    _fields_: ClassVar = [
        ("input", c_void_p),
        ("input_is_u8", c_int32),
        ("channels", c_int64),
        ("height", c_int64),
        ("width", c_int64),
        ("patch_height", c_int64),
        ("patch_width", c_int64),
        ("inverse_step", c_void_p),
        ("zero_point", c_void_p),
        ("output", c_void_p),
        ("output_stride", c_int64),
    ]


class GatherArguments(Structure):
    """``fxq_gather_arguments``."""

    _fields_: ClassVar = [
        ("input", c_void_p),
        ("map", c_void_p),
        ("pieces", c_int64),
        ("piece_bytes", c_int64),
        ("output", c_void_p),
    ]


class MeanArguments(Structure):
    """``fxq_mean_arguments``."""

    _fields_: ClassVar = [
        ("input", c_void_p),
        ("input_stride", c_int64),
        ("rows", c_int64),
        ("columns", c_int64),
        ("output", c_void_p),
    ]


class AddArguments(Structure):
    """``fxq_add_arguments``."""

    _fields_: ClassVar = [
        ("left", c_void_p),
        ("left_stride", c_int64),
        ("right", c_void_p),
        ("right_stride", c_int64),
        ("rows", c_int64),
        ("columns", c_int64),
        ("output", c_void_p),
    ]


class DenseArguments(Structure):
    """``fxq_dense_arguments``."""

    _fields_: ClassVar = [
        ("input", c_void_p),
        ("input_stride", c_int64),
        ("rows", c_int64),
        ("inner", c_int64),
        ("columns", c_int64),
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("output", c_void_p),
    ]
