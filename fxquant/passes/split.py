"""Outlier channels split into copies, so that a site which one range ruins stays static int8."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.fx import GraphModule, Node

from fxquant.errors import PipelineError, PlanError
from fxquant.graph.layers import Layer, find_layers
from fxquant.graph.tensors import (
    add_buffer,
    attribute_name,
    call,
    constant_of,
    copy_graph,
    prune,
)
from fxquant.passes.split_search import best_split, ruined_sites, whole_ranges
from fxquant.pipeline.base import Pass
from fxquant.pipeline.state import Fact, Note, State
from fxquant.quant.calibration import Calibration
from fxquant.quant.scheme import Scheme
from fxquant.quant.splitting import Split

aten = torch.ops.aten


@dataclass(frozen=True)
class SplitOutliers(Pass):
    """linear(x, W) -> linear(x[c] / k_c + o_i, W[:, c]): channel c comes k_c times, offsets cancel.

    The function stays the same, and the copies of a channel add up to its rounding at the
    quantizer's step (Hermite's identity, see :mod:`fxquant.quant.splitting`), while the range that
    sets the step shrinks. Tried at linears of ``roles`` whose output keeps less than ``floor_db``
    with one min-max range of ``bits`` for the input, measured as
    :class:`~fxquant.passes.plan.SpareOutliers` does, on ``images`` calibration images (at most
    16). ``budget``: most further channels, as a share of those there are. The fewest copies within
    ``slack_db`` of the best are taken; where these win less than that, or stay below ``reach_db``,
    none: another way must be found then.

    A choice ``{"channels", "copies", "step"}`` per layer is recorded and followed.
    """

    budget: float = 0.05
    floor_db: float = 25.0
    reach_db: float = 25.0
    slack_db: float = 1.0
    roles: tuple[str, ...] = ("fc2", "proj")
    images: int = 8
    bits: int = 8

    name: ClassVar[str] = "split_outliers"
    needs: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.GRAPH, Fact.LAYERS, Fact.PLAN, Fact.CALIBRATION, Fact.TARGET}
    )
    gives: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.GRAPH, Fact.FLOAT_GRAPH, Fact.LAYERS, Fact.PLAN}
    )

    def __post_init__(self) -> None:
        if not (0 < self.budget <= 1 and self.images >= 1 and self.slack_db >= 0):
            raise PipelineError(
                f"budget {self.budget:g}, images {self.images}, slack_db {self.slack_db:g}",
                where=f"pass {self.name}",
                fix="the budget is a share in (0, 1], images at least 1, slack_db at least 0",
            )

    def run(self, state: State) -> State:
        """Split where it pays; the plan holds what was found at every site of ``roles``."""
        source, plan = state.graph, state.plan
        sites = [la for la in state.layers if la.role in self.roles and la.kind == "linear"]
        sites = [layer for layer in sites if layer.weight]
        new = [layer for layer in sites if plan.choice(self.name, layer.name) is None]
        if new and state.calibration is not None:
            scheme = Scheme(bits=min(self.bits, state.target.activation_bits))
            for name, found in self._search(source, new, state.calibration, scheme):
                plan = plan.with_choice(self.name, name, found)
        graph_module = GraphModule(source, copy_graph(source.graph))
        nodes = {node.name: node for node in graph_module.graph.nodes}
        notes = []
        for layer in sites:
            chosen = plan.choice(self.name, layer.name) or {"declined": True}
            if not chosen.get("declined"):
                _rewrite(graph_module, layer, nodes[layer.node], _read(chosen, layer))
                notes.append(Note(self.name, layer.name, chosen["reason"]))
        prune(graph_module)
        state = state.having(Fact.PLAN, plan).noting(notes)
        return state.rewritten(graph_module).having(Fact.LAYERS, find_layers(graph_module))

    def _search(
        self,
        graph_module: GraphModule,
        layers: list[Layer],
        calibration: Calibration,
        scheme: Scheme,
    ) -> list[tuple[str, dict[str, Any]]]:
        """Layer names with their choices."""
        seen = ruined_sites(
            graph_module, layers, calibration, scheme, images=self.images, floor_db=self.floor_db
        )
        samples = {name: sample for name, (_, sample) in seen.items() if sample is not None}
        samples = whole_ranges(graph_module, layers, calibration, samples)
        result = []
        for layer in layers:
            before = seen[layer.name][0]
            start = f"one range leaves {before:.1f} dB (floor {self.floor_db:g})"
            if layer.name not in samples:
                result.append((layer.name, {"declined": True, "reason": start}))
                continue
            sample = samples[layer.name]
            most = int(self.budget * sample.x.shape[-1])
            found = best_split(sample, scheme, most=most, slack_db=self.slack_db)
            result.append((layer.name, self._choice(layer, start, before, found)))
        return result

    def _choice(
        self, layer: Layer, start: str, before: float, found: tuple[float, Split] | None
    ) -> dict[str, Any]:
        if found is None:
            why = f"{start}; a budget of {self.budget:g} leaves no room for copies"
            return {"declined": True, "reason": why}
        after, split = found
        channels = (split.copies > 1).nonzero().flatten().tolist()
        further = int((split.copies - 1).sum())
        story = f"{start}; {further} further channels, copies of {len(channels)}, give {after:.1f}"
        if after < max(self.reach_db, before + self.slack_db):
            return {"declined": True, "reason": f"{story}: too little"}
        cost = "; no longer one kernel with its activation" if layer.role == "fc2" else ""
        return {
            "channels": channels,
            "copies": split.copies[channels].tolist(),
            "step": split.step,
            "db_before": before,
            "db_after": after,
            "reason": story + cost,
        }


def _read(chosen: Mapping[str, Any], layer: Layer) -> Split:
    """The split that a plan holds."""
    copies = torch.ones(layer.input_shape[-1], dtype=torch.int64)
    try:
        pairs = dict(zip(chosen["channels"], chosen["copies"], strict=True))
        for channel, count in pairs.items():
            copies[channel] = count
        split = Split(copies, float(chosen["step"]))
    except (KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise PlanError(
            "the plan's choice cannot be carried out",
            where=f"{SplitOutliers.name}@{layer.name}",
            why=f"{type(error).__name__}: {error}",
            fix="give as many copies as channels, each a channel of this layer's input",
        ) from error
    if int(copies.min()) < 1 or not split.step > 0:
        raise PlanError(
            "copies are at least 1 and the step is above 0",
            where=f"{SplitOutliers.name}@{layer.name}",
        )
    return split


def _rewrite(graph_module: GraphModule, layer: Layer, node: Node, split: Split) -> None:
    """Let ``node`` read the copies, by columns of its weight.

    The first copies stay where their channels lie, so that Inductor reads them in vectors and
    gathers the further ones only. Adding comes before multiplying: the other order would pass for
    the affine norm of a ResMLP.
    """
    weight = constant_of(graph_module, node.args[1])
    assert weight is not None
    width = len(split.copies)
    held = {
        "split_shift": split.shift[:width],
        "split_share": split.share[:width],
        "split_further": split.further,
        "split_further_shift": split.shift[width:],
        "split_further_share": split.share[width:],
        "split_weight": weight.detach()[:, split.index],
    }
    shift, share, further, further_shift, further_share, columns = (
        add_buffer(graph_module, attribute_name(layer.name, slot), value, like=node, before=node)
        for slot, value in held.items()
    )

    def emit(target: Any, *args: Any) -> Node:
        return call(graph_module, target, args, like=node)

    with graph_module.graph.inserting_before(node):
        first = emit(aten.add.Tensor, node.args[0], shift)
        first = emit(aten.mul.Tensor, first, share)
        more = emit(aten.index_select.default, node.args[0], -1, further)
        more = emit(aten.add.Tensor, more, further_shift)
        more = emit(aten.mul.Tensor, more, further_share)
        x = emit(aten.cat.default, [first, more], -1)
    node.meta["role"] = layer.role
    node.update_arg(0, x)
    node.update_arg(1, columns)
