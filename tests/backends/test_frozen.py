"""What finished models allow, refuse and copy."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fxquant
from fxquant.backends.quantized import QuantizedModule
from fxquant.backends.x86.module import LoweredModule
from fxquant.errors import FrozenModelError
from tests.backends.tiny import images, quantized, shared, shared_lowered, vit

KINDS = ["quantized", "lowered"]


def finished(kind: str) -> Any:
    return shared("vit")[1] if kind == "quantized" else shared_lowered("vit")


def saved(model: Any) -> None:
    torch.save(model, io.BytesIO())


REFUSED: dict[str, Callable[[Any], Any]] = {
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.bfloat16(),
    "double": lambda model: model.double(),
    "type": lambda model: model.type(torch.float16),
    "to float16": lambda model: model.to(torch.float16),
    "to bfloat16 by keyword": lambda model: model.to(dtype=torch.bfloat16),
    "to the type of a tensor": lambda model: model.to(torch.zeros(1, dtype=torch.float64)),
    "cuda": lambda model: model.cuda(),
    "xpu": lambda model: model.xpu(),
    "to cuda": lambda model: model.to("cuda"),
    "to meta": lambda model: model.to(torch.device("meta")),
    "train": lambda model: model.train(),
    "train(True)": lambda model: model.train(True),
    "pickle": pickle.dumps,
    "torch.save": saved,
    "copy": copy.copy,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", REFUSED)
def test_a_change_that_the_kernels_cannot_follow_is_refused_with_a_remedy(
    kind: str, name: str
) -> None:
    model = finished(kind)
    with pytest.raises(FrozenModelError) as caught:
        REFUSED[name](model)
    assert caught.value.why
    assert caught.value.fix
    assert not model.training
    assert all(value.device.type == "cpu" for value in model.state_dict().values())


ALLOWED: dict[str, Callable[[Any], Any]] = {
    "eval": lambda model: model.eval(),
    "train(False)": lambda model: model.train(False),
    "cpu": lambda model: model.cpu(),
    "float": lambda model: model.float(),
    "to cpu": lambda model: model.to("cpu"),
    "to float32": lambda model: model.to(torch.float32),
    "to cpu and float32": lambda model: model.to(device="cpu", dtype=torch.float32),
    "to channels last": lambda model: model.to(memory_format=torch.channels_last),
    "no gradients": lambda model: model.requires_grad_(False),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ALLOWED)
def test_what_changes_nothing_is_allowed_and_returns_the_model(kind: str, name: str) -> None:
    model, x = finished(kind), images(2)
    with torch.inference_mode():
        before = model(x)
        assert ALLOWED[name](model) is model
        assert torch.equal(model(x), before)
    assert not any(module.training for module in model.modules() if module is model)


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_holds_plain_tensors_only(kind: str) -> None:
    state = finished(kind).state_dict()
    assert state
    for value in state.values():
        assert type(value) is Tensor
        assert value.layout is torch.strided
        assert not value.is_mkldnn
    assert any(value.dtype is torch.int8 for value in state.values())
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    again = torch.load(file, weights_only=True)
    assert all(torch.equal(value, again[name]) for name, value in state.items())


def test_the_lowered_state_is_that_of_its_reference() -> None:
    model, reference = shared_lowered("vit"), shared("vit")[1]
    assert list(model.state_dict()) == list(reference.state_dict())
    with pytest.raises(FrozenModelError):
        model.load_state_dict(reference.state_dict())


def storages(model: Any) -> set[int]:
    tensors = [*model.state_dict().values(), *model.buffers(), *model.parameters()]
    return {t.data_ptr() for t in tensors if not t.is_mkldnn and t.numel()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_deep_copy_gives_equal_outputs_from_tensors_of_its_own(kind: str) -> None:
    model, x = finished(kind), images(3)
    twin = copy.deepcopy(model)
    assert type(twin).__name__ == type(model).__name__
    assert isinstance(twin, QuantizedModule if kind == "quantized" else LoweredModule)
    with torch.inference_mode():
        assert torch.equal(twin(x), model(x))
    assert not storages(twin) & storages(model)
    assert twin.plan == model.plan
    assert twin.report == model.report
    assert str(twin.state_dict().keys()) == str(model.state_dict().keys())


def test_a_change_to_a_copy_leaves_the_original_alone() -> None:
    model, x = quantized(), images(2)
    before = model(x)
    twin = copy.deepcopy(model)
    for value in twin.state_dict().values():
        value.zero_()
    assert torch.equal(model(x), before)
    assert not torch.equal(twin(x), before)


def test_a_lowered_copy_keeps_executor_and_kernels() -> None:
    model = shared_lowered("vit")
    twin = copy.deepcopy(model)
    assert twin.executor == "eager"
    assert twin.int8_kernels == model.int8_kernels
    assert twin.reference is not model.reference


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_model_holds_nothing_that_trains(kind: str) -> None:
    model = finished(kind)
    assert list(model.parameters()) == []
    assert not model(images(1)).requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_model_prints_and_lists_its_modules(kind: str) -> None:
    model = finished(kind)
    assert type(model).__name__ in repr(model)
    assert model in list(model.modules())


def test_a_later_change_of_the_float_model_does_not_reach_the_quantized_one() -> None:
    model, x = vit(), images(4)
    made = fxquant.quantize(model, calibration=x)
    lowered = fxquant.lower(made, executor="eager")
    before, before_lowered = made(x), lowered(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(made(x), before)
    assert torch.equal(lowered(x), before_lowered)
