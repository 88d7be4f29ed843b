"""Sites that one range ruins get a range per token or stay float; healthy ones are left alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fxquant
from fxquant.passes import SpareOutliers
from fxquant.quant.metrics import sqnr_db
from tests.backends.tiny import made, tensor
from tests.passes.running import plain


class Outlier(nn.Module):
    """A LayerNorm that lifts one channel, or a token that towers over the others."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.healthy, self.victim, self.head = (nn.Linear(32, 32) for _ in range(3))
        self.factor = nn.Parameter(torch.ones(6, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.healthy(x))
        out: Tensor = self.head(torch.tanh(self.victim(x * self.factor)))
        return out


def with_outlier(kind: str, size: float) -> nn.Module:
    model = made(lambda: Outlier(kind))
    with torch.no_grad():
        if kind == "token":
            model.factor[2] = size  # type: ignore[index,operator]
        else:
            model.healthy.weight.mul_(1e-2)  # type: ignore[union-attr]
            model.healthy.bias.mul_(1e-2)  # type: ignore[union-attr]
            model.healthy.bias[3] = size  # type: ignore[union-attr,index]
            model.victim.weight[:, 3] = 0.0  # type: ignore[union-attr,index]
    return model


def test_an_outlier_token_gets_ranges_per_token_and_healthy_sites_none() -> None:
    model, x = with_outlier("token", 3000.0), tensor(16, 6, 32)
    q = fxquant.quantize(model, calibration=x)
    decision = q.plan["victim:input"]
    assert decision.scheme is not None
    assert decision.scheme.text() == "a8/token/dynamic"
    assert "one range per tensor leaves" in decision.reason
    assert "a range per token gives" in decision.reason
    assert ("victim", decision.reason) in q.report.notes
    assert q.report["victim"].reason == decision.reason
    assert [layer for layer, _ in q.report.notes] == ["victim"]
    for layer in ("healthy", "head"):
        assert q.plan[f"{layer}:input"].scheme.text() == "a8/tensor/minmax"
        assert q.plan[f"{layer}:input"].reason == "default for activations"
    assert q.plan["victim:weight"].scheme.text() == "s8/channel/minmax"
    lowered = fxquant.lower(q, strict=True, executor="eager")
    static = fxquant.quantize(model, calibration=x, pipeline=plain().pipeline.without("plan"))
    with torch.no_grad():
        exact, rescued, lost = model(x), lowered(x), static(x)
    others = [0, 1, 3, 4, 5]
    assert sqnr_db(exact[:, others], rescued[:, others]) > 25.0
    assert sqnr_db(exact[:, others], lost[:, others]) < 18.0


def test_an_outlier_channel_that_no_token_range_can_save_stays_float() -> None:
    model, x = with_outlier("channel", 5.0), tensor(16, 6, 32)
    with torch.no_grad():
        x = x * 1e-2
    q = fxquant.quantize(model, calibration=x)
    decision = q.plan["victim:input"]
    assert decision.scheme is None
    assert decision == q.plan["victim:weight"]
    assert "kept float" in decision.reason
    assert [layer for layer, _ in q.report.notes] == ["victim"]
    lowered = fxquant.lower(q, strict=True, executor="eager")
    assert set(lowered.int8_kernels) == {"healthy", "head"}
    assert lowered.report["victim"].reason == decision.reason


def test_the_floor_decides_what_is_an_outlier() -> None:
    model, x = with_outlier("token", 30.0), tensor(16, 6, 32)

    def spared(floor: float) -> list[str]:
        steps = plain().pipeline.replace("plan", SpareOutliers(floor_db=floor))
        return [
            layer
            for layer, _ in fxquant.quantize(model, calibration=x, pipeline=steps).report.notes
        ]

    assert spared(0.0) == []
    assert spared(34.0) == ["victim"]
    assert set(spared(150.0)) == {"healthy", "victim", "head"}


class Tied(nn.Module):
    """The victim's weight is also another layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.outlier = with_outlier("channel", 5.0)
        self.other = nn.Linear(32, 32)
        self.other.weight = self.outlier.victim.weight  # type: ignore[union-attr,assignment]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.outlier(torch.tanh(self.other(x)) * 1e-2)
        return out


def test_a_layer_that_shares_the_weight_of_a_spared_one_is_spared_too() -> None:
    q = fxquant.quantize(made(Tied), calibration=tensor(16, 6, 32))
    sharers = [row.layer for row in q.report.rows if "shares its weight" in row.reason]
    spared = [row.layer for row in q.report.rows if "kept float" in row.reason]
    assert len(sharers) == len(spared) == 1
    for layer in (*sharers, *spared):
        assert q.plan[f"{layer}:weight"].scheme is None
        assert q.plan[f"{layer}:input"].scheme is None
    assert len([b for b in q.buffers() if b.shape == (32, 32)]) == 3


def test_a_convolution_has_no_tokens_and_stays_float() -> None:
    model = made(lambda: nn.Sequential(nn.Conv2d(3, 32, 4, 4), nn.Flatten(2), nn.Linear(16, 16)))
    x = tensor(8, 3, 16, 16)
    x[:, :, :4, :4] *= 1e4
    q = fxquant.quantize(model, calibration=x)
    decision = q.plan["0:input"]
    assert decision == q.plan["0:weight"]
    assert decision.scheme is None
    assert decision.reason.endswith("dB (floor 25): kept float")
