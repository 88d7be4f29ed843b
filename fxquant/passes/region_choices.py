"""What was chosen at a site, as plain data: recorded in the plan and read back from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from fxquant.errors import PlanError
from fxquant.passes.region_search import Outcome
from fxquant.quant.qparams import QParams
from fxquant.quant.region import LARGEST_SHIFT
from fxquant.quant.scheme import Scheme

_SPLITS = ("sign", "magnitude")


def record(found: Outcome | str) -> dict[str, Any]:
    """The plan's entry: ``m``, ``scale`` (Δ1, or a list per head), ``split``, ``scheme`` and the
    errors; a decline for a text, or for an outcome that kept the quantizer there was."""
    if isinstance(found, str):
        return {"declined": True, "reason": found}
    before, after = found.before, found.after
    errors = {"error_before": before, "error_after": after}
    if found.qparams is None:
        best = min(found.errors.values())
        reason = f"two regions make an error of {best:.3g}, the quantizer there is {before:.3g}"
        return {"declined": True, **errors, "reason": reason}
    qparams = found.qparams
    reason = f"m = {qparams.shift}: relative error {before:.3g} with one step, {after:.3g} with two"
    return {
        "m": qparams.shift,
        "scale": qparams.scale.tolist(),
        "split": qparams.split,
        "scheme": qparams.scheme.text(),
        **errors,
        "reason": reason,
    }


def read(data: Mapping[str, Any], site: str) -> QParams:
    """Parameters from a recorded choice; raises :class:`PlanError` for what is not sound."""
    where = f"plan, choice region@{site}"
    shift, split, scale, text = (data.get(key) for key in ("m", "split", "scale", "scheme"))
    if type(shift) is not int or not 0 <= shift <= LARGEST_SHIFT:
        raise PlanError(f"m cannot be {shift!r}", where=where, fix=f"m lies in 0..{LARGEST_SHIFT}")
    if split not in _SPLITS:
        raise PlanError(f"split cannot be {split!r}", where=where, fix="write sign or magnitude")
    scheme = _scheme(text, where)
    scales: list[Any] = scale if isinstance(scale, list) else [scale]
    sound = all(type(s) in {int, float} and math.isfinite(s) and s > 0 for s in scales)
    if not sound or isinstance(scale, list) != (scheme.granularity == "head"):
        raise PlanError(f"scale cannot be {scale!r}", where=where, fix=f"it is {scheme.text()}")
    values = torch.tensor(scale, dtype=torch.float32)
    zero_point = torch.zeros_like(values, dtype=torch.int64)
    return QParams(scheme, values, zero_point, shift=shift, split=split)


def _scheme(text: object, where: str) -> Scheme:
    try:
        scheme = Scheme.parse(text)  # type: ignore[arg-type]
    except ValueError as error:
        raise PlanError("a choice's scheme cannot be read", where=where, why=str(error)) from error
    if scheme.kind != "region":
        raise PlanError(f"{text} is no scheme of two regions", where=where)
    return scheme
