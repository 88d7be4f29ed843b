"""What cannot be captured is refused with the place and the remedy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.capture import capture
from fxquant.capture.symbolic import trace
from fxquant.errors import CaptureError, FxquantError, InputError, UnsupportedOpError
from tests.capture.models import Encoder, Function, TwoInputs, batch_of

foreign = torch.library.Library("fxquant_tests", "DEF")
foreign.define("twice(Tensor x) -> Tensor")
foreign.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")
torch.library.register_fake("fxquant_tests::twice", lambda x: torch.empty_like(x), lib=foreign)


def refused(model: nn.Module, example: Any = None) -> FxquantError:
    with pytest.raises(FxquantError) as caught:
        capture(model, batch_of(2) if example is None else example)
    assert caught.value.where
    assert caught.value.fix
    return caught.value


def branching(m: Function, x: Tensor) -> Tensor:
    return m.linear(x) if x.sum() > 0 else x


def looping(m: Function, x: Tensor) -> Tensor:
    for _ in range(int(x.abs().max())):
        x = m.linear(x)
    return x


@pytest.mark.parametrize("function", [branching, looping])
def test_control_flow_on_data_names_the_line(function: Any) -> None:
    error = refused(Function(function).eval())
    assert isinstance(error, CaptureError)
    line = function.__code__.co_firstlineno + 1
    assert f"test_refusals.py:{line}" in error.where


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.linear(x).reshape(2, -1),
        lambda m, x: m.linear(x) * len(x),
        lambda m, x: m.linear(x) * int(x.shape[0]),
    ],
)
def test_a_batch_size_written_into_the_code_is_named(function: Any) -> None:
    error = refused(Function(function).eval())
    assert isinstance(error, CaptureError)
    assert "batch size" in error.why
    assert "Function.forward" in error.where


def test_an_error_of_the_model_itself_names_its_line_at_both_doors() -> None:
    def mistaken(m: Function, x: Tensor) -> Tensor:
        return m.linear(x) @ torch.ones(5, 5)

    line = mistaken.__code__.co_firstlineno + 1
    model = Function(mistaken).eval()
    for door in (model, trace(model)):
        error = refused(door)
        assert isinstance(error, CaptureError)
        assert f"test_refusals.py:{line}" in error.where
        assert "reduction dim" in error.why


UNSUPPORTED = {
    "complex numbers": lambda m, x: torch.fft.rfft(m.linear(x)).abs(),
    "complex numbers again": lambda m, x: torch.view_as_real(
        torch.view_as_complex(m.linear(x).reshape(x.shape[0], 3, 2, 2)) * 1j
    ),
    "a foreign operator": lambda m, x: torch.ops.fxquant_tests.twice(m.linear(x)),
    "random numbers": lambda m, x: m.linear(x) + torch.rand(4),
    "random numbers of the input's shape": lambda m, x: m.linear(x) + torch.randn_like(x),
    "dropout that never stops": lambda m, x: F.dropout(m.linear(x), 0.5, training=True),
    "attention with dropout": lambda m, x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5),
    "a write into the input": lambda m, x: m.linear(x.mul_(2.0)),
    "sizes that depend on data": lambda m, x: x[x > 0.0],
}


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_an_unsupported_operation_names_layer_and_line(name: str) -> None:
    error = refused(Function(UNSUPPORTED[name]).eval())
    assert isinstance(error, UnsupportedOpError)
    assert "models.py:" in error.where or "test_refusals.py:" in error.where
    assert "layer" in error.where


def test_training_mode_names_the_module() -> None:
    model = Encoder().eval()
    model.mlp[2].train()
    error = refused(model)
    assert isinstance(error, CaptureError)
    assert "mlp.2" in error.where
    assert "eval()" in error.fix
    assert "the model itself" in refused(Encoder()).where


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_name_the_tensor(dtype: torch.dtype) -> None:
    model = Encoder().eval()
    model.proj.to(dtype)
    error = refused(model)
    assert isinstance(error, CaptureError)
    assert error.where == "proj.weight"
    assert str(dtype) in error.what
    model = Encoder().eval()
    model.register_buffer("seen", torch.zeros(2, dtype=dtype))
    assert refused(model).where == "seen"


def test_another_device_names_the_tensor() -> None:
    model = Encoder().eval()
    model.proj.to("meta")
    assert refused(model).where == "proj.weight"
    assert "meta" in refused(Encoder().eval(), batch_of(2).to("meta")).what


@pytest.mark.parametrize("model", [None, "vit", lambda x: x, Encoder, np.zeros(3)])
def test_what_is_no_module_is_refused(model: Any) -> None:
    error = refused(model)
    assert isinstance(error, CaptureError)
    assert error.where == "argument model"


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (batch_of(2).half(), "float32, not torch.float16"),
        (batch_of(2).double(), "float32, not torch.float64"),
        (torch.zeros(2, 3, 4, dtype=torch.uint8), "float32, not torch.uint8"),
        (torch.zeros(2, 3, 4, dtype=torch.int64), "float32, not torch.int64"),
        (torch.tensor(1.0), "no batch axis"),
        (torch.zeros(0, 3, 4), "no elements"),
        (torch.zeros(2, 0, 4), "no elements"),
        ((batch_of(2), batch_of(3)), "disagree on the batch size"),
        ({"image": batch_of(2), "mask": batch_of(1)}, "disagree on the batch size"),
        (5, "example of type int"),
        ("image.png", "example of type str"),
        (None, "example of type NoneType"),
        (np.zeros((2, 3, 4), dtype=np.float32), "example of type ndarray"),
        ({1: batch_of(2)}, "example of type dict"),
        ((), "holds no tensor"),
        ({}, "holds no tensor"),
        ((1, None), "holds no tensor"),
    ],
)
def test_an_unfit_example_is_refused(example: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        capture(TwoInputs().eval(), example)
    assert caught.value.where
    assert "fix:" in str(caught.value) or "disagree" in message or "no tensor" in message


@pytest.mark.parametrize(
    "example", [batch_of(2), (batch_of(2),) * 3, {"image": batch_of(2), "nope": batch_of(2)}]
)
def test_an_example_of_another_signature_is_refused(example: Any) -> None:
    error = refused(TwoInputs().eval(), example)
    assert isinstance(error, CaptureError)


def test_an_example_of_another_shape_names_the_line() -> None:
    error = refused(Encoder().eval(), torch.zeros(2, 3, 5))
    assert isinstance(error, CaptureError)
    assert "models.py:" in error.where


def test_numbers_beyond_tensors_are_kept_as_constants() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, scale: float) -> Tensor:
            return x * scale

    graph_module = capture(Scaled().eval(), (batch_of(2), math.pi))
    x = batch_of(3)
    assert torch.equal(graph_module(x, math.pi), x * math.pi)
