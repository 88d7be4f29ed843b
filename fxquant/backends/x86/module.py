"""The lowered model: int8 kernels, and Inductor around them on first call."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from fxquant.backends.base import Executor
from fxquant.backends.frozen import Frozen
from fxquant.backends.inputs import InputCheck
from fxquant.backends.quantized import QuantizedModule, save
from fxquant.backends.x86.lower import Lowered, lower_graph
from fxquant.backends.x86.native import Native, lower_native
from fxquant.errors import InputError
from fxquant.pipeline.plan import Plan
from fxquant.report import Report


class LoweredModule(Frozen, nn.Module):
    """An int8 model on x86 kernels. Takes what the float model took, any batch size.

    ``reference``: the portable quantized graph it reproduces, which also holds the plain int8
    weights (``state_dict`` shows those; packed tensors are opaque). ``graph_module``: the graph
    of kernels, which is one call of a program with the ``native`` executor. ``inductor`` compiles
    what lies between oneDNN kernels on first use, ``eager`` calls operator by operator. Inside
    ``torch.compile`` the graph is traced through.
    """

    def __init__(
        self,
        reference: QuantizedModule,
        lowered: Lowered | Native,
        report: Report,
        *,
        executor: Executor = "inductor",
    ) -> None:
        super().__init__()
        self.training = False
        self._lowered = lowered
        self._report = report
        self.executor: Executor = executor
        self.graph_module = lowered.graph_module
        self.register_forward_pre_hook(InputCheck.of(self.graph_module), with_kwargs=True)
        # Not a submodule: its plain weights must not be moved or listed beside the packed ones.
        object.__setattr__(self, "reference", reference)
        object.__setattr__(self, "_compiled", None)

    reference: QuantizedModule
    _compiled: Callable[..., Any] | None

    @property
    def plan(self) -> Plan:
        """Every decision, as data."""
        return self.reference.plan

    @property
    def report(self) -> Report:
        """Table of layers with the kernel that runs each."""
        return self._report

    @property
    def native(self) -> Native | None:
        """The program it runs as; None with another executor."""
        return self._lowered if isinstance(self._lowered, Native) else None

    @property
    def int8_kernels(self) -> dict[str, str]:
        """Layer to int8 kernel."""
        return dict(self._lowered.kernel_of)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; no gradients."""
        if torch.compiler.is_compiling() or self.executor != "inductor":
            return self.graph_module(*args, **kwargs)
        if self._compiled is None:
            object.__setattr__(self, "_compiled", _compile(self.graph_module))
        assert self._compiled is not None
        with torch.no_grad():
            return self._compiled(*args, **kwargs)

    def save(self, path: str | Path) -> None:
        """Write a ``.fxq`` artifact: the portable graph, lowered again when loaded."""
        images = None if self.native is None else self.native.micro_batch
        save(self.reference, path, backend="x86", report=self.report, micro_batch=images)

    def with_micro_batch(self, images: int) -> LoweredModule:
        """The same model, ``images`` of a batch going through its program together.

        Results are the same bits; speed and memory differ. Lowering measures the number that is
        fastest here, and files keep it. Raises :class:`InputError` for less than one image, or
        where the model does not run as one program.
        """
        if self.native is None or images < 1:
            raise InputError(
                f"the model cannot run in micro-batches of {images}",
                where="argument images",
                why="" if self.native else f"its executor is {self.executor}",
                fix="pass 1 or more, to a model of the native executor",
            )
        made = self.native.with_micro_batch(images)
        return LoweredModule(self.reference, made, self._report, executor=self.executor)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The reference's tensors: plain int8 weights, scales, biases."""
        return self.reference.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: weights are packed for the kernels."""
        self._other_dtype("load_state_dict")

    def __deepcopy__(self, memo: dict[int, Any]) -> LoweredModule:
        reference = copy.deepcopy(self.reference, memo)
        # Packed tensors cannot be copied: pack anew.
        if self.native is not None:
            lowered: Lowered | Native = lower_native(reference, micro=self.native.micro_batch)
        else:
            lowered = lower_graph(reference)
        return LoweredModule(reference, lowered, self._report, executor=self.executor)


def _compile(graph_module: GraphModule) -> Callable[..., Any]:
    """Inductor over the graph of kernels. Its buffers never change, so no guards watch them."""
    return torch.compile(
        graph_module,
        options={"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe},
    )
