"""Distances between a float result and its quantized counterpart."""

from __future__ import annotations

import torch
from torch import Tensor

EXACT_DB = 150.0  # reported where there is no error at all


def sqnr_db(reference: Tensor, other: Tensor) -> float:
    """Signal to quantization noise, ``10 log10(sum r^2 / sum (r - o)^2)`` in dB, any shape."""
    reference, other = reference.to(torch.float64), other.to(torch.float64)
    signal = reference.square().sum()
    noise = (reference - other).square().sum()
    if noise == 0:
        return EXACT_DB
    if signal == 0:
        return -EXACT_DB
    return float((10 * torch.log10(signal / noise)).clamp(-EXACT_DB, EXACT_DB))


def token_sqnr_db(reference: Tensor, other: Tensor) -> float:
    """Mean over tokens of the SQNR of each token (last axis = channels), in dB.

    One outlier token carries nearly all the energy of some tensors, so the plain SQNR stays high
    while every other token is rounded away; averaging in dB counts each token alike.
    """
    signal = reference.to(torch.float64).square().sum(-1)
    noise = (reference.to(torch.float64) - other.to(torch.float64)).square().sum(-1)
    live = signal > 0
    if not bool(live.any()):
        return EXACT_DB
    ratio = signal[live] / noise[live].clamp(min=1e-300)
    return float((10 * torch.log10(ratio)).clamp(-EXACT_DB, EXACT_DB).mean())


def mean_ratio_db(ratios: Tensor) -> float:
    """``20 log10(mean_n r_n)`` of samples' ratios ``r_n = |x_n| / |x_n - x'_n|``, in dB.

    The mean stands inside the logarithm, as in HNQ (papers, section 4a): a sample without error
    has no finite ratio, so ratios end where a single one gives 150 dB.
    """
    return float((20 * torch.log10(ratios.to(torch.float64).mean())).clamp(-EXACT_DB, EXACT_DB))


def sample_ratios(reference: Tensor, other: Tensor) -> Tensor:
    """``|x_n| / |x_n - x'_n|`` of each sample (first axis), float64 ``[N]``, at most 150 dB."""
    wide = [t.to(torch.float64).reshape(len(t), -1) for t in (reference, other)]
    signal, noise = wide[0].norm(dim=1), (wide[0] - wide[1]).norm(dim=1)
    most = 10.0 ** (EXACT_DB / 20)
    ratios: Tensor = (signal / noise.clamp(min=1e-300)).clamp(1 / most, most)
    return ratios
