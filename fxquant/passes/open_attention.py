"""Write fused attention out, so that its two products can be quantized."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxquant.graph.layers import find_layers
from fxquant.graph.pattern import Any_, Op, Pattern
from fxquant.graph.rule import Decline, Match, Rule, RuleSet
from fxquant.graph.tensors import add_buffer, attribute_name, call, constant_of, copy_graph, prune
from fxquant.graph.weighted import row_exponentials, weighted_mean
from fxquant.pipeline.base import Pass
from fxquant.pipeline.state import Fact, Note, State

aten = torch.ops.aten
_FUSED = aten.scaled_dot_product_attention.default
_NAMES = tuple(argument.name for argument in _FUSED._schema.arguments)


@dataclass(frozen=True)
class OpenAttention(Pass):
    """sdpa(q, k, v, M) -> softmax(q kᵀ · scale + M) v, or e v / sum(e).

    An exact rewrite: the same function of the same tensors. ``only``: glob over the names of the
    fused layers; ``blocks.0.attn.sdpa`` becomes ``blocks.0.attn.qk``, ``.softmax`` and ``.av``.
    Where the target has no kernels for products of activations, fused attention is faster and
    stays, unless ``simulate`` is ``ask``. What cannot be written out exactly stays fused, with a
    note.

    ``form``: ``shares`` keeps the softmax; ``exponentials`` puts the division behind the second
    product, also where attention is written out already, so that a quantizer sees
    ``e = exp(s - max s)``, whose range is [0, 1] in every row.
    """

    only: str = "*"
    simulate: Literal["never", "ask"] = "never"
    form: Literal["shares", "exponentials"] = "shares"

    name: ClassVar[str] = "open_attention"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.GRAPH, Fact.TARGET})
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.GRAPH, Fact.FLOAT_GRAPH, Fact.LAYERS})

    def run(self, state: State) -> State:
        """Set the graph and its layers anew."""
        source = state.graph
        graph_module = GraphModule(source, copy_graph(source.graph))
        lacks = "" if state.target.matmul or self.simulate == "ask" else state.target.backend
        rules: list[tuple[Rule, str]] = [(WriteOut(self.only, lacks), "attention stays fused")]
        if self.form == "exponentials" and not lacks:
            rules.append((DivideLast(self.only), "its softmax stays whole"))
        notes = [
            Note(self.name, declined.layer, f"{kept}: {declined.reason}")
            for rule, kept in rules
            for declined in RuleSet((rule,)).apply(graph_module).declined
            if fnmatchcase(declined.layer, self.only)
        ]
        prune(graph_module)
        state = state.rewritten(graph_module).noting(notes)
        return state.having(Fact.LAYERS, find_layers(graph_module))


@dataclass(frozen=True)
class WriteOut:
    """sdpa(q, k, v, M) -> softmax(q kᵀ · scale + M) v, with scale = 1/sqrt(d) unless given.

    A boolean ``M`` becomes 0 where it is true and -inf where it is false; so does causality.
    ``lacks``: the backend that has no kernels for the result, if so.
    """

    only: str = "*"
    lacks: str = ""

    name: ClassVar[str] = "open-attention"
    pattern: ClassVar[Pattern] = Op((_FUSED,), (Any_("q"), Any_("k"), Any_("v")))

    def check(self, graph_module: GraphModule, match: Match) -> Match | Decline:
        """The whole of the fused kernel's arguments, with the mask's constant as a tensor."""
        given = dict(zip(_NAMES, match.root.args, strict=False)) | match.root.kwargs
        if not fnmatchcase(str(match.root.meta["layer"]), self.only):
            return Decline(f"it does not match {self.only!r}")
        if self.lacks:
            return Decline(f"{self.lacks} has no int8 kernel for products of activations")
        if given.get("dropout_p", 0.0) != 0.0:
            return Decline("dropout draws random numbers")
        if given.get("enable_gqa", False):
            return Decline("its queries share keys (enable_gqa)")
        queries, depth = match["q"].meta["val"].shape[-2:]
        keys = match["k"].meta["val"].shape[-2]
        if not all(isinstance(size, int) for size in (queries, keys, depth)):
            return Decline("its number of tokens is not fixed")
        mask = _constant_mask(graph_module, given, queries, keys)
        if isinstance(mask, Decline):
            return mask
        scale = given.get("scale")
        scale = 1.0 / math.sqrt(depth) if scale is None else scale
        return match.binding(scale=scale, constant=mask, mask=given.get("attn_mask"))

    def rewrite(self, graph_module: GraphModule, match: Match) -> None:
        """Put the products, the softmax and what stands between them before the fused node."""
        root, taken = match.root, {str(n.meta["layer"]) for n in graph_module.graph.nodes}

        def make(part: str, target: Any, *args: Any) -> Node:
            node = call(graph_module, target, args, like=root)
            node.meta["layer"] = names[part]
            return node

        names = {part: _name(str(root.meta["layer"]), part, taken) for part in _PARTS}
        with graph_module.graph.inserting_before(root):
            keys = make("qk", aten.transpose.int, match["k"], -2, -1)
            scores = make("qk", aten.matmul.default, match["q"], keys)
            scores = make("qk", aten.mul.Tensor, scores, match["scale"])
            if (mask := self._mask(graph_module, match, names["qk"])) is not None:
                scores = make("softmax", aten.add.Tensor, scores, mask)
            shares = make("softmax", aten.softmax.int, scores, -1)
            result = make("av", aten.matmul.default, shares, match["v"])
        root.replace_all_uses_with(result)
        graph_module.graph.erase_node(root)  # never seen as dead: it could draw random numbers

    def _mask(self, graph_module: GraphModule, match: Match, layer: str) -> Node | None:
        constant, given = match["constant"], match["mask"]
        if constant is None:
            return given if isinstance(given, Node) else None
        name = attribute_name(layer, "mask")
        return add_buffer(graph_module, name, constant, like=match.root, before=match.root)


@dataclass(frozen=True)
class DivideLast:
    """softmax(s) v -> e v / sum(e), with e = exp(s - max s)."""

    only: str = "*"

    name: ClassVar[str] = "divide-last"
    pattern: ClassVar[Pattern] = Op(
        (aten.matmul.default,),
        (Op((aten.softmax.int,), (Any_("scores"),), name="softmax", sole_user=True), Any_("v")),
    )

    def check(self, graph_module: GraphModule, match: Match) -> Match | Decline:
        """A softmax over the last axis, in the scores' own dtype."""
        softmax = match["softmax"]
        axes = len(softmax.meta["val"].shape)
        layer = str(match.root.meta["layer"])
        if not any(fnmatchcase(name, self.only) for name in (layer, _fused_name(layer))):
            return Decline(f"it does not match {self.only!r}")
        if softmax.args[1] not in (-1, axes - 1) or len(softmax.args) > 2 or softmax.kwargs:
            return Decline("its softmax is over another axis than the keys, or casts")
        return match

    def rewrite(self, graph_module: GraphModule, match: Match) -> None:
        """Exponentials for the softmax, a weighted mean for the product."""
        root, softmax = match.root, match["softmax"]
        with graph_module.graph.inserting_before(root):
            made = call(graph_module, row_exponentials, (match["scores"],), like=softmax)
            mean = call(graph_module, weighted_mean, (made, match["v"]), like=root)
        root.replace_all_uses_with(mean)


_PARTS = ("qk", "softmax", "av")


def _fused_name(product: str) -> str:
    """``attn.av@2`` -> ``attn.sdpa@2``: what the layer was called while it was fused."""
    stem, mark, called = product.partition("@")
    return (stem.removesuffix("av") + "sdpa" if stem.endswith("av") else stem) + mark + called


def _name(fused: str, part: str, taken: set[str]) -> str:
    """``attn.sdpa@2`` -> ``attn.qk@2``, numbered on where that name is taken."""
    stem, _, called = fused.partition("@")
    stem = "" if stem == "sdpa" else stem.removesuffix(".sdpa")
    base, number = f"{stem}.{part}".lstrip("."), int(called or 1)
    while (name := base if number == 1 else f"{base}@{number}") in taken:
        number += 1
    return name


def _constant_mask(
    graph_module: GraphModule, given: dict[str, Any], queries: int, keys: int
) -> Tensor | Decline | None:
    """What a constant mask adds to the scores; None without one, or where a float one is added as
    it stands."""
    mask, causal = given.get("attn_mask"), given.get("is_causal", False)
    if causal and mask is not None:
        return Decline("it has a mask and is causal")
    if causal:
        return _added(torch.ones(queries, keys, dtype=torch.bool).tril())
    if mask is None:
        return None
    constant = constant_of(graph_module, mask)
    if constant is None:
        variable = mask.meta["val"].dtype is torch.bool
        why = "its boolean mask is computed while the model runs, and may mask whole rows"
        return Decline(why) if variable else None
    added = _added(constant) if constant.dtype is torch.bool else constant
    if bool((added == -math.inf).all(-1).any()):
        return Decline("its mask leaves whole rows without a key: only the fused kernel gives 0")
    return added if constant.dtype is torch.bool else None


def _added(keep: Tensor) -> Tensor:
    """0 where a boolean mask keeps, -inf where it does not."""
    return torch.zeros(keep.shape).masked_fill(~keep, -math.inf)
