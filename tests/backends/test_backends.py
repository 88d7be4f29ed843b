"""Finding a backend, and what lowering refuses, warns of and reports."""

from __future__ import annotations

from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest
import torch
from torch import nn

import fxquant
from fxquant import FxquantWarning
from fxquant.backends import base
from fxquant.backends.base import Backend, Support, backend_names, default_backend, get_backend
from fxquant.backends.x86 import machine
from fxquant.errors import BackendError, LoweringError, PlanError
from fxquant.pipeline.target import Target
from tests.backends.tiny import Mlp, made, quantized, shared, tensor


class Fake:
    """A backend of somebody else's package."""

    name = "fake"
    fit = True

    def available(self) -> Support:
        return Support(ok=self.fit, reason="" if self.fit else "no such chip")

    def target(self) -> Target:
        return Target(backend="fake", machine="a chip", roles=("patch_embed",))

    def supports(self, node: Any) -> Support:
        return Support(ok=True)

    def lower(self, quantized: Any, *, strict: bool, executor: str) -> nn.Module:
        made = nn.Identity()
        made.given = (quantized, strict, executor)  # type: ignore[assignment]
        return made


class Elsewhere(Fake):
    fit = False


class NoBackend:
    name = "none"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = list(base.entry_points(group="fxquant.backends"))
    added = [
        EntryPoint(name, f"{__name__}:{kind}", "fxquant.backends")
        for name, kind in (("fake", "Fake"), ("elsewhere", "Elsewhere"), ("none", "NoBackend"))
    ]
    for entry, kind in zip(added, (Fake, Elsewhere, NoBackend), strict=True):
        monkeypatch.setitem(entry.__dict__, "load", lambda kind=kind: kind)
    monkeypatch.setattr(base, "entry_points", lambda group: EntryPoints([*real, *added]))


def small() -> nn.Module:
    return made(lambda: Mlp(16, 32))


def small_quantized(**options: Any) -> Any:
    return fxquant.quantize(small(), calibration=tensor(8, 16), **options)


def test_both_backends_are_installed_and_follow_the_protocol() -> None:
    assert {"reference", "x86"} <= set(backend_names())
    assert isinstance(get_backend("reference"), Backend)
    assert isinstance(get_backend("x86"), Backend)
    assert default_backend() == "x86"


@pytest.mark.parametrize(("typed", "meant"), [("x68", "x86"), ("referense", "reference")])
def test_an_unknown_backend_names_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(BackendError, match=f"unknown backend '{typed}'") as caught:
        get_backend(typed)
    assert repr(meant) in caught.value.fix


@pytest.mark.usefixtures("installed")
def test_a_backend_of_another_package_plans_and_lowers() -> None:
    assert "fake" in backend_names()
    quantized = small_quantized(backend="fake")
    assert quantized.plan.target == Fake().target()
    assert quantized.plan["fc1:weight"].scheme is not None
    assert "no int8 kernel for role fc2" in quantized.plan["fc2:weight"].reason
    lowered = fxquant.lower(quantized, backend="fake", strict=True, executor="eager")
    assert lowered.given == (quantized, True, "eager")


@pytest.mark.usefixtures("installed")
def test_a_backend_that_cannot_run_here_says_why() -> None:
    with pytest.raises(BackendError, match="no such chip") as caught:
        fxquant.lower(small_quantized(), backend="elsewhere")
    assert "backend='reference'" in caught.value.fix
    with pytest.raises(BackendError, match="does not implement"):
        get_backend("none")


def test_the_reference_backend_hands_back_the_graph_itself() -> None:
    q = small_quantized(backend="reference")
    assert fxquant.lower(q, backend="reference") is q
    assert q.plan.target.backend == "reference"
    assert not q.plan.target.bfloat16


def test_a_machine_without_x86_falls_back_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.platform, "machine", lambda: "aarch64")
    assert default_backend() == "reference"
    assert small_quantized().plan.target.backend == "reference"
    with pytest.raises(BackendError, match="cannot run on this machine") as caught:
        fxquant.lower(small_quantized(), backend="x86")
    assert "aarch64" in caught.value.why


def half_lowered() -> Any:
    """A model of which fc1 is planned in int8 and gets no kernel."""
    recipe = fxquant.recipe("w8a8").override("s16/channel/minmax", sites="fc1:weight")
    return small_quantized(recipe=recipe)


def test_a_layer_without_a_kernel_is_named_in_a_warning() -> None:
    with pytest.warns(FxquantWarning) as caught:
        lowered = fxquant.lower(half_lowered(), executor="eager")
    assert len(caught) == 1
    text = str(caught[0].message)
    assert "1 of 2 layers planned in int8 run in float: fc1 " in text
    assert "torch.int16" in text
    assert caught[0].filename == __file__
    assert set(lowered.int8_kernels) == {"fc2"}
    assert not lowered.report["fc1"].int8
    assert lowered.report["fc2"].int8


def test_strict_lowering_refuses_a_layer_without_a_kernel() -> None:
    with pytest.raises(LoweringError) as caught:
        fxquant.lower(half_lowered(), strict=True, executor="eager")
    assert caught.value.where == "fc1"
    assert "torch.int16" in caught.value.why
    with pytest.raises(LoweringError):
        fxquant.compile(
            small(),
            calibration=tensor(8, 16),
            recipe=fxquant.recipe("w8a8").override("s16/channel/minmax", sites="fc1:weight"),
            strict=True,
            executor="eager",
        )


@pytest.mark.parametrize("strict", [True, False])
def test_no_kernel_at_all_is_always_an_error(strict: bool) -> None:  # noqa: FBT001
    nothing = small_quantized(recipe=fxquant.recipe("w8a8").override("float"))
    with pytest.raises(LoweringError, match="not one int8 kernel") as caught:
        fxquant.lower(nothing, strict=strict)
    assert "plan quantizes no layer" in caught.value.where
    wide = small_quantized(recipe=fxquant.recipe("w8a8").override("s16/channel/minmax"))
    with pytest.raises(LoweringError, match="not one int8 kernel") as caught:
        fxquant.lower(wide, strict=strict)
    assert caught.value.where == "fc1, fc2"


def test_a_plan_of_eight_bits_is_refused_where_they_saturate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planned = small_quantized()
    assert planned.plan.target.activation_bits == 8
    monkeypatch.setattr(machine, "has_vnni", lambda: False)
    with pytest.raises(BackendError, match="8-bit activations, which saturate here") as caught:
        fxquant.lower(planned)
    assert caught.value.fix
    with pytest.raises(PlanError, match="saturate"):
        fxquant.quantize(small(), calibration=tensor(8, 16), plan=planned.plan)
    narrow = small_quantized()
    assert narrow.plan["fc1:input"].scheme.bits == 7
    lowered = fxquant.lower(narrow, strict=True, executor="eager")
    assert "VNNI" not in lowered.report.machine
    monkeypatch.undo()
    # Seven bits run anywhere, so that plan moves the other way.
    again = fxquant.lower(narrow, strict=True, executor="eager")
    assert torch.equal(again(tensor(3, 16)), lowered(tensor(3, 16)))


def test_a_model_simulated_with_eight_bits_still_runs_where_they_saturate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "has_vnni", lambda: False)
    portable = small_quantized(backend="reference")
    assert portable.plan["fc1:input"].scheme.bits == 8
    assert fxquant.lower(portable, backend="reference") is portable
    with pytest.raises(BackendError, match="saturate"):
        fxquant.lower(portable, backend="x86", executor="eager")


def test_lowering_leaves_the_quantized_model_as_it_was() -> None:
    q = quantized()
    x = tensor(2, 3, 16, 16)
    before, nodes = q(x), [node.name for node in q.graph.nodes]
    fxquant.lower(q, executor="eager")
    assert torch.equal(q(x), before)
    assert [node.name for node in q.graph.nodes] == nodes
    assert q.report.simulated
    assert not any(row.int8 for row in q.report.rows)


def test_the_report_says_which_kernel_runs_each_layer() -> None:
    lowered = fxquant.lower(shared("vit")[1], executor="eager")
    assert lowered.plan is lowered.reference.plan
    assert not lowered.report.simulated
    assert lowered.report.backend == "x86"
    for layer, kernel in lowered.int8_kernels.items():
        assert lowered.report[layer].kernel == kernel
        assert lowered.report[layer].int8
    assert lowered.report["blocks.0.norm1"].kernel == "float32"
