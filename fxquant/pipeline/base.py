"""The contract of a pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxquant.pipeline.state import Fact, State


@dataclass(frozen=True)
class Pass:
    """One step: legal graph in, legal graph out. Subclass as a frozen dataclass.

    Fields are the options and print as ``name{"field": value}``. ``needs`` are the facts the pass
    reads, ``gives`` those it sets, ``invalidates`` those that no longer hold after it; an
    impossible order is found when a pipeline is built.

    Example::

        @dataclass(frozen=True)
        class KeepHeadFloat(fxquant.Pass):
            name = "keep_head_float"
            needs = frozenset({fxquant.Fact.PLAN})
            gives = frozenset({fxquant.Fact.PLAN})

            def run(self, state):
                keep = fxquant.Decision(reason="the head stays float")
                return state.having(fxquant.Fact.PLAN, state.plan.with_decision("head:input", keep))
    """

    name: ClassVar[str] = ""
    needs: ClassVar[frozenset[Fact]] = frozenset()
    gives: ClassVar[frozenset[Fact]] = frozenset()
    invalidates: ClassVar[frozenset[Fact]] = frozenset()

    def run(self, state: State) -> State:
        """Carry out the step on a view of the state that holds only ``needs``."""
        raise TypeError(f"pass {type(self).__name__} does not define run(state)")
