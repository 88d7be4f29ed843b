"""Samples of the tensors whose quantizers are searched, gathered while calibration runs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxquant.passes.fisher import IMAGES, values_and_importance
from fxquant.passes.gram import Gram
from fxquant.passes.sampling import RowSample
from fxquant.passes.watched import Watched
from fxquant.quant.calibration import Leaves, parts_of
from fxquant.quant.qparams import QParams
from fxquant.quant.scheme import Scheme
from fxquant.quant.search import search_qparams


class Search:
    """The range of one tensor and a sample of its rows, searched for the best parameters.

    Answers like an observer. Under the rule ``fisher`` the rows are those that have gradients:
    :func:`weigh` fills them in, and ``update`` finds the range only.
    """

    def __init__(self, graph_module: GraphModule, watched: Watched, count: int) -> None:
        heads = watched.scheme.granularity == "head"
        fisher = watched.scheme.rule == "fisher"
        self.graph_module = graph_module
        self.watched = watched
        self.seen = RowSample(1 if fisher else count, heads=heads)
        self.rows = RowSample(count) if fisher else self.seen
        self.importance = [RowSample(count) for _ in watched.readers if fisher]
        self.gram: Gram | None = None
        if watched.partner is not None:
            self.gram = Gram(heads=heads, transposed=watched.slot == "rhs")

    def update(self, x: Tensor) -> None:
        """Take in a batch of the tensor."""
        self.seen.update(self.watched.rows(x))

    def weighing(self, where: str = "") -> tuple[Tensor | None, Tensor | None]:
        """What the readers make of errors and how much each of it counts, where the rule asks."""
        output = importance = None
        if self.gram is not None:
            output = self.gram.weight()
        elif self.watched.weighs:
            output = self.watched.weight(self.graph_module)
        if self.importance:
            importance = torch.cat([sample.rows(where=where) for sample in self.importance], dim=1)
        return output, importance

    def qparams(self, scheme: Scheme, *, where: str = "") -> QParams:
        """The best parameters on the sample."""
        output, importance = self.weighing(where)
        return search_qparams(
            scheme,
            self.rows.rows(where=where),
            low=self.seen.low,
            high=self.seen.high,
            output=output,
            importance=importance,
        )


def weigh(graph_module: GraphModule, searches: list[Search], sample: Leaves) -> None:
    """Fill in rows and importance, on the same rows, of searches under the rule ``fisher``."""
    sources = {
        reader.name: search.watched.source.name
        for search in searches
        for reader in search.watched.readers
    }
    for leaves in parts_of(sample, IMAGES):
        found = values_and_importance(graph_module, leaves, sources)
        for search in searches:
            watched = search.watched
            search.rows.update(watched.rows(found[watched.readers[0].name][0]))
            for reader, importance in zip(watched.readers, search.importance, strict=True):
                gradient = found[reader.name][1]
                conv = watched.layers[0].kind == "conv"
                importance.update(gradient.flatten(2).transpose(1, 2) if conv else gradient)
