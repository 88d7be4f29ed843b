"""GOP/s of the native int8 kernels: ``python benchmarks/kernels.py``.

Each shape runs on one core and on two, next to oneDNN's linear at the same shape. Many short
repetitions; the best and the median are shown, since others may compute at the same time.
Results: ``benchmarks/results/kernels.jsonl``.
"""

import argparse
import ctypes
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import record
from fxquant.backends.x86.arguments import (
    Activation,
    AttentionArguments,
    Epilogue,
    LinearArguments,
    MixArguments,
    Store,
)
from fxquant.backends.x86.compiled import levels, library

PEAK = 980.0  # GOP/s of oneDNN on one core of the machine of record
LINEARS = (
    *((197, 192, 576), (197, 192, 768), (197, 768, 192), (197, 384, 1536), (197, 1536, 384)),
    *((197, 768, 3072), (197, 3072, 768), (3136, 96, 288), (196, 256, 1536)),
)
MIXES = ((196, 384, 768), (384, 196, 768))
ATTENTIONS = ((1, 6, 197, 64), (64, 3, 49, 32), (1, 3, 577, 64))  # groups, heads, tokens, width
STORES = ((Activation.NONE, Store.F32_ROWS), (Activation.NONE, Store.U8_ROWS))
GELU = (Activation.GELU, Store.U8_ROWS)
COLUMNS = ("kernel", "tokens, in, out", "result", "parts", "best", "median", "of peak", "oneDNN")
POOL = ThreadPoolExecutor(2)


def rates(call: Callable[[], object], operations: int, seconds: float) -> tuple[float, float]:
    """Best and median GOP/s of many short repetitions."""
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(4):
            call()
        times.append((time.perf_counter() - start) / 4)
    return operations / min(times) / 1e9, operations / statistics.median(times) / 1e9


def shared(kernel: Any, arguments: ctypes.Structure, parts: int) -> Callable[[], object]:
    """The kernel in ``parts`` shares, the second on another thread."""
    pointer = ctypes.byref(arguments)
    if parts == 1:
        return lambda: kernel(pointer, 0, 1)

    def both() -> None:
        other = POOL.submit(kernel, pointer, 1, 2)
        kernel(pointer, 0, 2)
        other.result()

    return both


def epilogue(rows: int, columns: int, keep: list[torch.Tensor], how: tuple[int, int]) -> Epilogue:
    """Scales, biases and room for the result."""
    size = max(rows, columns) + 64
    scale, bias = torch.full((size,), 1e-4), torch.zeros(size)
    output = torch.zeros((rows + 4) * columns)
    keep += [scale, bias, output]
    activation, store = how
    pointers = {"scale": scale.data_ptr(), "bias": bias.data_ptr(), "output": output.data_ptr()}
    stride = 4 * columns if store == Store.U8_QUADS else columns
    made = Epilogue(**pointers, output_stride=stride, activation=activation, store=store)
    made.inverse_step, made.zero_point = 10.0, 3.0
    return made


def linear(lib: Any, shape: tuple[int, int, int], keep: list[torch.Tensor]) -> LinearArguments:
    """Random codes and packed weights."""
    rows, inner, columns = shape
    x = torch.randint(0, 256, (rows * inner + 64,), dtype=torch.uint8)
    weight = torch.randint(-127, 128, (columns, inner), dtype=torch.int8)
    sizes = ctypes.c_int64(columns), ctypes.c_int64(inner)
    packed = torch.zeros(lib.fxq_packed_bytes(*sizes) + 64, dtype=torch.int8)
    lib.fxq_pack_weight(
        ctypes.c_void_p(weight.data_ptr()), *sizes, ctypes.c_void_p(packed.data_ptr())
    )
    start = torch.zeros(columns + 64, dtype=torch.int32)
    keep += [x, packed, start]
    return LinearArguments(
        x.data_ptr(), inner, rows, inner, columns, packed.data_ptr(), start.data_ptr()
    )


def mix(shape: tuple[int, int, int], keep: list[torch.Tensor]) -> MixArguments:
    """Random codes in QUADS layout and weights."""
    tokens, outputs, columns = shape
    padded = -(-tokens // 4) * 4
    x = torch.randint(0, 256, (padded * columns + 64,), dtype=torch.uint8)
    weight = torch.randint(-127, 128, (outputs * padded + 64,), dtype=torch.int8)
    start = torch.zeros(outputs + 64, dtype=torch.int32)
    keep += [x, weight, start]
    sizes = (tokens, outputs, columns, 4 * columns)
    return MixArguments(x.data_ptr(), *sizes, weight.data_ptr(), start.data_ptr())


def attention(
    lib: Any, shape: tuple[int, int, int, int], keep: list[torch.Tensor]
) -> AttentionArguments:
    """Random codes of queries, keys and values in one buffer; room for the result."""
    groups, heads, tokens, width = shape
    rows, columns = groups * tokens, heads * width
    codes = torch.randint(0, 256, (rows * 3 * columns + 64,), dtype=torch.uint8)
    ones, zeros = torch.full((columns,), 0.1), torch.zeros(columns)
    scale, points = torch.full((heads,), 1e-4), torch.full((heads,), 128, dtype=torch.int32)
    output = torch.zeros(rows * columns + 64, dtype=torch.uint8)
    made = AttentionArguments(groups=groups, heads=heads, tokens=tokens, width=width)
    for place, name in enumerate(("query", "key", "value")):
        setattr(made, name, codes.data_ptr() + place * columns)
    made.input_stride, made.output_stride, made.store = 3 * columns, columns, Store.U8_ROWS
    scratch = torch.zeros(lib.fxq_attention_scratch(ctypes.byref(made)) + 64, dtype=torch.uint8)
    keep += [codes, ones, zeros, scale, points, output, scratch]
    made.score_scale, made.query_zero_point = scale.data_ptr(), points.data_ptr()
    made.output_scale, made.output_bias = ones.data_ptr(), zeros.data_ptr()
    made.output, made.scratch = output.data_ptr(), scratch.data_ptr()
    return made


def onednn(shape: tuple[int, int, int], how: tuple[int, int]) -> Callable[[], object]:
    """torch's packed int8 linear with the same result."""
    rows, inner, columns = shape
    x = torch.randint(0, 256, (rows, inner), dtype=torch.uint8)
    weight = torch.randint(-127, 128, (columns, inner), dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(weight, [rows, inner])
    scales, zeros = torch.full((columns,), 1e-4), torch.zeros(columns, dtype=torch.int64)
    activation, store = how
    kind = (0.1, 3, torch.uint8) if store == Store.U8_ROWS else (1.0, 0, torch.float32)
    post = "gelu" if activation == Activation.GELU else "none"
    last = (post, [], "none")
    run = torch.ops.onednn.qlinear_pointwise.default
    return lambda: run(x, 1.0, 0, packed, scales, zeros, torch.zeros(columns), *kind, *last)


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description="GOP/s of the native int8 kernels")
    parser.add_argument("--level", default=levels()[0], choices=levels())
    parser.add_argument("--seconds", type=float, default=0.3, help="of timing per figure")
    options = parser.parse_args()
    lib = library(options.level)
    console = Console(width=110)
    table = Table(*COLUMNS, box=box.SIMPLE_HEAD)
    cases = [("linear", shape, how) for shape in LINEARS for how in (*STORES, GELU)]
    cases += [("mix", MIXES[0], (Activation.GELU, Store.U8_QUADS))]
    cases += [("mix", MIXES[0], (Activation.NONE, Store.U8_QUADS))]
    cases += [("mix", MIXES[1], (Activation.NONE, Store.F32_ROWS))]
    for name, shape, how in cases:
        keep: list[torch.Tensor] = []
        is_linear = name == "linear"
        arguments = linear(lib, shape, keep) if is_linear else mix(shape, keep)
        result_rows = shape[0] if is_linear else shape[1]
        arguments.epilogue = epilogue(result_rows, shape[2], keep, how)
        operations = 2 * shape[0] * shape[1] * shape[2]
        result = f"{how[1].name.lower()}{' gelu' if how[0] else ''}"
        for parts in (1, 2):
            kernel = lib.fxq_linear if is_linear else lib.fxq_mix
            run = shared(kernel, arguments, parts)
            best, median = rates(run, operations, options.seconds)
            torch.set_num_threads(parts)
            theirs = 0.0
            if is_linear:
                theirs = rates(onednn(shape, how), operations, options.seconds)[0]
            share = best / PEAK / parts
            row = {"kernel": name, "shape": shape, "result": result, "parts": parts}
            row |= {"best_gops": round(best), "median_gops": round(median)}
            record.append("kernels", row | {"onednn_best_gops": round(theirs)})
            figures = (f"{best:.0f}", f"{median:.0f}", f"{share:.2f}", f"{theirs:.0f}")
            table.add_row(name, str(shape), result, str(parts), *figures)
    for shape_of_heads in ATTENTIONS:
        groups, heads, tokens, width = shape_of_heads
        kept: list[torch.Tensor] = []
        block = attention(lib, shape_of_heads, kept)
        operations = 4 * groups * heads * tokens * tokens * width
        run = shared(lib.fxq_attention, block, 1)
        best, median = rates(run, operations, options.seconds)
        row = {"kernel": "attention", "shape": shape_of_heads, "result": "u8", "parts": 1}
        record.append("kernels", row | {"best_gops": round(best), "median_gops": round(median)})
        figures = (f"{best:.0f}", f"{median:.0f}", f"{best / PEAK:.2f}", "-")
        table.add_row("attention", str(shape_of_heads), "u8", "1", *figures)
    console.print(table)


if __name__ == "__main__":
    main()
