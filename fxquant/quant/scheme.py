"""What is wanted of a quantizer: plain data with a text form such as ``s8/channel/minmax``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from fxquant.errors import SchemeError

RangeRule = Literal["minmax", "moving_average", "percentile", "mse", "histogram", "dynamic"]
RANGE_RULES: tuple[str, ...] = get_args(RangeRule)
Granularity = Literal["tensor", "channel", "token", "group"]
ALLOWED_BITS = (2, 3, 4, 5, 6, 7, 8, 16)
_TEXT = re.compile(
    r"(?P<kind>[as])(?P<bits>[1-9][0-9]?)"
    r"/(?P<gran>tensor|channel|token|group(?P<size>[1-9][0-9]{0,8}))"
    r"/(?P<rule>[a-z_]+)(?:@(?P<param>[0-9]{1,3}(?:\.[0-9]{1,20})?))?"
)


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A uniform affine quantizer as wanted, before any data was seen.

    ``bits``: 2 to 8, or 16. ``symmetric``: signed codes and no zero point, else unsigned codes
    and an integer zero point. ``granularity``: one scale per ``tensor``, per ``channel`` (axis 0
    of a weight, last axis of an activation), per ``token`` (all but the last axis; dynamic only)
    or per ``group`` of ``group_size`` input channels of a weight. ``rule`` names the observer
    that finds the range; ``parameter`` is its option (the percentile in percent).

    Text form: ``s8/channel/minmax``, ``a8/tensor/percentile@99.99``, ``s4/group64/mse``,
    ``a8/token/dynamic``; ``s`` is symmetric signed, ``a`` affine unsigned.
    """

    bits: int = 8
    symmetric: bool = False
    granularity: Granularity = "tensor"
    group_size: int = 0
    rule: RangeRule = "minmax"
    parameter: float | None = None

    def __post_init__(self) -> None:
        problem = self._problem()
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
        if self.rule == "percentile":
            if self.parameter is None or not 50.0 < self.parameter <= 100.0:
                return "percentile needs a parameter in (50, 100]"
        elif self.parameter is not None:
            return f"range rule {self.rule!r} takes no parameter"
        return ""

    @property
    def quant_min(self) -> int:
        """Smallest code: symmetric codes are ``-2^(b-1) .. 2^(b-1)-1``."""
        return -(1 << (self.bits - 1)) if self.symmetric else 0

    @property
    def quant_max(self) -> int:
        """Largest code."""
        return (1 << (self.bits - 1)) - 1 if self.symmetric else (1 << self.bits) - 1

    @property
    def dtype(self) -> torch.dtype:
        """Storage type of the codes."""
        if self.bits == 16:
            return torch.int16 if self.symmetric else torch.uint16
        return torch.int8 if self.symmetric else torch.uint8

    def text(self) -> str:
        """The text form that :meth:`parse` reads back."""
        granularity = self.granularity + (str(self.group_size) if self.group_size else "")
        parameter = "" if self.parameter is None else f"@{self.parameter!r}".removesuffix(".0")
        return f"{'s' if self.symmetric else 'a'}{self.bits}/{granularity}/{self.rule}{parameter}"

    @staticmethod
    def parse(text: str) -> Scheme:
        """Read the text form; raises :class:`SchemeError` naming what is wrong."""
        match = _TEXT.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None:
            raise SchemeError(
                f"not a quantization scheme: {text!r}",
                why="the form is [a|s]BITS/[tensor|channel|token|groupN]/RULE",
                fix="write for example s8/channel/minmax or a8/tensor/percentile@99.99",
            )
        size = match["size"]
        return Scheme(
            bits=int(match["bits"]),
            symmetric=match["kind"] == "s",
            granularity="group" if size else match["gran"],  # type: ignore[arg-type]
            group_size=int(size) if size else 0,
            rule=match["rule"],  # type: ignore[arg-type]
            parameter=float(match["param"]) if match["param"] else None,
        )
