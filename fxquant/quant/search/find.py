"""One entry for the searches of all kinds of quantizers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fxquant.errors import CalibrationError, InputError, SchemeError
from fxquant.quant.qparams import QParams
from fxquant.quant.scheme import Scheme
from fxquant.quant.search.best import Candidate, joined, total
from fxquant.quant.search.logs import offset_of, plain_log, search_log
from fxquant.quant.search.objective import Objective, make_objectives
from fxquant.quant.search.region import plain_region, search_region, split_of
from fxquant.quant.search.uniform import plain_uniform, search_uniform

_RULES = frozenset({"minmax", "mse", "output", "fisher"})


@dataclass(frozen=True)
class Found:
    """``qparams``, with the mean error on the sample of them and of the plain min-max quantizer.

    Means are over elements of the objective's output: of the tensor for ``mse``, of what its
    consumer makes of it for ``output`` and ``fisher``. ``error <= plain_error`` always.
    """

    qparams: QParams
    error: float
    plain_error: float


def find(
    scheme: Scheme,
    rows: Tensor,
    *,
    low: float | Tensor,
    high: float | Tensor,
    output: Tensor | None = None,
    importance: Tensor | None = None,
) -> Found:
    """Search the parameters of ``scheme`` on a sample.

    ``rows``: float32 ``[..., C]``, for granularity ``head`` ``[H, ..., d]``. ``low``, ``high``: the
    range seen on all calibration data, numbers or one per head ``[H]``. ``output``: weight
    ``[O, C]`` of the consumer, or ``[H, O, d]``, for rules ``output`` and ``fisher``.
    ``importance``: squared gradients ``[n, O]`` (``[H, n, O]``) at the consumer's output, in the
    order of the rows; without ``output``, ``[n, C]`` at the tensor itself.

    Rule ``minmax`` searches nothing and takes the range. Raises :class:`InputError` for arguments
    that do not fit, :class:`CalibrationError` for a range that is not finite.
    """
    if scheme.granularity not in {"tensor", "head"} or scheme.rule not in _RULES:
        raise SchemeError(
            "this scheme is not found by a search",
            where=f"scheme {scheme.text()}",
            fix="use an observer, or granularity tensor or head and rule mse, output or fisher",
        )
    objectives = make_objectives(scheme, rows, output, importance)
    lows, highs = _ends(low, objectives, "low"), _ends(high, objectives, "high")
    single = replace(scheme, granularity="tensor")  # a head by itself is a tensor
    plain = _plain(single, lows, highs)
    searched = plain if scheme.rule == "minmax" else _search(single, lows, highs, objectives)
    count = sum(objective.count for objective in objectives)
    error, plain_error = (total(one, objectives) / count for one in (searched, plain))
    return Found(joined(scheme, searched), error, plain_error)


def search_qparams(
    scheme: Scheme,
    rows: Tensor,
    *,
    low: float | Tensor,
    high: float | Tensor,
    output: Tensor | None = None,
    importance: Tensor | None = None,
) -> QParams:
    """:func:`find` without the errors."""
    return find(scheme, rows, low=low, high=high, output=output, importance=importance).qparams


def _ends(value: float | Tensor, objectives: tuple[Objective, ...], name: str) -> list[float]:
    ends = torch.as_tensor(value, dtype=torch.float64).flatten()
    if ends.numel() == 1:
        ends = ends.expand(len(objectives))
    if ends.numel() != len(objectives):
        raise InputError(
            f"{ends.numel()} values for {len(objectives)} heads", where=f"argument {name}"
        )
    if not bool(torch.isfinite(ends).all()):
        raise CalibrationError(
            "the observed range is not finite",
            where=f"argument {name}",
            fix="check the calibration data and the model's weights for NaN and infinity",
        )
    made: list[float] = (ends.clamp(max=0.0) if name == "low" else ends.clamp(min=0.0)).tolist()
    return made


def _plain(scheme: Scheme, lows: list[float], highs: list[float]) -> Candidate:
    lowest = min(lows)
    if scheme.kind == "region":
        split = split_of(lowest)
        return tuple(plain_region(scheme, reach, split) for reach in _reaches(lows, highs))
    if scheme.kind != "uniform":
        return tuple(plain_log(scheme, high, offset_of(lowest)) for high in highs)
    return tuple(plain_uniform(scheme, *ends) for ends in zip(lows, highs, strict=True))


def _search(
    scheme: Scheme, lows: list[float], highs: list[float], objectives: tuple[Objective, ...]
) -> Candidate:
    if scheme.kind == "region":
        reaches, split = _reaches(lows, highs), split_of(min(lows))
        return tuple(search_region(scheme, reaches, split, objectives))
    if scheme.kind != "uniform":
        return tuple(search_log(scheme, lows, highs, objectives))
    ends = zip(lows, highs, objectives, strict=True)
    return tuple(search_uniform(scheme, *one) for one in ends)


def _reaches(lows: list[float], highs: list[float]) -> list[float]:
    return [max(-low, high) for low, high in zip(lows, highs, strict=True)]
