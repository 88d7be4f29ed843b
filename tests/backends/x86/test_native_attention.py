"""The attention kernels against float64 formulas, on every instruction-set level of this CPU."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fxquant.backends.x86.arguments import AttentionArguments, FloatAttentionArguments, Store
from fxquant.backends.x86.compiled import levels, library

Array = NDArray[Any]

GUARD = 64  # bytes: what kernels may read after a buffer, and what they must leave alone
FILL = 0xA5
EXPONENTIAL = 1e-4  # relative error of the kernels' 2^x
LOG2E = 1.4427


@dataclass(frozen=True)
class Case:
    """A shape, and how its operands lie in memory."""

    groups: int = 1
    heads: int = 1
    tokens: int = 1
    width: int = 4
    bias: str = "none"  # or "shared" by groups, or "masked": of each group, with masks
    store: Store = Store.F32_ROWS
    parts: int = 1
    spare: int = 0  # columns of the inputs and of the output that belong to others

    @property
    def stride(self) -> int:
        return self.heads * self.width + self.spare


cases = st.builds(
    Case,
    groups=st.integers(1, 3),
    heads=st.integers(1, 3),
    tokens=st.integers(1, 70),
    width=st.integers(1, 21).map(lambda words: 4 * words),
    bias=st.sampled_from(["none", "shared", "masked"]),
    store=st.sampled_from([Store.F32_ROWS, Store.U8_ROWS]),
    parts=st.integers(1, 3),
    spare=st.sampled_from([0, 4, 12]),
)
MODELS = [
    Case(heads=3, tokens=197, width=64, parts=2, store=Store.U8_ROWS),
    Case(heads=2, tokens=197, width=64, parts=3, bias="shared"),
    Case(groups=4, heads=3, tokens=49, width=32, parts=2, bias="masked", store=Store.U8_ROWS),
    Case(heads=1, tokens=577, width=64),
    Case(groups=2, heads=4, tokens=64, width=48, bias="masked"),
    Case(heads=2, tokens=50, width=80),
    Case(groups=2, heads=2, tokens=1, width=4, store=Store.U8_ROWS),
]


class Guarded:
    """An array with bytes of a known value around it, at an address that is no multiple of 64."""

    def __init__(self, shape: tuple[int, ...], kind: Any, offset: int = 0) -> None:
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        self.memory = np.full(size + 2 * GUARD + offset, FILL, np.uint8)
        self.first, self.end = GUARD + offset, GUARD + offset + size
        self.array = self.memory[self.first : self.end].view(kind).reshape(shape)

    @classmethod
    def holding(cls, values: Array, offset: int = 0) -> Guarded:
        made = cls(values.shape, values.dtype, offset)
        made.array[...] = values
        return made

    @property
    def address(self) -> int:
        return int(self.array.ctypes.data)

    def untouched_around(self) -> bool:
        around = np.r_[self.memory[: self.first], self.memory[self.end :]]
        return bool((around == FILL).all())


@functools.cache
def kernels(level: str) -> ctypes.CDLL:
    made = library(level)
    made.fxq_attention_scratch.restype = ctypes.c_int64
    made.fxq_float_attention_scratch.restype = ctypes.c_int64
    return made


def call(name: str, level: str, case: Case, operands: dict[str, Array], scale: Any) -> list[Array]:
    """Outputs [groups, tokens, heads, width], one per part: NaN or FILL where not written."""
    held = {key: Guarded.holding(value, offset=4) for key, value in operands.items()}
    size = case.tokens
    strides = {"none": (0, 0, 0), "shared": (0, size * size, size)}
    found = []
    for part in range(case.parts):
        kind: Any = np.float32 if case.store is Store.F32_ROWS else np.uint8
        output = Guarded((case.groups * size, case.stride), kind, offset=4)
        untouched = np.nan if kind is np.float32 else FILL
        output.array[...] = untouched
        structure = AttentionArguments if name == "fxq_attention" else FloatAttentionArguments
        arguments = structure(
            **{key: value.address for key, value in held.items()},
            input_stride=case.stride,
            groups=case.groups,
            heads=case.heads,
            tokens=size,
            width=case.width,
            output=output.address,
            output_stride=case.stride,
            store=case.store,
        )
        if structure is FloatAttentionArguments:
            arguments.score_scale = scale
        (arguments.bias_group_stride, arguments.bias_head_stride, arguments.bias_row_stride) = (
            strides.get(case.bias, (case.heads * size * size, size * size, size))
        )
        library_ = kernels(level)
        needed = getattr(library_, f"{name}_scratch")(ctypes.byref(arguments))
        scratch = Guarded((needed,), np.uint8, offset=12)
        arguments.scratch = scratch.address
        getattr(library_, name)(ctypes.byref(arguments), part, case.parts)
        assert scratch.untouched_around()
        assert output.untouched_around()
        own = case.heads * case.width
        np.testing.assert_array_equal(output.array[:, own:], untouched)
        shape = (case.groups, size, case.heads, case.width)
        found.append(output.array[:, :own].reshape(shape).copy())
    for key, value in operands.items():
        np.testing.assert_array_equal(held[key].array, value)
    return found


def together(case: Case, parts: list[Array]) -> Array:
    """The parts' results as one; every element is written by exactly one of them."""
    if case.store is Store.F32_ROWS:
        written = np.sum([~np.isnan(part) for part in parts], axis=0)
        assert (written == 1).all()
        return np.nansum(np.stack(parts), axis=0)
    written = np.stack([part != FILL for part in parts])
    assert (written.sum(0) <= 1).all()
    return np.where(written, np.stack(parts), 0).sum(0) + FILL * ~written.any(0)


def bias_of(case: Case, rng: np.random.Generator) -> dict[str, Array]:
    if case.bias == "none":
        return {}
    groups = 1 if case.bias == "shared" else case.groups
    bias = rng.normal(size=(groups, case.heads, case.tokens, case.tokens)).astype(np.float32)
    if case.bias == "masked":
        bias[rng.random(bias.shape) < 0.3] -= np.float32(100 * LOG2E)
    return {"score_bias": bias}


def outputs_of(case: Case, rng: np.random.Generator, unit: float) -> dict[str, Array]:
    channels = case.heads * case.width
    return {
        "output_scale": rng.uniform(0.2 * unit, 2 * unit, channels).astype(np.float32),
        "output_bias": rng.integers(90, 160, channels).astype(np.float32),
    }


def split(case: Case, rows: Array) -> Array:
    """[groups * tokens, stride] -> [groups, heads, tokens, width], in float64."""
    own = rows[:, : case.heads * case.width].astype(np.float64)
    return own.reshape(case.groups, case.tokens, case.heads, case.width).transpose(0, 2, 1, 3)


def check(case: Case, parts: list[Array], exact: Array, allowed: Array) -> None:
    """Numbers within what is allowed; codes within it of the numbers they round and clamp."""
    found = together(case, parts).transpose(0, 2, 1, 3)
    if case.store is Store.U8_ROWS:
        exact, allowed = np.clip(exact, 0, 255), allowed + 0.5
    assert (np.abs(found - exact) <= allowed).all()


def stored(case: Case, operands: dict[str, Array], result: Array) -> tuple[Array, Array]:
    scale, offset = (
        operands[name].astype(np.float64).reshape(case.heads, 1, case.width)
        for name in ("output_scale", "output_bias")
    )
    return result * scale + offset, scale


def check_int8(level: str, case: Case, seed: int, sharpness: float = 1.0) -> None:
    rng = np.random.default_rng(seed)
    shape = (case.groups * case.tokens, case.stride)
    seven_bits = level == "avx2"  # its dot product saturates beyond; see simd.h
    top = 127 if seven_bits else 255
    unit = sharpness / (5000 * case.width**0.5)
    operands = {
        "query": rng.integers(0, 128 if seven_bits else 256, shape).astype(np.uint8),
        "key": rng.integers(0, 256, shape).astype(np.uint8),
        "value": rng.integers(0, 256, shape).astype(np.uint8),
        "query_zero_point": rng.integers(0, 128, case.heads).astype(np.int32),
        "score_scale": (rng.uniform(1, 5, case.heads) * unit).astype(np.float32),
        **bias_of(case, rng),
        **outputs_of(case, rng, unit=1.0),
    }
    zero_point = operands["query_zero_point"].reshape(case.heads, 1, 1)
    query = split(case, operands["query"]) - zero_point
    key, value = (split(case, operands[name]) - 128 for name in ("key", "value"))
    scale = operands["score_scale"].astype(np.float64).reshape(case.heads, 1, 1)
    scores = query @ key.swapaxes(-1, -2) * scale + operands.get("score_bias", 0)
    numbers = top * np.exp2(scores - scores.max(-1, keepdims=True))
    codes = np.round(numbers)
    total = codes.sum(-1, keepdims=True)
    mean = codes @ value / total
    # The kernel may round the other way where the number lies within its exponential's error, and
    # its float scores' error, of a half. A code that is off by one moves the mean by
    # (value - mean) / sum of codes.
    error = numbers * (EXPONENTIAL + 1e-6 * np.abs(scores).max())
    doubtful = (np.abs(numbers % 1 - 0.5) <= error).astype(np.float64)
    away = doubtful @ np.abs(value) + doubtful.sum(-1, keepdims=True) * np.abs(mean)
    moved = away / (total - doubtful.sum(-1, keepdims=True))
    exact, scale = stored(case, operands, mean)
    parts = call("fxq_attention", level, case, operands, None)
    check(case, parts, exact, moved * scale + 1e-6 * (np.abs(mean) * scale + 256))


def check_float(level: str, case: Case, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (case.groups * case.tokens, case.stride)
    names = ("query", "key", "value")
    operands = {
        **{name: rng.normal(size=shape).astype(np.float32) for name in names},
        **bias_of(case, rng),
        **outputs_of(case, rng, unit=30.0),
    }
    factor = float(np.float32(LOG2E / case.width**0.5))
    query, key, value = (split(case, operands[name]) for name in names)
    scores = query @ key.swapaxes(-1, -2) * factor + operands.get("score_bias", 0)
    numbers = np.exp2(scores - scores.max(-1, keepdims=True))
    weights = numbers / numbers.sum(-1, keepdims=True)
    # Rounding of q and k moves a score by at most 2 units of its absolute products; twice the
    # largest move of a row, above and below the line of the fraction, bounds its weights' error.
    unit = 2.0**-8 if level == "avx512vnni" else 2.0**-22
    products = np.abs(query) @ np.abs(key).swapaxes(-1, -2) * factor
    moved = (2 * unit * products + 2e-6 * np.abs(scores)).max(-1, keepdims=True)
    relative = np.exp2(2 * moved) - 1 + 2 * EXPONENTIAL + 2 * unit
    exact, scale = stored(case, operands, weights @ value)
    allowed = (weights @ np.abs(value)) * relative * scale + 1e-4
    check(case, call("fxq_float_attention", level, case, operands, factor), exact, allowed)


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("case", MODELS, ids=str)
def test_int8_attention_of_models(case: Case, level: str) -> None:
    check_int8(level, case, seed=0)


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("case", MODELS, ids=str)
def test_float_attention_of_models(case: Case, level: str) -> None:
    check_float(level, case, seed=0)


@pytest.mark.parametrize("level", levels())
@settings(max_examples=25, deadline=None)
@given(case=cases, seed=st.integers(0, 1000))
def test_int8_attention_of_any_shape(level: str, case: Case, seed: int) -> None:
    check_int8(level, case, seed)


@pytest.mark.parametrize("level", levels())
@settings(max_examples=25, deadline=None)
@given(case=cases, seed=st.integers(0, 1000))
def test_float_attention_of_any_shape(level: str, case: Case, seed: int) -> None:
    check_float(level, case, seed)


@pytest.mark.parametrize("level", levels())
def test_equal_scores_give_the_mean_of_the_real_keys(level: str) -> None:
    check_int8(level, Case(tokens=21, width=12), seed=0, sharpness=1e-8)


@pytest.mark.parametrize("level", levels())
def test_infinite_masks_leave_the_other_keys(level: str) -> None:
    case = Case(tokens=20, width=8, bias="shared", store=Store.U8_ROWS)
    rng = np.random.default_rng(0)
    shape = (case.tokens, case.stride)
    bias = np.full((1, 1, case.tokens, case.tokens), -np.inf, np.float32)
    bias[..., 7] = 0.0
    operands = {
        name: rng.integers(0, 128, shape).astype(np.uint8) for name in ("query", "key", "value")
    } | {
        "query_zero_point": np.zeros(1, np.int32),
        "score_scale": np.full(1, 1e-3, np.float32),
        "score_bias": bias,
        "output_scale": np.ones(case.width, np.float32),
        "output_bias": np.full(case.width, 128, np.float32),
    }
    (found,) = call("fxq_attention", level, case, operands, None)
    np.testing.assert_array_equal(found[0, :, 0], np.tile(operands["value"][7], (case.tokens, 1)))
