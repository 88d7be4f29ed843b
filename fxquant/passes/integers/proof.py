"""That no float arithmetic stands between the input's quantizer and the logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from fxquant.errors import VerificationError
from fxquant.graph.tensors import fake_mode_of
from fxquant.quant import ops
from fxquant.quant.integer.operators import LEAVES


@dataclass(frozen=True)
class Proof:
    """Counts of ATen operators: on integers, on floats before the first codes and after the last,
    and of roots, which do not decompose."""

    integer: int
    before: int
    after: int
    roots: int


def prove_integer(graph_module: GraphModule) -> Proof:
    """Walk the *decomposed* graph; :class:`VerificationError` names each offending operation.

    A float tensor may be made of the inputs before they are codes, or of codes that nothing but
    the model's outputs come of; that last one must be a single dequantization each.
    """
    inputs = [n.meta["val"] for n in graph_module.graph.nodes if n.op == "placeholder"]
    for node in graph_module.graph.nodes:
        if node.op == "output" and any(
            made.target is not ops.dequantize_per_tensor for made in node.all_input_nodes
        ):
            raise _broken([f"output {node.format_node()} is more than a dequantization"])
    with fake_mode_of(graph_module), torch.no_grad():
        bare = GraphModule(graph_module, graph_module.graph)  # without checks of the inputs
        flat = make_fx(bare, pre_dispatch=False, _allow_non_fake_inputs=True)(*inputs)
    return _walk(flat)


def _walk(flat: GraphModule) -> Proof:
    from_codes, to_codes = _between(flat)
    wrong, counts = [], {"integer": 0, "before": 0, "after": 0, "roots": 0}
    for node in flat.graph.nodes:
        if node.op != "call_function" or not _tensors(node):
            continue
        ours = getattr(node.target, "namespace", "") == "fxquant"
        if ours and node.target not in LEAVES:
            wrong.append(f"{node.target} did not decompose")
        counts["roots"] += node.target in LEAVES
        if _is_integer(node):
            counts["integer"] += 1
        elif node in from_codes and node in to_codes:
            wrong.append(f"{node.format_node()}: float between codes")
        else:
            counts["after" if node in from_codes else "before"] += 1
    if wrong or not counts["integer"]:
        raise _broken(wrong or ["it computes nothing on integers"])
    return Proof(**counts)


def _between(flat: GraphModule) -> tuple[set[Node], set[Node]]:
    """Nodes that depend on integers made of the inputs, and those that integers are made of."""
    from_codes: set[Node] = set()
    reached: set[Node] = {n for n in flat.graph.nodes if n.op == "placeholder"}
    for node in flat.graph.nodes:
        parents = set(node.all_input_nodes)
        if parents & reached:
            reached.add(node)
        if parents & from_codes or (node in reached and _is_integer(node)):
            from_codes.add(node)
    to_codes: set[Node] = set()
    for node in reversed(flat.graph.nodes):
        if any(user in to_codes or _is_integer(user) for user in node.users):
            to_codes.add(node)
    return from_codes, to_codes


def _tensors(node: Node) -> list[Tensor]:
    leaves: list[Any] = torch.utils._pytree.tree_leaves(node.meta.get("val"))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _is_integer(node: Node) -> bool:
    tensors = _tensors(node)
    return bool(tensors) and not any(t.is_floating_point() or t.is_complex() for t in tensors)


def _broken(what: list[str]) -> VerificationError:
    return VerificationError(
        "the graph is not integer-only",
        where="; ".join(what[:5]) + (" ..." if len(what) > 5 else ""),
        fix="every tensor between the input's quantizer and the logits needs codes",
    )
