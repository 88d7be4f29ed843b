"""Models and helpers for the tests of the fold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from fxquant import Fact, Pipeline, State
from fxquant.graph.layers import find_layers
from fxquant.graph.tensors import constant_of
from fxquant.passes import Annotate
from fxquant.passes.folding import FoldSite, ValueSite, fold_sites, value_sites
from fxquant.passes.smooth import Smooth
from fxquant.pipeline.plan import Plan
from tests.backends.tiny import tensor
from tests.graph.captured import graph_of
from tests.passes.running import start

DIM, TOKENS = 16, 6


@torch.no_grad()
def randomized(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """Weights at the scale of trained ones; norms differ between channels; no branch is off."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            noise = torch.randn(parameter.shape, generator=generator)
            if isinstance(module, nn.Linear | nn.MultiheadAttention):
                width = parameter.shape[-1] if parameter.dim() > 1 else 1
                parameter.copy_(noise * width**-0.5)
            elif isinstance(module, nn.LayerNorm) or name in {"alpha", "beta"}:
                scale = name in {"weight", "alpha"}
                parameter.copy_(noise.exp() if scale else noise)
            elif name in {"gamma", "gamma_1", "gamma_2", "ls1", "ls2"}:
                parameter.fill_(0.3)
    return model.eval()


def smoothed(
    model: nn.Module | State, data: Tensor, plan: Plan | None = None, **options: Any
) -> State:
    """The state after ``annotate; smooth``, from a model or from a state that was captured once."""
    state = model if isinstance(model, State) else start(model, data)
    if plan is not None:
        state = state.having(Fact.PLAN, replace(plan, target=state.target))
    return Pipeline((Annotate(), Smooth(**options))).run(state)


def sites(model: nn.Module, *shape: int) -> dict[str, FoldSite]:
    graph = graph_of(model, *(shape or (TOKENS, DIM)))
    return {site.layer: site for site in fold_sites(graph, find_layers(graph))}


def values(model: nn.Module, *shape: int) -> dict[str, ValueSite]:
    graph = graph_of(model, *(shape or (TOKENS, DIM)))
    return {site.layer: site for site in value_sites(graph, find_layers(graph))}


def difference(model: nn.Module, state: State, x: Tensor) -> float:
    """Largest difference of the outputs, relative to the largest output."""
    with torch.no_grad():
        leaves = (torch.utils._pytree.tree_leaves(f(x)) for f in (model, state.graph))
        before, after = (torch.cat([leaf.reshape(-1) for leaf in found]) for found in leaves)
    return float((before - after).abs().max() / before.abs().max())


def tensors_of(graph: GraphModule, layer: str) -> list[Tensor]:
    """The constants that a layer's node reads, in order."""
    node = next(
        n
        for n in graph.graph.nodes
        if n.op == "call_function"
        and n.name == {la.name: la.node for la in find_layers(graph)}[layer]
    )
    found = [constant_of(graph, a) for a in node.args]
    return [value for value in found if value is not None]


class Normed(nn.Module):
    """A norm between a body that does not matter and readers that do."""

    def __init__(self, norm: nn.Module | None = None, **modules: nn.Module) -> None:
        super().__init__()
        self.norm = norm if norm is not None else nn.LayerNorm(DIM)
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.norm(x)
        return tuple(f(y) for name, f in self.named_children() if name != "norm")


class Through(nn.Module):
    """A function, then a linear."""

    def __init__(self, function: Any, linear: nn.Module | None = None) -> None:
        super().__init__()
        self.function = function
        self.fc = linear if linear is not None else nn.Linear(DIM, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.function(x))
        return out


class Attention(nn.Module):
    """Two heads, fused or written out; ``tail`` is what stands before ``proj``."""

    def __init__(self, *, fused: bool = True, tail: Any = None, mix: Any = None) -> None:
        super().__init__()
        self.fused, self.tail, self.mix = fused, tail, mix
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, 2, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.mix is not None:
            q, k, v = self.mix(q, k, v)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-2, -1) * 8**-0.5).softmax(-1) @ v
        y = y.transpose(1, 2).reshape(batch, tokens, dim)
        out: Tensor = self.proj(y if self.tail is None else self.tail(y))
        return out


class PostNorm(nn.Module):
    """``norm(x + f(x))`` twice, as in the first transformers; the last norm feeds a head."""

    def __init__(self) -> None:
        super().__init__()
        self.attn, self.fc1, self.fc2 = Attention(), nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.norm0, self.norm1, self.norm2 = (nn.LayerNorm(DIM) for _ in range(3))
        self.head = nn.Linear(DIM, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm0(x)
        x = self.norm1(x + self.attn(x))
        x = self.norm2(x + self.fc2(F.gelu(self.fc1(x))))
        out: Tensor = self.head(x.mean(1))
        return out


def data(count: int = 8, seed: int = 0) -> Tensor:
    return tensor(count, TOKENS, DIM, seed=seed)
