"""Single lines of models as programs: what joins a product, what is moved, read twice or scaled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant.backends.x86.conformance import region_differences
from fxquant.quant.metrics import sqnr_db
from tests.backends.tiny import Attention, images, made
from tests.backends.x86.program_models import results
from tests.passes.running import plain


class Lines(nn.Module):
    """16 tokens of 32 channels, and layers for a line over them."""

    def __init__(self, line: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.line, self.patch, self.attn = line, nn.Conv2d(3, 32, 4, 4), Attention(32, 2)
        self.wide, self.narrow = nn.Linear(32, 48), nn.Linear(48, 32)
        self.fc, self.mix, self.norm = nn.Linear(32, 32), nn.Linear(16, 16), nn.LayerNorm(32)
        self.row, self.pos = (
            nn.Parameter(torch.rand(32) + 0.5),
            nn.Parameter(torch.randn(1, 16, 32)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.line(self, self.patch(x).flatten(2).transpose(1, 2))


def turned(x: Tensor) -> Tensor:
    return x.transpose(1, 2)


def windows(x: Tensor) -> Tensor:
    return x.reshape(-1, 2, 2, 2, 2, 32).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 32)


LINES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "silu": lambda m, x: m.narrow(F.silu(m.wide(x))),
    "read twice": lambda m, x: m.narrow(y := F.relu(m.wide(x))) + y[..., :32],
    "affine, then norm": lambda m, x: m.norm(x * m.row + m.pos),
    "scaled twice": lambda m, x: x + m.row * (m.row * m.fc(x)),
    "activation, scale, shift": lambda m, x: F.relu(m.fc(x)) * m.row + m.row,
    "gate, then scale": lambda m, x: (m.fc(x) * x) * m.row,
    "residual, then scale": lambda m, x: (m.fc(x) + x) * m.row,
    "shift, then scale": lambda m, x: (m.fc(x) + m.row) * m.row,
    "one linear, three sums": lambda m, x: m.fc(x) + x + m.fc(x),
    "sum with itself": lambda m, x: (y := m.norm(x)) + y,
    "norm doubled": lambda m, x: m.fc(2.0 * m.norm(x)),
    "halved before codes": lambda m, x: m.fc(0.5 * x) + x,
    "norm of rolled": lambda m, x: m.fc(m.norm(x.roll(2, 1))),
    "rolled gate": lambda m, x: m.fc(x).roll(3, 1) * m.norm(x),
    "rolled, scaled, shifted": lambda m, x: m.fc(x).roll(3, 1) * m.row + m.pos,
    "windows in": lambda m, x: m.fc(windows(m.norm(x))),
    "windows out": lambda m, x: windows(m.fc(m.norm(x))),
    "every second token": lambda m, x: m.fc(x[:, ::2]) + x[:, ::2],
    "joined tokens": lambda m, x: m.fc(torch.cat([x[:, :3], m.fc(x)], 1)),
    "some columns in codes": lambda m, x: m.fc((y := m.wide(x))[..., :32]) + m.fc(y[..., 16:]),
    "mixed and scaled": lambda m, x: x + m.row * turned(m.mix(turned(m.norm(x)))),
    "gated by a mix": lambda m, x: m.fc(x * turned(m.mix(turned(m.norm(x))))),
    "transposed result": lambda m, x: turned(m.fc(x)).reshape(-1, 32, 4, 4),
    "attention of some": lambda m, x: x[:, :9] + m.attn(m.norm(x)[:, :9]),
    "cut columns": lambda m, x: m.wide(x)[..., 3:19],
    "one token and all": lambda m, x: m.fc(m.norm(x[:, 0])) + m.fc(x[:, 2:].mean(1)),
}


@pytest.mark.parametrize("line", LINES)
def test_a_line_follows_the_reference(line: str) -> None:
    model = made(lambda: Lines(LINES[line]))
    reference = fxquant.quantize(model, calibration=images(4), recipe=plain())
    ours, x = fxquant.lower(reference), images(6, seed=3)
    assert ours.native is not None, ours.report.notes
    exact, simulated, mine = (results(m, x)[0] for m in (model, reference, ours))
    assert mine.shape == exact.shape
    assert float(sqnr_db(simulated, mine)) > 55.0
    assert torch.equal(results(ours, x[2:3])[0], mine.chunk(6)[2])
    found = region_differences(ours, (x[:1],))
    assert max(entry.worst_steps for entry in found) <= 1.0


def int8_steps(line: Callable[[Any, Tensor], Tensor]) -> list[str]:
    """The layers of the program's int8 products, in order."""
    model = made(lambda: Lines(line))
    ours = fxquant.compile(model, calibration=images(4), recipe=plain())
    assert ours.native is not None, ours.report.notes
    return [step.layer for step in ours.native.steps if step.int8]


def test_a_product_that_two_views_read_is_computed_once() -> None:
    found = int8_steps(lambda m, x: ((y := m.fc(m.norm(x))).roll(1, 1) + x) + y.roll(2, 1))
    assert found == ["patch", "fc"]


def test_a_product_read_as_codes_and_as_floats_is_computed_once() -> None:
    assert int8_steps(lambda m, x: m.norm(m.fc(x)) + x) == ["patch", "fc"]
