"""Programs in guarded memory that held nothing, and on every instruction set of this CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import fxquant
from fxquant.backends.x86 import native
from fxquant.backends.x86.compiled import levels
from fxquant.backends.x86.conformance import region_differences
from fxquant.backends.x86.program import run
from fxquant.quant.metrics import sqnr_db
from tests.backends.x86.program_models import MODELS, batch_for, lowered, quantized, results

GUARD, FILL = 4096, 0xFF  # as float32 the fill is not a number, as codes the largest
EIGHT_BITS = [level for level in levels() if level != "avx2"]  # it adds pairs in 16 bits


class Guarded:
    """Allocates workspaces full of ``FILL``, with a guard on both sides."""

    def __init__(self) -> None:
        self.whole: list[Tensor] = []

    def __call__(self, size: int, dtype: torch.dtype) -> Tensor:
        assert dtype is torch.uint8
        self.whole.append(torch.full((size + 2 * GUARD,), FILL, dtype=dtype))
        return self.whole[-1][GUARD : GUARD + size]

    def untouched(self) -> bool:
        return all(
            bool((w[:GUARD] == FILL).all() and (w[-GUARD:] == FILL).all()) for w in self.whole
        )


class Torch:
    """The module, but for how it allocates."""

    def __init__(self, empty: Guarded) -> None:
        self.empty = empty

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Guarded]:
    made, before = Guarded(), torch.get_num_threads()
    monkeypatch.setattr(run, "torch", Torch(made))
    yield made
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", MODELS)
def test_a_run_reads_what_it_wrote_and_writes_nowhere_else(name: str, guarded: Guarded) -> None:
    model, x = lowered(name), batch_for(name, 7, seed=3)
    guarded.whole.clear()  # lowering runs programs, too
    expected = results(model.with_micro_batch(1), x)
    for threads, micro in ((1, 1), (1, 4), (3, 1), (3, 2)):
        torch.set_num_threads(threads)
        found = results(model.with_micro_batch(micro), x)
        assert all(map(torch.equal, found, expected))
    assert len(guarded.whole) == 5
    assert guarded.untouched()
    assert not any(bool(part.isnan().any()) for part in expected)


@pytest.mark.parametrize("level", EIGHT_BITS)
@pytest.mark.parametrize("name", ["vit", "mixer", "windows"])
def test_every_instruction_set_follows_the_reference(
    name: str, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "levels", lambda: (level,))
    model, reference = quantized(name)
    ours, x = fxquant.lower(reference), batch_for(name, 16, seed=2)
    assert ours.native.level == level
    assert all(kernel.startswith(level) for kernel in ours.int8_kernels.values())
    found = region_differences(ours, (x[:1],))
    assert max(entry.worst_steps for entry in found) <= 1.0
    exact, simulated, mine = (results(m, x)[0] for m in (model, reference, ours))
    expected = float(sqnr_db(exact, simulated))
    assert float(sqnr_db(exact, mine)) == pytest.approx(expected, abs=1.0)
