"""A graph's tensors, laid out for storage and put back under their dotted names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxquant.artifact.arguments import DTYPES
from fxquant.artifact.checks import brief, integer, items, mapping, tensor_name, unsound, unstorable
from fxquant.graph.tensors import tensor_at

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def stored_tensors(graph_module: GraphModule) -> dict[str, Tensor]:
    """Name to a contiguous copy in storage order; a tensor read under two names is copied twice."""
    found: dict[str, Tensor] = {}
    for node in graph_module.graph.nodes:
        if node.op == "get_attr" and str(node.target) not in found:
            value = tensor_at(graph_module, str(node.target)).detach()
            laid_out = value.permute(_storage_order(value))
            found[str(node.target)] = laid_out.clone(memory_format=torch.contiguous_format)
    return found


def encode_table(graph_module: GraphModule) -> dict[str, Any]:
    """What to expect of every tensor: dtype, shape, and the order of its axes in storage.

    The order keeps the strides of a transposed tensor: kernels may round differently for them.
    """
    table: dict[str, Any] = {}
    for node in graph_module.graph.nodes:
        if node.op != "get_attr" or str(node.target) in table:
            continue
        name = str(node.target)
        value = tensor_at(graph_module, name)
        if value.dtype not in _NAMES or value.device.type != "cpu" or value.is_sparse:
            raise unstorable(f"a {value.dtype} tensor on {value.device}", where=f"tensor {name}")
        table[name] = {
            "dtype": _NAMES[value.dtype],
            "shape": list(value.shape),
            "order": _storage_order(value),
        }
    return table


def restore(table: Any, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A module that holds the tensors as buffers; raises where table and tensors disagree."""
    if not isinstance(table, dict) or set(table) != set(tensors):
        raise unsound("the tensors are not those that the graph names", where="graph.json, tensors")
    root = nn.Module()
    for name, entry in table.items():
        where = f"graph.json, tensor {brief(name)}"
        owner, leaf = _owner(root, tensor_name(name, where=where), where=where)
        owner.register_buffer(leaf, _in_place_order(entry, tensors[name], where=where))
    return root


def _in_place_order(entry: Any, stored: Tensor, *, where: str) -> Tensor:
    mapping(entry, {"dtype", "shape", "order"}, where=where)
    order = [integer(axis, where=where) for axis in items(entry["order"], where=where)]
    if sorted(order) != list(range(stored.dim())):
        raise unsound("the order of axes is no permutation", where=where)
    inverse = [order.index(axis) for axis in range(len(order))]
    value = stored.permute(inverse)
    if _NAMES.get(value.dtype) != entry["dtype"] or list(value.shape) != entry["shape"]:
        raise unsound(
            f"expected {brief(entry['dtype'])}, found {value.dtype} of shape {list(value.shape)}",
            where=where,
        )
    return value


def _owner(root: nn.Module, name: str, *, where: str) -> tuple[nn.Module, str]:
    *path, leaf = name.split(".")
    module = root
    for part in path:
        if part in module._buffers:
            raise unsound("a tensor and a module have the same name", where=where)
        if part not in module._modules:
            module.add_module(part, nn.Module())
        child = module._modules[part]
        assert child is not None
        module = child
    if leaf in module._modules or leaf in module._buffers:
        raise unsound("a tensor and a module have the same name", where=where)
    return module, leaf


def _storage_order(value: Tensor) -> list[int]:
    """Axes from the largest stride to the smallest; as they are for gaps, overlaps, empty axes."""
    axes = list(range(value.dim()))
    strides = value.stride()
    order = sorted(axes, key=lambda axis: -strides[axis])
    dense = value.numel() > 0 and value.permute(order).is_contiguous()
    return order if dense and not value.is_contiguous() else axes
