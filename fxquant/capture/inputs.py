"""Checks on the model and its example inputs before anything is traced."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from fxquant.errors import CaptureError, InputError


def normalize_example(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """``(args, kwargs)`` of a call: a tensor is one argument, a tuple several, a dict keywords."""
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, tuple):
        return example, {}
    if isinstance(example, dict) and all(isinstance(key, str) for key in example):
        return (), dict(example)
    if isinstance(example, list):
        return (example,), {}
    raise InputError(
        f"cannot call a model with an example of type {type(example).__name__}",
        where="argument example",
        fix="pass a tensor, a tuple of positional inputs, or a dict of keyword inputs",
    )


def check_inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Batch size shared by all float32 tensor inputs; anything else is refused."""
    leaves = pytree.tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if not tensors:
        raise InputError("the example holds no tensor", where="argument example")
    for position, tensor in enumerate(tensors):
        place = f"input {position} of shape {tuple(tensor.shape)}"
        if tensor.dtype != torch.float32:
            raise InputError(
                f"inputs must be float32, not {tensor.dtype}",
                where=place,
                fix="convert first, e.g. (images.float() / 255 - mean) / std",
            )
        if tensor.dim() == 0 or tensor.numel() == 0:
            raise InputError(
                "an input has no batch axis or no elements",
                where=place,
                fix="give a batch of at least one sample on axis 0",
            )
        if tensor.device.type != "cpu":
            raise InputError(
                f"inputs must lie on the CPU, not on {tensor.device}",
                where=place,
                fix="move the model and the data to the CPU with .cpu()",
            )
    batches = {int(tensor.shape[0]) for tensor in tensors}
    if len(batches) > 1:
        raise InputError(
            f"inputs disagree on the batch size: {sorted(batches)}", where="argument example"
        )
    return batches.pop()


def at_least_two(value: Any) -> Any:
    """Repeat a batch of one: a size of 1 would be taken for a constant by torch.export."""
    if isinstance(value, Tensor) and value.shape[0] == 1:
        return value.expand(2, *value.shape[1:]).contiguous()
    return value


def check_model(model: nn.Module) -> None:
    """Refuse what cannot be quantized faithfully: training mode, half precision, other devices."""
    if not isinstance(model, nn.Module):
        raise CaptureError(
            f"fxquant takes an nn.Module, not {type(model).__name__}",
            where="argument model",
            fix="pass the model itself, for example timm.create_model(...).eval()",
        )
    # symbolic_trace makes bare containers that stay in training mode and compute nothing.
    computing = ((n, m) for n, m in model.named_modules() if type(m) is not nn.Module)
    training = next((name for name, module in computing if module.training), None)
    if training is not None:
        raise CaptureError(
            "the model is in training mode",
            where=f"module {training or '(the model itself)'}",
            why="dropout and stochastic depth would be frozen into the graph",
            fix="call model.eval() first",
        )
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise CaptureError(
                f"the model holds {tensor.dtype} tensors",
                where=name,
                fix="convert it with model.float() first; fxquant chooses the precision itself",
            )
        if tensor.device.type != "cpu":
            raise CaptureError(
                f"the model lies on {tensor.device}", where=name, fix="call model.cpu() first"
            )
