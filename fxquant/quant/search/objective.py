"""What a quantizer does to a sample: the squared error that a search makes least.

``mse``: ``sum e^2`` with ``e = x - x'``. ``output``: ``sum (e W^T)^2``, what the consumer makes of
the error. ``fisher``: ``sum g^2 (e W^T)^2`` with the gradient g of the loss at the consumer's
output, the Hessian-guided metric of PTQ4ViT (papers, section 2a).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.errors import InputError
from fxquant.quant.qparams import QParams
from fxquant.quant.quantizer import fake_quantize
from fxquant.quant.scheme import Scheme

_CHUNKS = 8
_SMALLEST_CHUNK = 32  # rows: below, the calls cost more than the arithmetic


@dataclass(frozen=True)
class Objective:
    """Squared errors of one tensor or head, chunk of rows by chunk of rows.

    ``rows``: float32 ``[n, C]``. ``factor``: None, or float32 ``[C, K]`` with
    ``factor factor^T = W^T W`` (with ``importance``, ``W^T`` itself). ``importance``: None, or
    float32 ``[n, K]``. ``count``: elements of the output, ``n O``.
    """

    rows: Tensor
    factor: Tensor | None
    importance: Tensor | None
    count: int

    @property
    def chunk_rows(self) -> int:
        """Rows of a chunk."""
        return max(-(-self.rows.shape[0] // _CHUNKS), _SMALLEST_CHUNK)

    @property
    def chunks(self) -> int:
        """Number of chunks; an error is a sum over them."""
        return -(-self.rows.shape[0] // self.chunk_rows)

    def partial(self, qparams: QParams, chunk: int) -> float:
        """Squared error of one chunk; ``qparams`` is per tensor."""
        part = slice(chunk * self.chunk_rows, (chunk + 1) * self.chunk_rows)
        x = self.rows[part]
        error = x - fake_quantize(x, qparams)
        if self.factor is not None:
            error = error @ self.factor
        weighted = error if self.importance is None else error * self.importance[part]
        return float(torch.dot(weighted.flatten(), error.flatten()))

    def total(self, qparams: QParams) -> float:
        """Squared error of all rows."""
        return sum(self.partial(qparams, chunk) for chunk in range(self.chunks))


def make_objectives(
    scheme: Scheme, rows: Tensor, output: Tensor | None, importance: Tensor | None
) -> tuple[Objective, ...]:
    """One objective per tensor, or one per head for rows ``[H, ..., d]``."""
    heads = scheme.granularity == "head"
    _require_matrix("rows", rows, 3 if heads else 2)
    count = rows.shape[0] if heads else 1
    samples = rows.detach().to(torch.float32).reshape(count, -1, rows.shape[-1])
    if scheme.rule in {"minmax", "mse"}:
        output, importance = None, None
    elif output is None and (importance is None or scheme.rule == "output"):
        raise InputError(
            f"rule {scheme.rule!r} needs the weight [O, C] of what reads the tensor",
            where="argument output",
            fix="pass it, or use rule mse",
        )
    if scheme.rule == "output":
        importance = None
    elif scheme.rule == "fisher" and importance is None:
        raise InputError(
            "rule 'fisher' needs squared gradients [n, O]",
            where="argument importance",
            fix="pass them, or use rule output",
        )
    return tuple(
        _objective(samples[head], _of_head(output, head, 2), _of_head(importance, head, 2))
        for head in range(count)
    )


def _require_matrix(name: str, value: Tensor, dimensions: int) -> None:
    if value.dim() < dimensions or value.numel() == 0:
        raise InputError(
            f"{name} of shape {tuple(value.shape)} are not {'[H, n, d]'[: 3 * dimensions]}",
            where=f"argument {name}",
        )
    if not bool(torch.isfinite(value).all()):
        raise InputError(f"{name} hold NaN or infinity", where=f"argument {name}")


def _of_head(value: Tensor | None, head: int, dimensions: int) -> Tensor | None:
    """A matrix for all heads, or the head's own."""
    if value is None:
        return None
    value = value.detach().to(torch.float32)
    return value[head] if value.dim() > dimensions else value


def _objective(rows: Tensor, output: Tensor | None, importance: Tensor | None) -> Objective:
    width = rows.shape[1]
    if output is not None and (output.dim() != 2 or output.shape[1] != width):
        raise InputError(
            f"a weight {tuple(output.shape)} does not read {width} channels",
            where="argument output",
        )
    outputs = width if output is None else output.shape[0]
    if importance is not None and importance.shape != (rows.shape[0], outputs):
        raise InputError(
            f"importance {tuple(importance.shape)} does not fit [{rows.shape[0]}, {outputs}]",
            where="argument importance",
        )
    factor = None
    if output is not None:
        wide = importance is None and outputs > width
        factor = _root_of_gram(output) if wide else output.t().contiguous()
    return Objective(rows.contiguous(), factor, importance, rows.shape[0] * outputs)


def _root_of_gram(weight: Tensor) -> Tensor:
    """``R [C, C]`` with ``R R^T = W^T W``: a wide consumer costs no more than C outputs."""
    weight = weight.to(torch.float64)
    values, vectors = torch.linalg.eigh(weight.t() @ weight)
    root: Tensor = vectors * values.clamp(min=0.0).sqrt()
    return root.to(torch.float32)
