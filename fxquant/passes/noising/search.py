"""How much noise helps a layer: measured on sampled rows, confirmed on images held out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxquant.graph.convolution import Convolution
from fxquant.passes.noising.sites import NoiseSite
from fxquant.passes.stored import weight_value
from fxquant.quant.noise import gaussian_code_noise, uniform_noise

Noise = Literal["uniform", "gaussian_code", "searched"]
Direction = Callable[[float], Tensor]  # d per channel, for a value of clip
REACH = 2  # largest n, in steps
CLIPS = (0.8, 0.9, 1.1, 1.2)
_PARTS = 4  # of the searched offsets: a quarter, half, three quarters, all of each


@dataclass(frozen=True)
class Amount:
    """``N = offset + n d`` with a direction d per channel; ``clip`` multiplies the step."""

    n: float = 0.0
    offset: float = 0.0
    clip: float = 1.0


@dataclass(frozen=True)
class Sample:
    """Rows that reach a quantizer, and what its readers make of their errors.

    ``rows``: float32 ``[n, K]``, K = channels, or channels x kernel elements of a convolution.
    ``held_out``: bool ``[n]``, half of them, of every second image. ``weight``: float32
    ``[R, K]`` with the norms that the stacked final weights of all readers have. ``importance``:
    float32 ``[n]``, what each row counts, 1 on average. ``centred``: whether the mean error is
    taken off.
    """

    site: NoiseSite
    rows: Tensor
    held_out: Tensor
    weight: Tensor
    importance: Tensor
    centred: bool = False

    def deviation(self, rows: Tensor, noise: Tensor, clip: float) -> Tensor:
        """``q(X + N) - N - X``, ``[n, K]``; ``noise``: float32 ``[channels]``."""
        x = rows + noise[self.site.spread]
        return self._fake_quantize(x, clip).sub_(x)

    def error(self, noise: Tensor, clip: float, *, held_out: bool) -> float:
        """``||W (q(X + N) - N) - W X||^2`` over one half of the rows."""
        half = self.held_out if held_out else ~self.held_out
        outputs = self.deviation(self.rows[half], noise, clip) @ self.weight.t()
        return float(self.energy(outputs, half).sum())

    @property
    def signal(self) -> float:
        """``||W X||^2`` over all rows."""
        outputs = (self.rows @ self.weight.t()).square().sum(1, dtype=torch.float64)
        return float(outputs @ self.importance.to(torch.float64))

    def energy(self, values: Tensor, half: Tensor) -> Tensor:
        """Squared ``values`` ``[n, *]`` of one half of the rows summed over rows, less what their
        mean makes of it where errors are centred; float64 ``[*]``."""
        counts = self.importance[half].to(torch.float64)
        values = values.to(torch.float64)
        squares = counts @ values.square()
        if not self.centred:
            return squares
        total = counts.sum().clamp(min=torch.finfo(torch.float64).tiny)
        return (squares - (counts @ values).square() / total).clamp(min=0.0)

    def _fake_quantize(self, x: Tensor, clip: float) -> Tensor:
        quantize, dequantize = self.site.quantize, self.site.dequantize
        targets: tuple[Any, Any] = (quantize.target, dequantize.target)
        first: Any = quantize.args[2:]
        second: Any = dequantize.args[2:]
        codes = targets[0](x, self.site.step * clip, *first)
        result: Tensor = targets[1](codes, self.site.step * clip, *second)
        return result


@dataclass(frozen=True)
class Found:
    """The chosen amount, its noise ``[channels]``, and the error over both halves without noise
    and with it."""

    amount: Amount
    noise: Tensor
    before: float
    after: float


def take_sample(
    graph_module: GraphModule,
    site: NoiseSite,
    x: Tensor,
    *,
    images: int,
    rows: int,
    centred: bool = False,
    importance: Tensor | None = None,
) -> Sample:
    """Up to ``rows`` rows of ``x``, the quantizer's input for ``images`` images in a row.

    Which ones is fixed by their number alone, or by ``importance``, one for every row of ``x``:
    those that count most. Every second image is held out; of a single image every second row.
    """
    if site.is_convolution:
        x = Convolution.of(site.readers[0].node).patches(x)
    flat = x.reshape(-1, x.shape[-1])
    if importance is None or not bool((importance > 0).any()):
        importance = torch.ones(flat.shape[0])
        order = torch.randperm(flat.shape[0], generator=torch.Generator().manual_seed(0))
    else:
        order = importance.argsort(descending=True, stable=True)
    chosen = order[:rows].sort().values
    image = chosen if images == 1 else chosen // max(1, flat.shape[0] // images)
    stacked = [weight_value(graph_module, reader.node) for reader in site.readers]
    weight = torch.cat([w.flatten(1) for w in stacked if w is not None])
    counts = importance[chosen] / importance[chosen].mean()
    held_out = image % 2 == 1
    return Sample(site, flat[chosen], held_out, _with_norms_of(weight), counts, centred)


def _with_norms_of(weight: Tensor) -> Tensor:
    """R of ``W = Q R``, where it has fewer rows than W: ``|R x| = |W x|`` for every x."""
    rows, columns = weight.shape
    if rows <= columns:
        return weight
    root: Tensor = torch.linalg.qr(weight.to(torch.float64), mode="r").R
    return root.to(torch.float32)


def drawn(noise: Noise, site: NoiseSite, seed: int) -> Tensor:
    """The direction per channel, float32 ``[channels]``: for every site a draw of its own.

    ``uniform``: U(-1, 1), the paper's (3a). ``gaussian_code``: ``2 randn - 1``, what the authors'
    code draws instead.
    """
    draw = gaussian_code_noise if noise == "gaussian_code" else uniform_noise
    return draw(site.channels, 1.0, seed, site.places[0])


def best_offsets(sample: Sample, clip: float, steps: int) -> Tensor:
    """For each channel the offset within half a step with the least error of its own, in steps.

    Zero wins ties. Looks at the rows that are not held out.
    """
    step = sample.site.step * clip
    half = ~sample.held_out
    shares = [i / steps - 0.5 for i in range(steps + 1)]
    offsets = [0.0, *(share * width for width in sample.site.widths for share in shares)]
    errors = []
    for offset in offsets:
        noise = torch.full((sample.site.channels,), offset * step)
        own = sample.energy(sample.deviation(sample.rows[half], noise, clip), half)
        channels = torch.zeros(sample.site.channels, dtype=torch.float64)
        errors.append(channels.index_add_(0, sample.site.spread, own))
    return torch.tensor(offsets)[torch.stack(errors).argmin(0)]


def noise_of(amount: Amount, direction: Direction) -> Tensor:
    """``N = offset + n d``, float32 ``[channels]``."""
    return amount.n * direction(amount.clip) + amount.offset


def drift_of(sample: Sample, found: Found) -> Tensor:
    """How noise moves the mean of ``q(X + N) - N - X`` over the rows, float64 ``[K]``."""
    nothing = torch.zeros_like(found.noise)
    moved = sample.deviation(sample.rows, found.noise, found.amount.clip)
    kept = sample.deviation(sample.rows, nothing, 1.0)
    counts = sample.importance.to(torch.float64)
    return counts @ (moved - kept).to(torch.float64) / counts.sum()


def search(sample: Sample, noise: Noise, direction: Direction, *, steps: int, clips: bool) -> Found:
    """The amount with the least error on one half, kept if it is less on the other half too.

    No noise is among the candidates and wins ties, so the result is never worse on either half.
    """
    nothing = Amount()
    factors = (1.0, *CLIPS) if clips else (1.0,)

    def error(amount: Amount, *, held_out: bool = False) -> float:
        return sample.error(noise_of(amount, direction), amount.clip, held_out=held_out)

    chosen, least = nothing, error(nothing)
    start = least
    for stage in _stages(noise, sample.site, steps, factors):
        base = chosen
        for candidate in stage(base):
            found = error(candidate)
            if found < least:
                chosen, least = candidate, found
    held_out = error(nothing, held_out=True)
    if chosen != nothing:
        confirmed = error(chosen, held_out=True)
        if confirmed < held_out:
            return Found(chosen, noise_of(chosen, direction), start + held_out, least + confirmed)
    return Found(nothing, noise_of(nothing, direction), start + held_out, start + held_out)


def _stages(
    noise: Noise, site: NoiseSite, steps: int, clips: tuple[float, ...]
) -> list[Callable[[Amount], Iterator[Amount]]]:
    """Candidates stage by stage; a later stage starts from the best of the earlier one.

    The authors' code first searches an offset over [-1, 1) steps, then the noise over [0, 2), in
    400 and 2000 steps (papers, 3a), which is what ``steps = 20`` stands for.
    """
    step = site.step
    if noise == "gaussian_code":
        fine, finer = 10 * steps, 50 * steps
        return [
            lambda base: (Amount(0.0, step * i / fine, base.clip) for i in range(-fine, fine)),
            lambda base: (
                Amount(step * i / finer, base.offset, base.clip) for i in range(REACH * finer)
            ),
        ]
    count = _PARTS if noise == "searched" else steps
    reaches = (1.0,) if noise == "searched" else tuple(REACH * width for width in site.widths)
    return [
        lambda _: (
            Amount(reach * step * clip * i / count, 0.0, clip)
            for clip in clips
            for reach in reaches
            for i in range(count + 1)
        )
    ]
