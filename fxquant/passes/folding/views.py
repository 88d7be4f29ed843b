"""What the readers of a norm see: ranges, means and sampled rows, from a run of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxquant.errors import CalibrationError
from fxquant.passes.data import first_images
from fxquant.passes.running import Runner
from fxquant.quant.calibration import Calibration
from fxquant.quant.memory import return_free_memory

ROWS = 4096  # kept per view: enough for percentiles, 12 MB at 768 channels


@dataclass(frozen=True)
class View:
    """One tensor ``[..., C]`` as its reader sees it.

    ``low``, ``high``, ``mean``: float64 ``[C]`` over all rows. ``rows``: float32 ``[n, C]``, drawn
    at random, n <= 4096. ``count``: rows seen.
    """

    low: Tensor
    high: Tensor
    mean: Tensor
    rows: Tensor
    count: int


class _Collector:
    """Takes batches in; memory does not grow beyond the sampled rows."""

    def __init__(self, images: int, rows: int) -> None:
        self.images = images
        self.kept = rows
        self.batch = 0  # images in the batch at hand: a view's first axis may be windows
        self.count = 0
        self.low = self.high = self.total = torch.empty(0)
        self.rows: list[Tensor] = []
        self.generator = torch.Generator().manual_seed(0)  # the same rows each time

    def update(self, x: Tensor) -> None:
        rows = x.detach().reshape(-1, x.shape[-1])
        low, high = rows.aminmax(dim=0)
        total = rows.sum(0, dtype=torch.float64)
        if self.count:
            low, high = torch.minimum(low, self.low), torch.maximum(high, self.high)
            total = total + self.total
        self.low, self.high, self.total = low, high, total
        self.count += rows.shape[0]
        quota = -(-self.kept * self.batch // self.images)
        chosen = torch.randperm(rows.shape[0], generator=self.generator)[:quota]
        self.rows.append(rows[chosen].clone())

    def view(self, where: str) -> View:
        low, high = self.low.to(torch.float64), self.high.to(torch.float64)
        if not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
            raise CalibrationError(
                "NaN or infinity reached a norm during smoothing",
                where=where,
                fix="check the calibration data and the model's weights",
            )
        return View(low, high, self.total / self.count, torch.cat(self.rows), self.count)


def collect(
    graph_module: GraphModule,
    calibration: Calibration,
    readers: Mapping[str, str],
    images: int,
    rows: int,
) -> dict[str, View]:
    """Views by name from the first ``images`` samples, with about ``rows`` sampled rows each.

    ``readers``: for each view the name of a graph node whose first argument it is.
    """
    collectors = {view: _Collector(images, rows) for view in readers}
    runner = Runner(
        graph_module, inputs={node: collectors[view].update for view, node in readers.items()}
    )
    for leaves in first_images(calibration, images):
        for collector in collectors.values():
            collector.batch = leaves[0].shape[0]
        runner(leaves)
        return_free_memory()
    return {view: collector.view(view) for view, collector in collectors.items()}


def joined(views: list[View]) -> View:
    """What several readers see together; a view that two of them share counts once."""
    views = list({id(view): view for view in views}.values())
    if len(views) == 1:
        return views[0]
    count = sum(view.count for view in views)
    return View(
        torch.stack([view.low for view in views]).amin(0),
        torch.stack([view.high for view in views]).amax(0),
        torch.stack([view.mean * (view.count / count) for view in views]).sum(0),
        torch.cat([view.rows for view in views]),
        count,
    )
