"""Ranges of weights: known whole, so no observer is needed."""

from __future__ import annotations

import torch
from torch import Tensor

from fxquant.errors import CalibrationError, SchemeError
from fxquant.quant.qparams import QParams, qparams_from_range
from fxquant.quant.scheme import Scheme
from fxquant.quant.uniform import fake_quantize, quantize

_ROWS = 32
_SHARES = torch.linspace(1.0, 0.5, 51)


def weight_qparams(weight: Tensor, scheme: Scheme, *, where: str = "") -> QParams:
    """Scale and zero point of a weight ``[out, in, ...]`` for per-tensor, channel or group schemes.

    ``minmax`` takes the whole range; ``mse`` shrinks each channel's range to the share in
    [0.5, 1] with the least squared error. Other range rules are for activations.
    """
    low, high = _ends(weight, scheme, where)
    if scheme.kind != "uniform":
        raise SchemeError(
            f"a {scheme.kind} quantizer is for activations, not for weights",
            where=where,
            fix="give weights a scheme such as s8/channel/minmax",
        )
    if not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
        raise CalibrationError(
            "the weight holds NaN or infinity", where=where, fix="check the checkpoint"
        )
    if scheme.rule == "minmax" and scheme.granularity != "head":
        return qparams_from_range(scheme, low, high, where=where)
    if scheme.rule == "mse" and scheme.granularity in {"channel", "tensor"}:
        return _least_error(weight, scheme, low, high, where)
    raise SchemeError(
        f"range rule {scheme.rule!r} does not apply to a {scheme.granularity} weight",
        where=where,
        fix="use minmax, or mse with channel or tensor granularity",
    )


def weight_codes(weight: Tensor, qparams: QParams) -> Tensor:
    """Codes of a weight, block of rows by block of rows.

    Whole-tensor temporaries between small long-lived codes would fragment the heap: on ViT-Base
    that cost 0.3 GB of peak memory.
    """
    weight = weight.detach()
    codes = torch.empty(weight.shape, dtype=qparams.scheme.dtype)
    for start in range(0, weight.shape[0], _ROWS):
        rows = slice(start, start + _ROWS)
        whole = qparams.scale.dim() == 0
        scale = qparams.scale if whole else qparams.scale[rows]
        zero_point = qparams.zero_point if whole else qparams.zero_point[rows]
        codes[rows] = quantize(weight[rows], QParams(qparams.scheme, scale, zero_point))
    return codes


def _ends(weight: Tensor, scheme: Scheme, where: str) -> tuple[Tensor, Tensor]:
    weight = weight.detach()
    if scheme.granularity == "tensor":
        return weight.amin(), weight.amax()
    rows = weight.reshape(weight.shape[0], -1)
    if scheme.granularity == "group":
        if weight.dim() != 2 or rows.shape[1] % scheme.group_size:
            raise SchemeError(
                f"groups of {scheme.group_size} do not divide a weight {tuple(weight.shape)}",
                where=where,
                fix="choose a group size that divides the input channels",
            )
        rows = rows.reshape(weight.shape[0], -1, scheme.group_size)
    return rows.amin(-1), rows.amax(-1)


def _least_error(weight: Tensor, scheme: Scheme, low: Tensor, high: Tensor, where: str) -> QParams:
    best = qparams_from_range(scheme, low, high, where=where)
    scale, zero_point = best.scale.clone(), best.zero_point.clone()
    per_channel = scheme.granularity == "channel"

    def error(candidate: QParams) -> Tensor:
        squared = (weight - fake_quantize(weight, candidate)).square()
        return squared.reshape(weight.shape[0], -1).sum(1) if per_channel else squared.sum()

    least = error(best)
    for share in _SHARES[1:]:
        candidate = qparams_from_range(scheme, share * low, share * high, where=where)
        found = error(candidate)
        better = found < least
        scale = torch.where(better, candidate.scale, scale)
        zero_point = torch.where(better, candidate.zero_point, zero_point)
        least = torch.minimum(least, found)
    return QParams(scheme, scale, zero_point)
