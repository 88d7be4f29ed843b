"""Rewrite rules: a pattern, a check that may decline with a reason, a rewrite."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from torch.fx import GraphModule, Node

from fxquant.graph.pattern import Bindings, Pattern, match


@dataclass(frozen=True)
class Decline:
    """Why a rule that matched does not apply here."""

    reason: str


@dataclass(frozen=True)
class Match:
    """A matched root with what the pattern bound."""

    root: Node
    bound: Bindings

    def __getitem__(self, name: str) -> Any:
        return self.bound[name]

    def binding(self, **extra: Any) -> Match:
        """The match with further bindings, for a check that found something out."""
        return Match(self.root, {**self.bound, **extra})

    def get(self, name: str) -> Any:
        """The binding or None, for optional parts."""
        return self.bound.get(name)


class Rule(Protocol):
    """One rewrite. The docstring opens with its equation.

    ``check`` looks at a match and returns it (perhaps enriched) or a :class:`Decline`;
    ``rewrite`` changes the graph and must not fail on what ``check`` let through.
    """

    name: ClassVar[str]
    pattern: ClassVar[Pattern]

    def check(self, graph_module: GraphModule, match: Match) -> Match | Decline:
        """Accept or decline with a reason; never raises."""
        ...

    def rewrite(self, graph_module: GraphModule, match: Match) -> None:
        """Carry out the rewrite."""
        ...


@dataclass(frozen=True)
class Declined:
    """A rule that matched at ``layer`` and declined."""

    rule: str
    layer: str
    reason: str


@dataclass
class RewriteLog:
    """How often each rule applied, and where and why rules declined."""

    applied: dict[str, int] = field(default_factory=dict)
    declined: list[Declined] = field(default_factory=list)


def reasons_of(logs: Iterable[RewriteLog]) -> dict[str, tuple[str, ...]]:
    """Layer to the different reasons of the rules that matched it and declined, in order."""
    found: dict[str, dict[str, None]] = {}
    for entry in (entry for log in logs for entry in log.declined):
        found.setdefault(entry.layer, {})[entry.reason] = None
    return {layer: tuple(texts) for layer, texts in found.items()}


@dataclass(frozen=True)
class RuleSet:
    """Rules tried in order on every node; sets add with ``+``."""

    rules: tuple[Rule, ...]

    def __add__(self, other: RuleSet) -> RuleSet:
        return RuleSet(self.rules + other.rules)

    def apply(self, graph_module: GraphModule) -> RewriteLog:
        """One sweep in graph order, changing ``graph_module`` in place."""
        log = RewriteLog()
        for node in list(graph_module.graph.nodes):
            if node.op != "call_function" or node._erased:
                continue
            for rule in self.rules:
                if self._try(graph_module, rule, node, log):
                    break
        graph_module.graph.eliminate_dead_code()
        graph_module.recompile()
        return log

    @staticmethod
    def _try(graph_module: GraphModule, rule: Rule, node: Node, log: RewriteLog) -> bool:
        bound = match(rule.pattern, node)
        if bound is None:
            return False
        verdict = rule.check(graph_module, Match(node, bound))
        if isinstance(verdict, Decline):
            layer = str(node.meta.get("layer", ""))
            log.declined.append(Declined(rule.name, layer, verdict.reason))
            return False
        rule.rewrite(graph_module, verdict)
        log.applied[rule.name] = log.applied.get(rule.name, 0) + 1
        return True
