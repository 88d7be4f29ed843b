"""Calibration data in any usual form, as a stream of checked batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from fxquant.errors import CalibrationError

BATCH = 16  # samples per forward when a tensor is given whole
LIMIT = 1024  # samples read by default: ranges hardly move after a few hundred

Leaves = tuple[Tensor, ...]


def parts_of(leaves: Leaves, images: int) -> Iterator[Leaves]:
    """``leaves`` in parts of ``images`` samples, the last of what remains."""
    yield from zip(*(leaf.split(images) for leaf in leaves), strict=True)


def first_batch(source: Any) -> tuple[Any, Any]:
    """The first batch and a source that still yields it, so that one-shot iterators survive."""
    if isinstance(source, Tensor):
        if source.dim() == 0 or source.shape[0] == 0:
            raise CalibrationError("the calibration tensor is empty", where="argument calibration")
        return source[:BATCH], source
    if isinstance(source, (str, bytes, dict)) or not isinstance(source, Iterable):
        raise CalibrationError(
            f"cannot calibrate from {type(source).__name__}",
            where="argument calibration",
            fix="pass a tensor [N, ...], a list of batches, a DataLoader or a folder of images",
        )
    iterator = iter(source)
    try:
        first = next(iterator)
    except StopIteration:
        raise CalibrationError(
            "the calibration data is empty",
            where="argument calibration",
            fix="pass at least one batch; 32 to 128 images are usual",
        ) from None
    if first is None:
        raise CalibrationError("a batch is None", where="calibration batch 0")
    if iterator is source:  # a generator: what was taken must be put back
        return first, itertools.chain([first], iterator)
    return first, source


class Calibration:
    """Batches as flat tuples of tensors in the order of the graph's inputs.

    ``source``: a tensor ``[N, ...]``, or an iterable of batches (tensors, ``(x, y)`` tuples or
    lists of which the leading elements are inputs, dicts keyed by input name).
    ``names`` and ``shapes``: the graph's inputs, shapes without the batch axis.
    Every batch is checked: float32, the right shape, finite; errors name batch and input.
    """

    def __init__(
        self,
        source: Any,
        names: tuple[str, ...],
        shapes: tuple[tuple[int, ...], ...],
        *,
        limit: int = LIMIT,
    ) -> None:
        if type(limit) is not int or limit < 1:
            raise CalibrationError(
                f"cannot read {limit!r} samples",
                where="argument limit",
                fix="give the largest number of samples to read, at least 1",
            )
        self.names = names
        self.shapes = shapes
        self.limit = limit
        self._source = source
        self._head: list[Leaves] = []

    def batches(self) -> Iterator[Leaves]:
        """All batches, up to ``limit`` samples; at least one or :class:`CalibrationError`."""
        seen = 0
        for number, batch in enumerate(self._raw()):
            if seen >= self.limit:
                break
            leaves = self._checked(self._leaves(batch, number), number)
            leaves = tuple(leaf[: self.limit - seen] for leaf in leaves)
            if number == 0:
                self._head = []
            if seen < BATCH:  # kept for sample(), whatever the source's batch size
                self._head.append(tuple(leaf[: BATCH - seen] for leaf in leaves))
            seen += leaves[0].shape[0]
            yield leaves
        if seen == 0:
            raise CalibrationError(
                "the calibration data is empty",
                where="argument calibration",
                fix="pass images, a list of batches or a DataLoader that holds some",
            )

    def sample(self, count: int) -> Leaves:
        """The first ``count`` samples, at most 16; before ``batches`` ran, of the first batch."""
        if not self._head:
            first, self._source = first_batch(self._source)
            leaves = self._checked(self._leaves(first, 0), 0)
            self._head = [tuple(leaf[: self.limit] for leaf in leaves)]
        return tuple(torch.cat(leaf)[:count] for leaf in zip(*self._head, strict=True))

    def __len__(self) -> int:
        """Number of batches where the source knows it, else 0."""
        if isinstance(self._source, Tensor):
            return -(-min(self._source.shape[0], self.limit) // BATCH)
        try:
            return len(self._source)
        except TypeError:
            return 0

    def _raw(self) -> Iterator[Any]:
        if isinstance(self._source, Tensor):
            return iter(self._source.split(BATCH))
        if isinstance(self._source, Iterator):
            self._source = list(self._until_enough(self._source))
        return iter(self._source)

    def _until_enough(self, source: Iterator[Any]) -> Iterator[Any]:
        """What a generator yields up to ``limit`` samples, to be held: passes read it again."""
        seen = 0
        for number, batch in enumerate(source):
            yield batch
            seen += self._leaves(batch, number)[0].shape[0]
            if seen >= self.limit:
                return

    def _leaves(self, batch: Any, number: int) -> list[Any]:
        count = len(self.names)
        if isinstance(batch, Tensor):
            return [batch]
        if isinstance(batch, dict) and all(name in batch for name in self.names):
            return [batch[name] for name in self.names]
        if isinstance(batch, (tuple, list)) and len(batch) >= count:
            head = list(batch[:count])
            if all(isinstance(leaf, Tensor) for leaf in head):
                return head
        leaves = pytree.tree_leaves(batch)
        if len(leaves) == count:
            return leaves
        raise CalibrationError(
            f"a batch of type {type(batch).__name__} does not fit the model's inputs",
            where=f"calibration batch {number}",
            why=f"the model takes {', '.join(self.names)}",
            fix="yield a tensor, a tuple whose leading elements are the inputs, or a dict of them",
        )

    def _checked(self, leaves: list[Any], number: int) -> Leaves:
        if len(leaves) != len(self.names):
            raise CalibrationError(
                f"{len(leaves)} tensors for {len(self.names)} inputs",
                where=f"calibration batch {number}",
            )
        for name, shape, leaf in zip(self.names, self.shapes, leaves, strict=True):
            place = f"calibration batch {number}, input {name}"
            if not isinstance(leaf, Tensor):
                raise CalibrationError(f"{type(leaf).__name__} is not a tensor", where=place)
            if leaf.dtype != torch.float32:
                raise CalibrationError(
                    f"inputs must be float32, not {leaf.dtype}",
                    where=place,
                    fix="apply the model's preprocessing: (image / 255 - mean) / std",
                )
            if tuple(leaf.shape[1:]) != shape or leaf.dim() == 0:
                raise CalibrationError(
                    f"shape {tuple(leaf.shape)} does not fit the model",
                    where=place,
                    why=f"the model was captured for [batch, {', '.join(map(str, shape))}]",
                    fix="resize the images, or pass example= of the right shape",
                )
            if leaf.shape[0] == 0:
                raise CalibrationError("a batch is empty", where=place)
            if not bool(torch.isfinite(leaf).all()):
                raise CalibrationError(
                    "the data holds NaN or infinity",
                    where=place,
                    fix="remove the sample or correct the preprocessing",
                )
        if len({leaf.shape[0] for leaf in leaves}) > 1:
            raise CalibrationError(
                "the inputs disagree on the batch size", where=f"calibration batch {number}"
            )
        return tuple(leaf.detach().cpu() for leaf in leaves)
