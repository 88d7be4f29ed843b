"""How many copies of which channel: a greedy search on calibration images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxquant.graph.layers import Layer
from fxquant.graph.tensors import constant_of
from fxquant.passes.running import Runner, fast_linear
from fxquant.quant.calibration import Calibration
from fxquant.quant.metrics import token_sqnr_db
from fxquant.quant.qparams import qparams_from_range
from fxquant.quant.scheme import Scheme
from fxquant.quant.splitting import Split, range_of, widest
from fxquant.quant.uniform import fake_quantize

_QUANTUM = 4  # columns: oneDNN multiplies them four at a time


@dataclass(frozen=True)
class Sample:
    """A site's input ``x`` ``[..., C]`` on some images, its layer's ``weight`` ``[out, C]``, and
    the ``low`` and ``high`` ``[C]`` of every channel, over all images where they were read."""

    x: Tensor
    weight: Tensor
    low: Tensor
    high: Tensor

    @staticmethod
    def of(x: Tensor, weight: Tensor) -> Sample:
        """With the ranges of ``x`` itself."""
        low, high = _ends(x)
        return Sample(x, weight, low, high)

    def measured(self, copies: Tensor, scheme: Scheme) -> tuple[float, Split]:
        """Token SQNR in dB of the layer's output with the split input quantized; the split."""
        bottom, top = range_of(copies, self.low, self.high, scheme.quant_max)
        ends = torch.tensor((bottom, top), dtype=torch.float64)
        qparams = qparams_from_range(scheme, *ends)
        split = Split(copies, float(qparams.scale))
        quantized = fake_quantize(split.spread(self.x), qparams)
        ours = fast_linear(quantized, self.weight[:, split.index])
        return token_sqnr_db(fast_linear(self.x, self.weight), ours), split


def plain(x: Tensor) -> Tensor:
    """One copy of every channel of ``x``."""
    return torch.ones(x.shape[-1], dtype=torch.int64)


def best_split(
    sample: Sample, scheme: Scheme, *, most: int, slack_db: float
) -> tuple[float, Split] | None:
    """The fewest copies within ``slack_db`` of the best found with up to ``most`` further channels.

    Greedy: the channel that reaches furthest is split once more, and every fourth time, when the
    columns are a multiple of four, the result is measured. None where ``most`` leaves no room.
    """
    copies, path = plain(sample.x), []
    for _ in range(most):
        copies = copies.clone()
        copies[widest(copies, sample.low, sample.high)] += 1
        if int(copies.sum()) % _QUANTUM == 0:
            path.append(sample.measured(copies, scheme))
    if not path:
        return None
    enough = max(quality for quality, _ in path) - slack_db
    return next(found for found in path if found[0] >= enough)


def ruined_sites(
    graph_module: GraphModule,
    layers: list[Layer],
    calibration: Calibration,
    scheme: Scheme,
    *,
    images: int,
    floor_db: float,
) -> dict[str, tuple[float, Sample | None]]:
    """For each layer the dB that one range leaves, and what to search on where it is too little."""
    found: dict[str, tuple[float, Sample | None]] = {}
    nodes = {node.name: node for node in graph_module.graph.nodes}

    def looking(layer: Layer) -> Callable[[Tensor], None]:
        weight = constant_of(graph_module, nodes[layer.node].args[1])
        assert weight is not None

        def look(x: Tensor) -> None:
            sample = Sample.of(x, weight.detach())
            before, _ = sample.measured(plain(x), scheme)
            found[layer.name] = (before, sample if before < floor_db else None)

        return look

    looks = {layer.node: looking(layer) for layer in layers}
    Runner(graph_module, inputs=looks)(calibration.sample(images))
    return found


def whole_ranges(
    graph_module: GraphModule,
    layers: list[Layer],
    calibration: Calibration,
    samples: dict[str, Sample],
) -> dict[str, Sample]:
    """``samples`` with ranges over all calibration images, where they can be read again."""
    if not samples or not len(calibration):
        return samples
    low = {name: sample.low for name, sample in samples.items()}
    high = {name: sample.high for name, sample in samples.items()}

    def widening(name: str) -> Callable[[Tensor], None]:
        def widen(x: Tensor) -> None:
            bottom, top = _ends(x)
            low[name] = torch.minimum(low[name], bottom)
            high[name] = torch.maximum(high[name], top)

        return widen

    watched = {la.node: widening(la.name) for la in layers if la.name in samples}
    runner = Runner(graph_module, inputs=watched)
    for leaves in calibration.batches():
        runner(leaves)
    return {n: Sample(s.x, s.weight, low[n], high[n]) for n, s in samples.items()}


def _ends(x: Tensor) -> tuple[Tensor, Tensor]:
    low, high = x.reshape(-1, x.shape[-1]).aminmax(dim=0)
    return low, high
