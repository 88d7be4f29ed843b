"""What the commands and benchmarks share: timing, distance to float, files written together."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fxquant import timing
from fxquant.errors import FxquantError, InputError
from fxquant.fidelity import checked, compare, logits_of
from fxquant.staging import staged
from fxquant.timing import FEWEST, Timed, interleaved


class Clock:
    """Time that only passes while something runs, and a kernel that makes threads wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.waited = 0.0
        self.calls: list[str] = []
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(timing, "_waited_s", lambda: self.waited)

    def work(self, name: str, seconds: float, *, waiting: float = 0.0) -> None:
        self.now += seconds + waiting
        self.waited += waiting
        self.calls.append(name)


def test_interleaved_takes_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    slow, fast = (lambda: clock.work("slow", 0.5)), (lambda: clock.work("fast", 0.125))
    times = interleaved({"slow": slow, "fast": fast}, rounds=9, seconds=1e9)
    assert times["slow"] == Timed(0.5, 0.5, 9, 9)
    assert times["fast"].ms == 125.0
    assert not times["fast"].disturbed


def test_interleaved_reverses_the_order_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    calls = {name: (lambda name=name: clock.work(name, 1.0)) for name in "ab"}
    interleaved(calls, rounds=6, seconds=1e9)
    assert "".join(clock.calls[6:14]) == "aabb" + "bbaa"  # two calls a sample, after three to warm


def test_interleaved_drops_samples_that_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    waits = iter([0.0] * 3 + [0.0, 1.0] * 3 + [0.0] * 100)
    times = interleaved(
        {"a": lambda: clock.work("a", 1.0, waiting=next(waits))}, rounds=8, seconds=1e9
    )
    assert times["a"].samples == 8
    assert times["a"].clean == 5
    assert times["a"].median_s == times["a"].best_s == 1.0


def test_interleaved_flags_a_busy_machine_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    times = interleaved(
        {"a": lambda: clock.work("a", 1.0, waiting=0.5)}, rounds=FEWEST + 2, seconds=100.0
    )
    assert times["a"].disturbed
    assert times["a"].clean == 0
    assert times["a"].samples > FEWEST + 2  # it went on looking for clean samples


def test_interleaved_repeats_short_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    times = interleaved({"a": lambda: clock.work("a", 0.001)}, rounds=FEWEST, seconds=1e9)
    assert len(clock.calls) == 3 + FEWEST * (1 + 5)
    assert times["a"].median_s == pytest.approx(0.001)


def test_waiting_is_never_negative() -> None:
    assert timing._waited_s() >= 0.0


def test_compare_counts_classes_and_noise() -> None:
    reference = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    other = reference.clone()
    other[0] = torch.tensor([0.0, 1.0])
    found = compare(reference, other, torch.tensor([0, 1, 1, 1]))
    assert (found.images, found.agreement) == (4, 75.0)
    assert (found.float_top1, found.int8_top1, found.drop) == (75.0, 50.0, 25.0)
    assert found.sqnr_db == pytest.approx(10 * math.log10(4 / 2))
    assert compare(reference, other).drop is None


def test_logits_come_in_batches_of_one_size() -> None:
    sizes = []

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return 2 * x

    x = torch.arange(14.0).reshape(7, 2)
    assert torch.equal(logits_of(Model(), x, batch=3), 2 * x)
    assert sizes == [3, 3, 3]


@pytest.mark.parametrize("value", [torch.zeros(2, 3, 4), (torch.zeros(2, 3),)])
def test_other_outputs_are_no_logits(value: object) -> None:
    with pytest.raises(InputError, match="no logits"):
        checked(value)


def test_staged_files_arrive_together(tmp_path: Path) -> None:
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    with staged(first, None, second) as files:
        for path in files:
            path.write_text(path.suffix, encoding="utf-8")
        assert not first.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.txt"]


@pytest.mark.parametrize("error", [FxquantError("no"), OSError("full"), KeyboardInterrupt()])
def test_staged_files_vanish_together(tmp_path: Path, error: BaseException) -> None:
    kept = tmp_path / "a.txt"
    kept.write_text("old", encoding="utf-8")
    wanted = InputError if isinstance(error, OSError) else type(error)

    def fail() -> None:
        with staged(kept, tmp_path / "b.txt") as files:
            files[0].write_text("new", encoding="utf-8")
            raise error

    with pytest.raises(wanted):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert kept.read_text(encoding="utf-8") == "old"
