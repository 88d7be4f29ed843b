"""Schemes: which exist, and their text form."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxquant.errors import SchemeError
from fxquant.quant.scheme import ALLOWED_BITS, KINDS, RANGE_RULES, Scheme

GRANULARITIES = (
    ("tensor", 0),
    ("channel", 0),
    ("token", 0),
    ("head", 0),
    ("group", 1),
    ("group", 128),
)
PARAMETERS = {"percentile": (99.99, 100.0, 50.5), "pixels": (0.0, 114.0)}


def every_scheme() -> list[Scheme]:
    made = []
    for kind, bits, symmetric, (granularity, size), rule in product(
        KINDS, ALLOWED_BITS, (False, True), GRANULARITIES, RANGE_RULES
    ):
        for parameter in PARAMETERS.get(rule, (None,)):
            with suppress(SchemeError):
                made.append(
                    Scheme(
                        kind=kind,  # type: ignore[arg-type]
                        bits=bits,
                        symmetric=symmetric,
                        granularity=granularity,  # type: ignore[arg-type]
                        group_size=size,
                        rule=rule,  # type: ignore[arg-type]
                        parameter=parameter,
                    )
                )
    return made


def test_every_scheme_reads_back_from_its_text() -> None:
    schemes = every_scheme()
    uniform = 8 * 2 * (5 * (4 + 3) + 2 * 2 + 1) + 2  # rules by granularity, dynamic; and pixels
    assert len(schemes) == uniform + 4 * 7 * 2 * 4
    assert [Scheme.parse(scheme.text()) for scheme in schemes] == schemes
    assert len({scheme.text() for scheme in schemes}) == len(schemes)


@given(st.floats(50.0, 100.0, exclude_min=True))
def test_every_percentile_reads_back_from_its_text(percentile: float) -> None:
    scheme = Scheme(rule="percentile", parameter=percentile)
    assert Scheme.parse(scheme.text()) == scheme


@pytest.mark.parametrize(
    ("text", "scheme"),
    [
        ("s8/channel/minmax", Scheme(symmetric=True, granularity="channel")),
        ("a8/tensor/percentile@99.99", Scheme(rule="percentile", parameter=99.99)),
        (
            "s4/group64/mse",
            Scheme(bits=4, symmetric=True, granularity="group", group_size=64, rule="mse"),
        ),
        ("a8/token/dynamic", Scheme(granularity="token", rule="dynamic")),
        (" a16/tensor/histogram\n", Scheme(bits=16, rule="histogram")),
        ("region_6/tensor/mse", Scheme(bits=6, kind="region", rule="mse")),
        ("log2_4/tensor/minmax", Scheme(bits=4, kind="log2")),
        (
            "log_sqrt2_4/head/mse",
            Scheme(bits=4, kind="log_sqrt2", granularity="head", rule="mse"),
        ),
        ("adalog_4/tensor/output", Scheme(bits=4, kind="adalog", rule="output")),
        ("a8/head/fisher", Scheme(granularity="head", rule="fisher")),
    ],
)
def test_the_documented_texts_mean_what_they_say(text: str, scheme: Scheme) -> None:
    assert Scheme.parse(text) == scheme
    assert scheme.text() == text.strip()


@pytest.mark.parametrize(
    ("bits", "symmetric", "ends", "dtype"),
    [
        (8, True, (-128, 127), torch.int8),
        (8, False, (0, 255), torch.uint8),
        (7, False, (0, 127), torch.uint8),
        (4, True, (-8, 7), torch.int8),
        (2, True, (-2, 1), torch.int8),
        (16, True, (-32768, 32767), torch.int16),
        (16, False, (0, 65535), torch.uint16),
    ],
)
def test_codes_have_the_range_and_type_of_their_bits(
    *, bits: int, symmetric: bool, ends: tuple[int, int], dtype: torch.dtype
) -> None:
    scheme = Scheme(bits=bits, symmetric=symmetric)
    assert (scheme.quant_min, scheme.quant_max) == ends
    assert scheme.dtype is dtype
    assert torch.iinfo(dtype).min <= ends[0] < ends[1] <= torch.iinfo(dtype).max


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"bits": 1}, "1 bits"),
        ({"bits": 9}, "9 bits"),
        ({"bits": 0}, "0 bits"),
        ({"bits": -8}, "-8 bits"),
        ({"bits": True}, "bits"),
        ({"bits": 8.0}, "bits"),
        ({"rule": "median"}, "unknown range rule 'median'"),
        ({"granularity": "row"}, "granularity"),
        ({"granularity": "group"}, "group size"),
        ({"group_size": 4}, "group size"),
        ({"group_size": -4}, "group size"),
        ({"granularity": "group", "group_size": -4}, "group size"),
        ({"rule": "dynamic"}, "per token"),
        ({"granularity": "token"}, "per token"),
        ({"rule": "percentile"}, "percentile needs a parameter"),
        ({"rule": "percentile", "parameter": 50.0}, "percentile needs a parameter"),
        ({"rule": "percentile", "parameter": 100.1}, "percentile needs a parameter"),
        ({"rule": "percentile", "parameter": float("nan")}, "percentile needs a parameter"),
        ({"parameter": 99.0}, "takes no parameter"),
        ({"kind": "log3"}, "unknown kind 'log3'"),
        ({"kind": "region", "symmetric": True}, "neither symmetric nor affine"),
        ({"kind": "log2", "bits": 16}, "at most 8 bits"),
        ({"kind": "adalog", "granularity": "channel"}, "per tensor or per head"),
        ({"kind": "region", "granularity": "token", "rule": "dynamic"}, "per tensor or per head"),
        ({"kind": "region", "rule": "moving_average"}, "minmax, mse, output or fisher"),
        ({"kind": "log2", "rule": "percentile", "parameter": 99.0}, "minmax, mse, output"),
        ({"granularity": "channel", "rule": "output"}, "per tensor or per head"),
        ({"granularity": "group", "group_size": 4, "rule": "fisher"}, "per tensor or per head"),
    ],
)
def test_an_impossible_scheme_is_refused_with_the_reason(
    fields: dict[str, Any], reason: str
) -> None:
    with pytest.raises(SchemeError, match=reason):
        Scheme(**fields)
    with pytest.raises(SchemeError, match=reason):
        replace(Scheme(), **fields)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "int8",
        "8/tensor/minmax",
        "u8/tensor/minmax",
        "s8/tensor",
        "region6/tensor/mse",
        "region_/tensor/mse",
        "sregion_6/tensor/mse",
        "uniform_8/tensor/minmax",
        "log_2_4/tensor/mse",
        "log2/tensor/mse",
        "region_16/tensor/mse",
        "region_6/head4/mse",
        "s8/tensor/minmax/x",
        "s8/group/minmax",
        "s8/group0/minmax",
        "s8/tensor64/minmax",
        "s8 / tensor / minmax",
        "S8/tensor/minmax",
        "s8/tensor/MinMax",
        "s8/tensor/percentile@",
        "s8/tensor/percentile@1.2.3",
        "s8/tensor/percentile@.",
        "s8/tensor/percentile@nan",
        "s8/tensor/percentile@99,9",
        "s8/tensor/percentile@1e2",
        "s8/tensor/minmax@3",
        "s99/tensor/minmax",
        "s٨/tensor/minmax",
        "s" + "8" * 5000 + "/tensor/minmax",
        "s8/group" + "8" * 5000 + "/minmax",
        None,
        8,
        b"s8/tensor/minmax",
        ["s8/tensor/minmax"],
    ],
)
def test_a_text_that_is_no_scheme_is_refused(text: Any) -> None:
    with pytest.raises(SchemeError) as caught:
        Scheme.parse(text)
    assert "fix:" in str(caught.value)


@given(
    st.text(max_size=30)
    | st.from_regex(r"[as][0-9]+/[a-z0-9]+/[a-z_]+(@[0-9.]+)?")
    | st.from_regex(
        r"(region|log2|log_sqrt2|adalog)_[0-9]/(tensor|head|group[0-9])/(mse|output|[a-z_]+)"
    )
)
def test_no_text_raises_anything_but_a_scheme_error(text: str) -> None:
    try:
        scheme = Scheme.parse(text)
    except SchemeError:
        return
    assert Scheme.parse(scheme.text()) == scheme


@pytest.mark.parametrize("text", ["s08/tensor/minmax", "s8/group04/minmax"])
def test_leading_zeros_are_refused_so_that_a_scheme_has_one_text(text: str) -> None:
    with pytest.raises(SchemeError):
        Scheme.parse(text)


def test_non_uniform_kinds_and_rules_of_the_consumer_are_searched() -> None:
    searched = {scheme.text() for scheme in every_scheme() if scheme.searched}
    assert {"region_6/tensor/minmax", "adalog_4/head/mse", "a8/tensor/output"} <= searched
    assert not {"a8/tensor/mse", "s8/head/minmax", "a8/token/dynamic"} & searched
