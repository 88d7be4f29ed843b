"""Carrying a migration out on a graph: new tensors, the same function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxquant.graph.pattern import match
from fxquant.graph.roles.norms import AFFINE
from fxquant.graph.tensors import (
    add_buffer,
    attribute_name,
    constant_of,
    exchange_argument,
    read_buffer,
)
from fxquant.passes.folding.migration import Migration
from fxquant.passes.folding.sites import FoldSite
from fxquant.passes.folding.values import ValueSite

aten = torch.ops.aten


def folded_norm(
    gamma: Tensor, beta: Tensor | None, migration: Migration
) -> tuple[Tensor, Tensor | None]:
    """``gamma' = gamma scale``, ``beta' = (beta - shift) scale``; the channel axis is the last.

    Arithmetic in float64, results in the dtype of ``gamma``. Without beta and shift, none is made.
    """
    scaled = (gamma.to(torch.float64) * migration.scale).to(gamma.dtype)
    if beta is None and not bool(migration.shift.any()):
        return scaled, None
    start: Any = 0.0 if beta is None else beta.to(torch.float64)
    return scaled, ((start - migration.shift) * migration.scale).to(gamma.dtype)


def folded_linear(
    weight: Tensor, bias: Tensor | None, migration: Migration
) -> tuple[Tensor, Tensor | None]:
    """``W' = W / scale`` (columns), ``b' = b + W shift``; a shift without a bias makes one."""
    exact = weight.to(torch.float64)
    scaled = (exact / migration.scale).to(weight.dtype)
    if not bool(migration.shift.any()):
        return scaled, bias
    moved = exact @ migration.shift
    if bias is not None:
        moved = moved + bias.to(torch.float64)
    return scaled, moved.to(weight.dtype)


def fold(graph_module: GraphModule, site: FoldSite, migration: Migration) -> None:
    """``Y W^T + b = ((Y - m) e) (W / e)^T + (b + W m)`` at a norm and all its linears, in place.

    ``Y = n gamma + beta`` becomes ``n gamma' + beta'``, so no operation is added (MPTQ-ViT, SQ-b;
    papers, section 2a). A weight that several of the linears hold stays one.
    """
    nodes = {node.name: node for node in graph_module.graph.nodes}
    _rewrite_norm(graph_module, nodes[site.node], site.layer, migration)
    made: dict[str, Node] = {}
    for reader in site.readers:
        _rewrite_columns(graph_module, nodes[reader.node], reader.layer, migration, made)


def fold_value(graph_module: GraphModule, site: ValueSite, scale: Tensor) -> None:
    """``(A V) W^T = (A (V e)) (W / e)^T``: V's rows times e, the readers' columns by e, in place.

    ``scale``: float64, one entry per output channel of the linear that makes V; 1 for Q and K.
    """
    nodes = {node.name: node for node in graph_module.graph.nodes}
    assert site.source is not None
    source = nodes[site.source.node]
    weight, bias = (constant_of(graph_module, a) for a in (*source.args[1:3], None)[:2])
    assert weight is not None
    rows = (weight.to(torch.float64) * scale[:, None]).to(weight.dtype)
    _replace(graph_module, source, 1, rows, site.source.layer, "weight")
    if bias is not None:
        scaled = (bias.to(torch.float64) * scale).to(bias.dtype)
        _replace(graph_module, source, 2, scaled, site.source.layer, "bias")
    made: dict[str, Node] = {}
    for reader, columns in zip(site.readers, site.columns, strict=True):
        own = scale[list(columns)]
        migration = Migration(torch.zeros_like(own), own)
        _rewrite_columns(graph_module, nodes[reader.node], reader.layer, migration, made)


def _rewrite_norm(graph_module: GraphModule, norm: Node, layer: str, migration: Migration) -> None:
    if norm.target is not aten.layer_norm.default:
        _rewrite_affine(graph_module, norm, layer, migration)
        return
    gamma, beta = (constant_of(graph_module, a) for a in (*norm.args[2:4], None, None)[:2])
    if gamma is None:
        gamma = torch.ones(migration.scale.shape[0], dtype=norm.meta["val"].dtype)
    scaled, moved = folded_norm(gamma, beta, migration)
    _replace(graph_module, norm, 2, scaled, layer, "weight")
    if moved is not None:
        _replace(graph_module, norm, 3, moved, layer, "bias")


def _rewrite_affine(
    graph_module: GraphModule, norm: Node, layer: str, migration: Migration
) -> None:
    bound = match(AFFINE, norm)
    assert bound is not None
    scale, shift = bound["scale"], bound["shift"]
    gamma, beta = constant_of(graph_module, scale), constant_of(graph_module, shift)
    assert gamma is not None
    assert beta is not None
    wide = beta.expand(*beta.shape[:-1], gamma.shape[-1])  # one summand may serve all channels
    tensors = folded_norm(gamma, wide, migration)
    made = []
    for value, slot in zip(tensors, ("weight", "bias"), strict=True):
        assert value is not None
        name = attribute_name(layer, f"smooth_{slot}")
        first = next((a for a in norm.all_input_nodes if a.target is aten.mul.Tensor), norm)
        made.append(add_buffer(graph_module, name, value, like=norm, before=first))
    if norm.target is aten.addcmul.default:
        norm.args = (made[1], made[0], norm.args[2])
        return
    product = next(a for a in norm.all_input_nodes if a.target is aten.mul.Tensor)
    product.args = tuple(made[0] if a is scale else a for a in product.args)
    norm.args = tuple(made[1] if a is shift else a for a in norm.args)


def _rewrite_columns(
    graph_module: GraphModule,
    linear: Node,
    layer: str,
    migration: Migration,
    made: dict[str, Node],
) -> None:
    old, bias = linear.args[1], constant_of(graph_module, (*linear.args, None)[2])
    weight = constant_of(graph_module, old)
    assert isinstance(old, Node)
    assert weight is not None
    scaled, moved = folded_linear(weight, bias, migration)
    target = str(old.target)
    if target in made:
        with graph_module.graph.inserting_before(linear):
            again = read_buffer(graph_module, str(made[target].target), like=linear, value=scaled)
        linear.update_arg(1, again)
    else:
        made[target] = _replace(graph_module, linear, 1, scaled, layer, "weight")
    if moved is not None and moved is not bias:
        _replace(graph_module, linear, 2, moved, layer, "bias")


def _replace(
    graph_module: GraphModule, node: Node, place: int, value: Tensor, layer: str, slot: str
) -> Node:
    """Let argument ``place`` of ``node`` be a new buffer."""
    name = attribute_name(layer, f"smooth_{slot}")
    return exchange_argument(graph_module, node, place, name, value.detach())
