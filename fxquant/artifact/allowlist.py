"""The operators that may occur in an artifact, one by one.

Not the whole ``aten`` namespace: some of it opens files (``from_file``), changes tensors in
place, draws random numbers or returns uninitialised memory. What is listed computes a new tensor
or view from its inputs and nothing else.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch

import fxquant.graph.weighted
import fxquant.quant.ops  # noqa: F401  (registers quantized_decomposed and fxquant)
from fxquant.errors import ArtifactError

_ATEN = """
adaptive_avg_pool1d.default adaptive_avg_pool2d.default adaptive_avg_pool3d.default
adaptive_max_pool1d.default adaptive_max_pool2d.default _adaptive_avg_pool2d.default
avg_pool1d.default avg_pool2d.default avg_pool3d.default max_pool1d.default max_pool2d.default
max_pool3d.default max_pool2d_with_indices.default

conv1d.default conv1d.padding conv2d.default conv2d.padding conv3d.default conv3d.padding
conv_transpose1d.default conv_transpose2d.input conv_transpose3d.input convolution.default
_convolution.default im2col.default col2im.default

linear.default matmul.default mm.default bmm.default addmm.default baddbmm.default addbmm.default
addmv.default mv.default dot.default vdot.default outer.default ger.default einsum.default
bilinear.default tensordot.default inner.default linalg_matmul.default linalg_vecdot.default
linalg_cross.default lstm.input scaled_dot_product_attention.default

layer_norm.default native_layer_norm.default rms_norm.default _fused_rms_norm.default
group_norm.default native_group_norm.default instance_norm.default batch_norm.default
_native_batch_norm_legit_no_training.default

linalg_vector_norm.default linalg_norm.default norm.Scalar norm.ScalarOpt_dim norm.ScalarOpt_dtype
norm.ScalarOpt_dim_dtype cosine_similarity.default pairwise_distance.default cdist.default

softmax.int _softmax.default log_softmax.int _log_softmax.default gelu.default relu.default
relu6.default silu.default mish.default hardswish.default hardsigmoid.default hardtanh.default
leaky_relu.default elu.default selu.default celu.default softplus.default softshrink.default
hardshrink.default threshold.default log_sigmoid.default glu.default prelu.default sigmoid.default
tanh.default logit.default special_expit.default special_erf.default special_logit.default

abs.default absolute.default neg.default negative.default positive.default sign.default sgn.default
ceil.default floor.default round.default round.decimals trunc.default fix.default frac.default
exp.default exp2.default expm1.default log.default log2.default log10.default log1p.default
sqrt.default rsqrt.default square.default reciprocal.default sin.default cos.default tan.default
asin.default acos.default atan.default arcsin.default arccos.default arctan.default atan2.default
arctan2.default sinh.default cosh.default asinh.default acosh.default atanh.default sinc.default
erf.default erfc.default erfinv.default deg2rad.default rad2deg.default isnan.default isinf.default
isfinite.default isposinf.default isneginf.default signbit.default nan_to_num.default
logical_not.default bitwise_not.default

add.Tensor add.Scalar sub.Tensor sub.Scalar rsub.Tensor rsub.Scalar subtract.Tensor subtract.Scalar
mul.Tensor mul.Scalar multiply.Tensor multiply.Scalar div.Tensor div.Scalar div.Tensor_mode
div.Scalar_mode divide.Tensor divide.Scalar true_divide.Tensor true_divide.Scalar
floor_divide.default floor_divide.Scalar remainder.Tensor remainder.Scalar remainder.Scalar_Tensor
fmod.Tensor fmod.Scalar pow.Tensor_Tensor pow.Tensor_Scalar pow.Scalar float_power.Tensor_Tensor
float_power.Tensor_Scalar float_power.Scalar maximum.default minimum.default fmax.default
fmin.default max.other min.other addcmul.default addcdiv.default lerp.Tensor lerp.Scalar
hypot.default copysign.Tensor copysign.Scalar xlogy.Tensor xlogy.Scalar_Self xlogy.Scalar_Other
logaddexp.default logaddexp2.default heaviside.default clamp.default clamp.Tensor clamp_min.default
clamp_min.Tensor clamp_max.default clamp_max.Tensor clip.default clip.Tensor where.self
where.Scalar where.ScalarSelf where.ScalarOther masked_fill.Scalar masked_fill.Tensor

eq.Tensor eq.Scalar ne.Tensor ne.Scalar lt.Tensor lt.Scalar le.Tensor le.Scalar gt.Tensor gt.Scalar
ge.Tensor ge.Scalar isclose.default not_equal.Tensor not_equal.Scalar less.Tensor less.Scalar
less_equal.Tensor less_equal.Scalar greater.Tensor greater.Scalar greater_equal.Tensor
greater_equal.Scalar logical_and.default logical_or.default logical_xor.default bitwise_and.Tensor
bitwise_and.Scalar bitwise_or.Tensor bitwise_or.Scalar bitwise_xor.Tensor bitwise_xor.Scalar
bitwise_left_shift.Tensor bitwise_left_shift.Tensor_Scalar bitwise_right_shift.Tensor
bitwise_right_shift.Tensor_Scalar __and__.Tensor __and__.Scalar __or__.Tensor __or__.Scalar
__xor__.Tensor __xor__.Scalar __lshift__.Tensor __lshift__.Scalar __rshift__.Tensor
__rshift__.Scalar

sum.default sum.dim_IntList mean.default mean.dim nanmean.default nansum.default prod.default
prod.dim_int amax.default amin.default aminmax.default max.default max.dim min.default min.dim
argmax.default argmin.default var.default var.dim var.correction std.default std.dim std.correction
var_mean.default var_mean.dim var_mean.correction std_mean.default std_mean.dim std_mean.correction
median.default median.dim logsumexp.default all.default all.dim any.default any.dim cumsum.default
cumprod.default cummax.default cummin.default logcumsumexp.default topk.default sort.default
sort.stable argsort.default argsort.stable kthvalue.default mode.default count_nonzero.default
count_nonzero.dim_IntList diff.default trace.default

reshape.default reshape_as.default view.default view_as.default _unsafe_view.default
flatten.using_ints unflatten.int permute.default transpose.int t.default numpy_T.default mT.default
swapaxes.default swapdims.default movedim.int movedim.intlist moveaxis.int moveaxis.intlist
squeeze.default squeeze.dim squeeze.dims unsqueeze.default expand.default expand_as.default
broadcast_to.default broadcast_tensors.default repeat.default tile.default
repeat_interleave.self_int roll.default flip.default fliplr.default flipud.default rot90.default
cat.default concat.default concatenate.default stack.default hstack.default vstack.default
dstack.default split.Tensor split.sizes split_with_sizes.default tensor_split.indices
tensor_split.sections chunk.default unsafe_chunk.default unsafe_split.Tensor
unsafe_split_with_sizes.default unbind.int slice.Tensor select.int narrow.default diagonal.default
diag.default diag_embed.default tril.default triu.default meshgrid.default meshgrid.indexing
unfold.default unfold_copy.default pixel_shuffle.default pixel_unshuffle.default
channel_shuffle.default native_channel_shuffle.default atleast_1d.default atleast_2d.default
atleast_3d.default ravel.default slice_scatter.default select_scatter.default
diagonal_scatter.default

index.Tensor index_select.default index_put.default index_add.default index_copy.default
index_fill.int_Scalar index_fill.int_Tensor gather.default scatter.src scatter.value
scatter_add.default take.default take_along_dim.default embedding.default one_hot.default
bucketize.Tensor

pad.default constant_pad_nd.default reflection_pad1d.default reflection_pad2d.default
reflection_pad3d.default replication_pad1d.default replication_pad2d.default
replication_pad3d.default _pad_circular.default upsample_nearest1d.default upsample_nearest1d.vec
upsample_nearest2d.default upsample_nearest2d.vec upsample_nearest3d.default upsample_nearest3d.vec
_upsample_nearest_exact1d.default _upsample_nearest_exact1d.vec _upsample_nearest_exact2d.default
_upsample_nearest_exact2d.vec upsample_linear1d.default upsample_linear1d.vec
upsample_bilinear2d.default upsample_bilinear2d.vec _upsample_bilinear2d_aa.default
_upsample_bilinear2d_aa.vec upsample_bicubic2d.default upsample_bicubic2d.vec
_upsample_bicubic2d_aa.default _upsample_bicubic2d_aa.vec upsample_trilinear3d.default
upsample_trilinear3d.vec grid_sampler.default grid_sampler_2d.default grid_sampler_3d.default
affine_grid_generator.default

full.default full_like.default zeros.default zeros_like.default ones.default ones_like.default
new_zeros.default new_ones.default new_full.default arange.default arange.start arange.start_step
linspace.default logspace.default eye.default eye.m scalar_tensor.default tril_indices.default
triu_indices.default fill.Scalar fill.Tensor

to.dtype to.dtype_layout to.device to.other type_as.default _to_copy.default clone.default
contiguous.default detach.default alias.default lift_fresh_copy.default
copy.default
_assert_tensor_metadata.default

sym_size.int sym_numel.default sym_stride.int
"""

# fmt: off
_DECOMPOSED = (
    "quantize_per_tensor.default", "quantize_per_tensor.tensor", "quantize_per_tensor.tensor2",
    "dequantize_per_tensor.default", "dequantize_per_tensor.tensor",
    "dequantize_per_tensor.tensor2",
    "quantize_per_channel.default", "dequantize_per_channel.default",
    "quantize_per_channel_group.default", "dequantize_per_channel_group.default",
    "quantize_per_token.default", "dequantize_per_token.default",
    "choose_qparams.tensor", "choose_qparams_symmetric.tensor",
    "choose_qparams_per_token.default", "choose_qparams_per_token_asymmetric.default",
    "_choose_qparams_per_token_asymmetric_impl.default",
)
# fmt: on

# A new operator of ours is added here, and where it is registered: in fxquant/quant/ops.py, or in
# fxquant/graph/weighted.py.
FXQUANT = (
    "fxquant.quantize_per_token.default",
    "fxquant.dequantize_per_token.default",
    "fxquant.quantize_region.default",
    "fxquant.dequantize_region.default",
    "fxquant.quantize_region_per_head.default",
    "fxquant.dequantize_region_per_head.default",
    "fxquant.quantize_log.default",
    "fxquant.dequantize_log.default",
    "fxquant.quantize_log_per_head.default",
    "fxquant.dequantize_log_per_head.default",
    "fxquant.row_exponentials.default",
    "fxquant.weighted_mean.default",
    "fxquant.isqrt.default",
    "fxquant.saturate.default",
    "fxquant.requantize.default",
    "fxquant.requantize_channels.default",
    "fxquant.i_exp.default",
    "fxquant.shift_exp.default",
    "fxquant.i_softmax.default",
    "fxquant.shiftmax.default",
    "fxquant.log_int_softmax.default",
    "fxquant.exp2_codes.default",
    "fxquant.table_softmax.default",
    "fxquant.i_gelu.default",
    "fxquant.shift_gelu.default",
    "fxquant.i_layer_norm.default",
    "fxquant.shift_layer_norm.default",
    "fxquant.power_layer_norm.default",
    "fxquant.lookup.default",
    "fxquant.int_linear.default",
    "fxquant.int_matmul.default",
    "fxquant.int_product.default",
    "fxquant.int_sum.default",
)

# Printed name -> function and its number of operands.
SIZE_ARITHMETIC: dict[str, tuple[Callable[..., Any], int]] = {
    "operator.getitem": (operator.getitem, 2),
    "operator.add": (operator.add, 2),
    "operator.sub": (operator.sub, 2),
    "operator.mul": (operator.mul, 2),
    "operator.floordiv": (operator.floordiv, 2),
    "operator.mod": (operator.mod, 2),
    "operator.neg": (operator.neg, 1),
    "torch.sym_max": (torch.sym_max, 2),
    "torch.sym_min": (torch.sym_min, 2),
    "torch.sym_int": (torch.sym_int, 1),
}

OPERATORS: frozenset[str] = frozenset(
    [f"aten.{name}" for name in _ATEN.split()]
    + [f"quantized_decomposed.{name}" for name in _DECOMPOSED]
    + list(FXQUANT)
)
ALLOWED: frozenset[str] = OPERATORS | frozenset(SIZE_ARITHMETIC)


def resolve(name: object) -> Callable[..., Any]:
    """The function behind an allowed name; :class:`ArtifactError` for anything else.

    The set decides before any attribute is looked up.
    """
    if not isinstance(name, str) or name not in ALLOWED:
        shown = ascii(name)[:80] if isinstance(name, str) else type(name).__name__
        raise ArtifactError(
            f"operator {shown} may not occur in an artifact",
            why="only listed operators, which compute and do nothing else, are ever called",
            fix="do not run this file; write a new one from the model",
        )
    if name in SIZE_ARITHMETIC:
        return SIZE_ARITHMETIC[name][0]
    namespace, operation, overload = name.split(".")
    try:
        found: Callable[..., Any] = getattr(
            getattr(getattr(torch.ops, namespace), operation), overload
        )
    except AttributeError as error:
        raise ArtifactError(
            f"operator {name} does not exist in torch {torch.__version__}",
            fix="install the torch version that the artifact was written with",
        ) from error
    return found
