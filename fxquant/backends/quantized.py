"""The quantized ``GraphModule`` that users hold: a graph with its plan and report."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from torch import Tensor
from torch.fx import GraphModule

from fxquant.artifact import write
from fxquant.backends.frozen import Frozen
from fxquant.backends.inputs import InputCheck
from fxquant.graph.tensors import copy_graph, tensor_at
from fxquant.pipeline.plan import Plan
from fxquant.report import Report

_KEY = "fxquant"


class QuantizedModule(Frozen, GraphModule):
    """A quantized graph in normal form. Takes what the captured model took, any batch size.

    An ordinary ``GraphModule``: print it, run it, ``torch.compile`` it (simulated int8), or lower
    it. ``plan`` holds every decision, ``report`` what came of it; both survive ``deepcopy``.
    """

    @property
    def plan(self) -> Plan:
        """Every decision, as data."""
        return cast(Plan, self.meta[_KEY]["plan"])

    @property
    def report(self) -> Report:
        """Table of layers, totals, notes."""
        return cast(Report, self.meta[_KEY]["report"])

    @property
    def pipeline_text(self) -> str:
        """The pipeline that made it, as text."""
        return str(self.meta[_KEY].get("pipeline", ""))

    @property
    def micro_batch(self) -> int | None:
        """Images that go through an x86 program together, where a file or a user said so."""
        return cast("int | None", self.meta[_KEY].get("micro_batch"))

    @property
    def diffs(self) -> dict[str, str]:
        """Text difference of the graph made by each pass, where it was asked for."""
        return dict(self.meta[_KEY].get("diffs", {}))

    def __deepcopy__(self, memo: dict[int, Any]) -> QuantizedModule:
        extra = {key: v for key, v in self.meta[_KEY].items() if key not in {"plan", "report"}}
        twin = quantized_module(self, self.plan, self.report, **extra)
        for buffer in twin.buffers():
            if not buffer.is_floating_point():  # the others are copies already
                buffer.data = buffer.clone()
        return twin

    def save(self, path: str | Path) -> None:
        """Write a ``.fxq`` artifact that :func:`fxquant.load` reads back bit-equal."""
        save(self, path, backend="reference", report=self.report)


def save(
    quantized: QuantizedModule,
    path: str | Path,
    *,
    backend: str,
    report: Report,
    micro_batch: int | None = None,
) -> None:
    """Write the portable graph, marked for ``backend``: packed weights are made anew at load."""
    chosen = {} if micro_batch is None else {"micro_batch": micro_batch}
    write(
        path,
        graph_module=quantized,
        plan=quantized.plan,
        report=report,
        backend=backend,
        model_name=report.model,
        recipe=report.recipe,
        extra={"pipeline": quantized.pipeline_text, **chosen},
    )


def quantized_module(
    graph_module: GraphModule, plan: Plan, report: Report, **extra: Any
) -> QuantizedModule:
    """A :class:`QuantizedModule` with tensors of its own, so that no later change to the float
    model reaches it."""
    targets = [str(n.target) for n in graph_module.graph.nodes if n.op == "get_attr"]
    tensors = {name: _own(tensor_at(graph_module, name)) for name in targets}
    graph = copy_graph(graph_module.graph)
    module = QuantizedModule(tensors, graph, class_name="QuantizedModule")
    for name, tensor in tensors.items():
        _as_buffer(module, name, tensor)
    module.meta[_KEY] = {"plan": plan, "report": report, **extra}
    module.eval()
    module.register_forward_pre_hook(InputCheck.of(module), with_kwargs=True)
    module.training = False
    return module


def _own(tensor: Tensor) -> Tensor:
    """Integer codes were made here already; floating tensors may be the float model's own."""
    return tensor.detach().clone() if tensor.is_floating_point() else tensor.detach()


def _as_buffer(module: GraphModule, name: str, tensor: Any) -> None:
    """Parameters of the float model are constants here: hold every tensor as a buffer."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if hasattr(owner, leaf):
        delattr(owner, leaf)
    owner.register_buffer(leaf, tensor)
