"""``capture``: any supported model into a float graph in normal form."""

from __future__ import annotations

from typing import Any

import torch.utils._pytree as pytree
from torch import nn
from torch.fx import GraphModule

from fxquant.capture import canonical
from fxquant.capture.export import export_graph
from fxquant.capture.inputs import at_least_two, check_inputs, check_model, normalize_example
from fxquant.capture.products import unify_spellings
from fxquant.capture.provenance import record_provenance
from fxquant.capture.symbolic import replayable
from fxquant.graph.layer_names import name_layers
from fxquant.graph.normal_form import require_supported, verify
from fxquant.graph.tensors import prune


def capture(model: nn.Module, example: Any) -> GraphModule:
    """The model's float graph in normal form, with a dynamic batch axis.

    ``model``: an ``nn.Module`` in eval mode, float32, on the CPU, or a ``GraphModule`` from
    ``torch.fx.symbolic_trace``; it is left unchanged, and the graph shares its parameters.
    ``example``: a float32 tensor ``[B, ...]``, a tuple of positional inputs or a dict of keyword
    inputs; any batch size. The graph takes the same arguments in the same structure.

    Raises :class:`~fxquant.errors.CaptureError` (training mode, half precision, untraceable
    code, unsupported operations) and :class:`~fxquant.errors.InputError` (unfit examples).
    """
    check_model(model)
    args, kwargs = normalize_example(example)
    check_inputs(args, kwargs)
    args, kwargs = pytree.tree_map(at_least_two, (args, kwargs))
    door = replayable(model) if isinstance(model, GraphModule) else model
    graph_module = export_graph(door, args, kwargs)
    graph = graph_module.graph
    record_provenance(graph)
    canonical.drop_identities(graph)
    require_supported(graph_module)
    canonical.input_free_factories(graph)
    unify_spellings(graph_module)
    canonical.fold_constants(graph_module)
    unify_spellings(graph_module)  # once more: folding makes constants of transposed weights
    canonical.name_tracer_constants(graph_module)
    canonical.sink_operands(graph)
    name_layers(graph_module)
    prune(graph_module)
    graph_module.meta.clear()
    for module in graph_module.modules():
        module.training = False  # the containers that torch.export makes start out training
    verify(graph_module)
    return graph_module
