"""Passes made for the tests, and a state to run them on."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxquant.capture import capture
from fxquant.graph.tensors import call, copy_graph
from fxquant.pipeline.base import Pass
from fxquant.pipeline.plan import Plan
from fxquant.pipeline.state import Fact, Note, State
from fxquant.pipeline.target import Target
from fxquant.quant.calibration import Calibration
from fxquant.quant.scheme import Scheme

TARGET = Target(backend="reference", machine="any")
aten = torch.ops.aten


class Block(nn.Module):
    """A residual MLP and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.act, self.head = nn.GELU(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.fc2(self.act(self.fc1(self.norm(x))))
        out: Tensor = self.head(x.mean(1))
        return out


def data(count: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(count, 4, 8, generator=torch.Generator().manual_seed(seed))


@cache
def _captured() -> GraphModule:
    return capture(Block().eval(), data(2))


def graph() -> GraphModule:
    """The block's graph, a copy of its own for each caller."""
    return GraphModule(_captured(), copy_graph(_captured().graph))


def state(**facts: Any) -> State:
    float_graph = graph()
    known: dict[Fact, Any] = {
        Fact.GRAPH: float_graph,
        Fact.FLOAT_GRAPH: float_graph,
        Fact.CALIBRATION: Calibration(data(), ("x",), ((4, 8),)),
        Fact.TARGET: TARGET,
        Fact.PLAN: Plan({}, TARGET),
    }
    return State(known | {Fact(name): value for name, value in facts.items()})


@dataclass(frozen=True)
class Inner:
    text: str
    number: int = 3


@dataclass(frozen=True)
class Options(Pass):
    """One option of every kind."""

    flag: bool = False
    count: int = 2
    share: float = 0.5
    label: str = "a"
    kind: Literal["left", "right"] = "left"
    scheme: Scheme = Scheme()  # noqa: RUF009
    maybe: float | None = None
    many: tuple[Inner, ...] = ()
    words: tuple[str, ...] = field(default_factory=tuple)
    pair: tuple[float, str] = (1.0, "b")
    nested: tuple[tuple[int, ...], ...] = ()

    name: ClassVar[str] = "options"

    def run(self, state: State) -> State:
        return state


@dataclass(frozen=True)
class Required(Pass):
    """An option without a default."""

    count: int

    name: ClassVar[str] = "required"

    def run(self, state: State) -> State:
        return state


@dataclass(frozen=True)
class MakesRanges(Pass):
    """Gives statistics, whatever it is told to."""

    value: str = "a range"

    name: ClassVar[str] = "makes_ranges"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.TARGET})
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.STATISTICS})

    def run(self, state: State) -> State:
        note = Note(self.name, "", self.value)
        return state.having(Fact.STATISTICS, self.value).noting([note])


@dataclass(frozen=True)
class ReadsRanges(Pass):
    """Needs statistics and gives layers."""

    name: ClassVar[str] = "reads_ranges"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.STATISTICS})
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.LAYERS})

    def run(self, state: State) -> State:
        return state.having(Fact.LAYERS, (str(state.statistics),))


@dataclass(frozen=True)
class Negates(Pass):
    """Puts ``neg(neg(x))`` after the activation."""

    name: ClassVar[str] = "negates"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.GRAPH})
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.GRAPH})
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.LAYERS})

    def run(self, state: State) -> State:
        changed = GraphModule(state.graph, copy_graph(state.graph.graph))
        act = next(n for n in changed.graph.nodes if n.target is aten.gelu.default)
        with changed.graph.inserting_after(act):
            made = call(changed, aten.neg.default, (act,), like=act)
        with changed.graph.inserting_after(made):
            back = call(changed, aten.neg.default, (made,), like=act)
        act.replace_all_uses_with(back, delete_user_cb=lambda user: user is not made)
        changed.recompile()
        return state.having(Fact.GRAPH, changed)
