"""What is wanted of a quantizer: plain data with a text form such as ``s8/channel/minmax``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from fxquant.errors import SchemeError

Kind = Literal["uniform", "region", "log2", "log_sqrt2", "adalog"]
KINDS: tuple[str, ...] = get_args(Kind)
RangeRule = Literal[
    "minmax",
    "moving_average",
    "percentile",
    "mse",
    "histogram",
    "dynamic",
    "pixels",
    "output",
    "fisher",
]
RANGE_RULES: tuple[str, ...] = get_args(RangeRule)
SAMPLED_RULES = frozenset({"output", "fisher"})  # weigh errors by what the consumer makes of them
Granularity = Literal["tensor", "channel", "token", "group", "head"]
ALLOWED_BITS = (2, 3, 4, 5, 6, 7, 8, 16)
_TEXT = re.compile(
    r"(?:(?P<sign>[as])|(?P<kind>region|log2|log_sqrt2|adalog)_)(?P<bits>[1-9][0-9]?)"
    r"/(?P<gran>tensor|channel|token|head|group(?P<size>[1-9][0-9]{0,8}))"
    r"/(?P<rule>[a-z_]+)(?:@(?P<param>[0-9]{1,3}(?:\.[0-9]{1,20})?))?"
)


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A quantizer as wanted, before any data was seen.

    ``bits``: 2 to 8, or 16. ``symmetric``: signed codes and no zero point, else unsigned codes
    and an integer zero point. ``granularity``: one scale per ``tensor``, per ``channel`` (axis 0
    of a weight, last axis of an activation), per ``token`` (all but the last axis; dynamic only),
    per ``head`` (axis 1 of ``[B, H, N, d]``) or per ``group`` of ``group_size`` input channels of
    a weight. ``rule`` names what finds the range: an observer, or (``output``, ``fisher``) a
    search on a sample; ``parameter`` is its option (the percentile in percent, the zero point of
    ``pixels``).

    ``kind``: ``uniform``, or one for activations only, always found by a search: ``region`` (two
    steps a power of two apart, see :mod:`fxquant.quant.region`), ``log2``, ``log_sqrt2`` and
    ``adalog`` (see :mod:`fxquant.quant.logarithm`). What codes these have, the data decides.

    Text form: ``s8/channel/minmax``, ``a8/tensor/percentile@99.99``, ``s4/group64/mse``,
    ``a8/token/dynamic``, ``region_6/tensor/mse``, ``adalog_4/head/output``; ``s`` is symmetric
    signed, ``a`` affine unsigned.
    """

    bits: int = 8
    symmetric: bool = False
    granularity: Granularity = "tensor"
    group_size: int = 0
    rule: RangeRule = "minmax"
    parameter: float | None = None
    kind: Kind = "uniform"

    def __post_init__(self) -> None:
        problem = self._problem() or self._kind_problem()
        if problem:
            raise SchemeError(
                f"impossible quantization scheme: {problem}",
                where=f"scheme {self.text()}",
                fix=f"bits must be one of {ALLOWED_BITS}, the range rule one of {RANGE_RULES}",
            )

    def _problem(self) -> str:
        if type(self.bits) is not int or self.bits not in ALLOWED_BITS:
            return f"{self.bits} bits"
        if self.rule not in RANGE_RULES:
            return f"unknown range rule {self.rule!r}"
        if self.granularity not in get_args(Granularity):
            return f"unknown granularity {self.granularity!r}"
        if (self.granularity == "group") != (self.group_size > 0) or self.group_size < 0:
            return "group granularity and a positive group size belong together"
        if (self.rule == "dynamic") != (self.granularity == "token"):
            return "dynamic ranges are per token, and only they are"
        if self.rule == "pixels":
            return self._pixel_problem()
        if self.rule == "percentile":
            if self.parameter is None or not 50.0 < self.parameter <= 100.0:
                return "percentile needs a parameter in (50, 100]"
        elif self.parameter is not None:
            return f"range rule {self.rule!r} takes no parameter"
        return ""

    def _pixel_problem(self) -> str:
        codes = (self.bits, self.symmetric, self.granularity, self.kind)
        whole = self.parameter is not None and self.parameter in range(256)
        if codes == (8, False, "tensor", "uniform") and whole:
            return ""
        return "pixels are codes as they come, a8/tensor/pixels@Z with zero point Z in 0..255"

    def _kind_problem(self) -> str:
        if self.rule in SAMPLED_RULES and self.granularity not in {"tensor", "head"}:
            return f"rule {self.rule!r} finds one scale per tensor or per head"
        if self.kind == "uniform":
            return ""
        if self.kind not in KINDS:
            return f"unknown kind {self.kind!r}"
        if self.symmetric:
            return f"a {self.kind} quantizer is neither symmetric nor affine"
        if self.bits == 16:
            return f"a {self.kind} quantizer has at most 8 bits"
        if self.granularity not in {"tensor", "head"}:
            return f"a {self.kind} quantizer has one scale per tensor or per head"
        if self.rule not in SAMPLED_RULES | {"minmax", "mse"}:
            return f"a {self.kind} quantizer is found by minmax, mse, output or fisher"
        return ""

    @property
    def searched(self) -> bool:
        """Whether the parameters come from :mod:`fxquant.quant.search`, not from an observer."""
        return self.kind != "uniform" or self.rule in SAMPLED_RULES

    @property
    def quant_min(self) -> int:
        """Smallest code: symmetric codes are ``-2^(b-1) .. 2^(b-1)-1``; uniform kinds only."""
        return -(1 << (self.bits - 1)) if self.symmetric else 0

    @property
    def quant_max(self) -> int:
        """Largest code; uniform kinds only, as the codes of others depend on the data."""
        return (1 << (self.bits - 1)) - 1 if self.symmetric else (1 << self.bits) - 1

    @property
    def dtype(self) -> torch.dtype:
        """Storage type of the codes; uniform kinds only."""
        if self.bits == 16:
            return torch.int16 if self.symmetric else torch.uint16
        return torch.int8 if self.symmetric else torch.uint8

    def text(self) -> str:
        """The text form that :meth:`parse` reads back."""
        granularity = self.granularity + (str(self.group_size) if self.group_size else "")
        parameter = "" if self.parameter is None else f"@{self.parameter!r}".removesuffix(".0")
        sign = "s" if self.symmetric else "a"
        kind = sign if self.kind == "uniform" else f"{self.kind}_"
        return f"{kind}{self.bits}/{granularity}/{self.rule}{parameter}"

    @staticmethod
    def parse(text: str) -> Scheme:
        """Read the text form; raises :class:`SchemeError` naming what is wrong."""
        match = _TEXT.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None:
            raise SchemeError(
                f"not a quantization scheme: {text!r}",
                why="the form is KIND BITS/[tensor|channel|token|head|groupN]/RULE, KIND one of "
                "a, s, region_, log2_, log_sqrt2_, adalog_",
                fix="write for example s8/channel/minmax or a8/tensor/percentile@99.99",
            )
        size = match["size"]
        return Scheme(
            bits=int(match["bits"]),
            symmetric=match["sign"] == "s",
            granularity="group" if size else match["gran"],  # type: ignore[arg-type]
            group_size=int(size) if size else 0,
            rule=match["rule"],  # type: ignore[arg-type]
            parameter=float(match["param"]) if match["param"] else None,
            kind=match["kind"] or "uniform",  # type: ignore[arg-type]
        )
