"""What a finished model refuses: changes that would silently part it from its numbers."""

from __future__ import annotations

from typing import Any, NoReturn

import torch

from fxquant.errors import FrozenModelError


def _refuse(what: str, why: str, fix: str) -> NoReturn:
    raise FrozenModelError(f"a quantized model cannot do {what}", why=why, fix=fix)


class Frozen:
    """Mixin of quantized and lowered modules: conversions and pickling raise with the remedy.

    ``.half()`` would pass silently over packed weights, pickling fails deep inside torch: both are
    named errors here instead.
    """

    def train(self, mode: bool = True) -> Any:  # noqa: FBT001, FBT002  (nn.Module's signature)
        """Only evaluation mode exists; training mode raises."""
        if mode:
            _refuse(
                ".train()",
                "quantize and dequantize cut gradients",
                "fine-tune fxquant.trainable(quantized) and return with fxquant.freeze(...)",
            )
        return self

    def _other_dtype(self, name: str) -> NoReturn:
        _refuse(
            f".{name}()",
            "every precision is part of the plan",
            "edit the plan, or pass a recipe, and quantize again",
        )

    def half(self) -> NoReturn:
        """Refused."""
        self._other_dtype("half")

    def bfloat16(self) -> NoReturn:
        """Refused."""
        self._other_dtype("bfloat16")

    def double(self) -> NoReturn:
        """Refused."""
        self._other_dtype("double")

    def type(self, dst_type: Any) -> NoReturn:
        """Refused."""
        self._other_dtype("type")

    def cuda(self, device: Any = None) -> NoReturn:
        """Refused."""
        self._other_device("cuda")

    def xpu(self, device: Any = None) -> NoReturn:
        """Refused."""
        self._other_device("xpu")

    def _other_device(self, name: str) -> NoReturn:
        _refuse(
            f".{name}()",
            "the graph was made for CPU kernels",
            "quantize on the CPU; on a GPU run the float model or fxquant.trainable(quantized)",
        )

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """The CPU and float32 are where and what it is already; anything else raises."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if device is not None and device.type != "cpu":
            self._other_device(f"to({device})")
        if dtype not in (None, torch.float32):
            self._other_dtype(f"to({dtype})")
        return self

    def __copy__(self) -> NoReturn:
        _refuse(
            "a shallow copy",
            "two models would hold the same tensors",
            "use copy.deepcopy(model)",
        )

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        _refuse(
            "pickling",
            "a pickle is code, and packed weights are opaque",
            "write model.save('model.fxq') and read fxquant.load('model.fxq')",
        )
