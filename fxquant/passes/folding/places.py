"""The two kinds of places where a migration is chosen, behind one face."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxquant.graph.tensors import constant_of
from fxquant.passes.folding.choices import Choice
from fxquant.passes.folding.migration import (
    Migration,
    channel_quantizers,
    common_quantizer,
    osplus,
    repq,
    sqb,
    unchanged,
)
from fxquant.passes.folding.rewrite import fold, fold_value
from fxquant.passes.folding.score import Reading
from fxquant.passes.folding.sites import FoldSite
from fxquant.passes.folding.values import ValueSite
from fxquant.passes.folding.views import View, joined


@dataclass(frozen=True)
class NormPlace:
    """A norm and its linears: one migration for all."""

    site: FoldSite

    def migrations(self, choice: Choice, readings: list[Reading]) -> list[Migration]:
        """What the chosen method says for all that the readers see together."""
        view = joined([reading.view for reading in readings])
        return [self._migration(choice, view, readings)] * len(readings)

    def carry_out(self, graph_module: GraphModule, choice: Choice, readings: list[Reading]) -> None:
        """Fold into the norm's affine map and the linears."""
        fold(graph_module, self.site, self.migrations(choice, readings)[0])

    @staticmethod
    def _migration(choice: Choice, view: View, readings: list[Reading]) -> Migration:
        if choice.choose == "sqb":
            columns = torch.stack([r.weight.abs().amax(0) for r in readings]).amax(0)
            return sqb(view, columns.to(torch.float64), choice.alpha, choice.center)
        if choice.choose == "osplus":
            return osplus(view, choice.threshold)
        if choice.choose == "repq":
            step, zero_point = channel_quantizers(view.rows, choice.bits)
            return repq(step, zero_point, common_quantizer(step, zero_point, choice.bits))
        return unchanged(view.low.shape[0])


@dataclass(frozen=True)
class ValuePlace:
    """An attention's V: one scale per output channel of the linear that makes it, no shift."""

    site: ValueSite

    def migrations(self, choice: Choice, readings: list[Reading]) -> list[Migration]:
        """The scale of V's channels as each reader's input channels see it."""
        scale = self._scale(choice, readings)
        own = [scale[list(columns)] for columns in self.site.columns]
        return [Migration(torch.zeros_like(e), e) for e in own]

    def carry_out(self, graph_module: GraphModule, choice: Choice, readings: list[Reading]) -> None:
        """Fold into V's rows and the readers' columns."""
        scale = self._scale(choice, readings)
        assert self.site.source is not None
        node = next(n for n in graph_module.graph.nodes if n.name == self.site.source.node)
        whole = torch.ones(node.meta["val"].shape[-1], dtype=torch.float64)
        whole[: scale.shape[0]] = scale
        fold_value(graph_module, self.site, whole)

    def _scale(self, choice: Choice, readings: list[Reading]) -> Tensor:
        """Per output channel of V's linear, up to the last one used; 1 where it is not V's."""
        count = max(max(columns) for columns in self.site.columns) + 1
        if choice.choose == "none":
            return torch.ones(count, dtype=torch.float64)
        low, high, heaviest, used = (torch.zeros(count, dtype=torch.float64) for _ in range(4))
        for reading, columns in zip(readings, self.site.columns, strict=True):
            index = torch.tensor(columns)
            low.scatter_reduce_(0, index, reading.view.low, "amin")
            high.scatter_reduce_(0, index, reading.view.high, "amax")
            weight = reading.weight.abs().amax(0).to(torch.float64)
            heaviest.scatter_reduce_(0, index, weight, "amax")
            used[index] = 1.0
        seen = View(low, high, torch.zeros_like(low), torch.empty(0), 0)
        return torch.where(used > 0, sqb(seen, heaviest, choice.alpha, "none").scale, 1.0)


Place = NormPlace | ValuePlace


def readings_of(
    place: Place, graph_module: GraphModule, views: Mapping[str, View]
) -> list[Reading]:
    """The readers' inputs and weights, in order."""
    nodes = {node.name: node for node in graph_module.graph.nodes}
    readings = []
    for reader in place.site.readers:
        weight = constant_of(graph_module, nodes[reader.node].args[1])
        assert weight is not None
        readings.append(Reading.of(views[reader.view], weight.detach()))
    return readings
