"""Small models, their graphs, and a quantized one made by hand."""

from __future__ import annotations

import copy
import io
import json
import operator
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from fxquant.artifact import container, write
from fxquant.artifact.buffers import stored_tensors
from fxquant.artifact.codec import graph_from_json, graph_to_json
from fxquant.capture import capture
from fxquant.graph.site import Site
from fxquant.graph.tensors import add_buffer, call, prune, tensor_at
from fxquant.pipeline.plan import Decision, Plan
from fxquant.pipeline.target import Target
from fxquant.quant import ops
from fxquant.quant.scheme import Scheme
from fxquant.report.model import Report, Row

Call = tuple[tuple[Any, ...], dict[str, Any]]


class Block(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        x = x + self.proj(mixed.reshape(batch, tokens, dim))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x)), approximate="tanh"))


class TinyViT(nn.Module):
    def __init__(self, dim: int = 16, depth: int = 1) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, dim, 4, 4)
        self.cls = nn.Parameter(torch.randn(1, 1, dim))
        self.pos = nn.Parameter(torch.randn(1, 5, dim))
        self.blocks = nn.Sequential(*(Block(dim, 2) for _ in range(depth)))
        self.head = nn.Linear(dim, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.pos
        out: Tensor = self.head(self.blocks(x)[:, 0])
        return out


class Windows(nn.Module):
    """Arithmetic on the batch size, a transposed constant, infinities, texts and a device."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.register_buffer("table", torch.randn(4, 3, 2).permute(2, 0, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        x = F.pad(x, (0, 0, 1, 1, 1, 1), mode="constant", value=float("-inf")).clamp(-3.0, 1e30)
        x = x[:, 1:-1, 1:-1].reshape(b * 2, h // 2, w, c).roll(1, 1)
        x = torch.einsum("bhwc,cd->bhwd", x, self.table.sum(0) @ self.table[0].t())
        x = torch.div(self.lin(x), 0.3, rounding_mode="floor").reshape(b, -1)
        return x + torch.ones(b, 1, device=x.device)


class Structured(nn.Module):
    """Nested inputs, keywords, an input named like a builtin, nested outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 3)

    def forward(self, input: Tensor, more: Any, mask: Any = None, scale: float = 2.0) -> Any:
        first, second = more["pair"]
        total = self.lin(input) + self.lin(first) * scale - second
        if mask is not None:
            total = total * mask
        return {"total": total, "parts": (total.sum(-1), [input, None]), "again": total}


def tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def vit_call(batch: int) -> Call:
    return (tensor(batch, 3, 8, 8),), {}


def windows_call(batch: int) -> Call:
    return (tensor(batch, 4, 4, 4),), {}


def pair(batch: int) -> dict[str, Any]:
    return {"pair": (tensor(batch, 4, seed=1), tensor(batch, 3, seed=2))}


def positional_call(batch: int) -> Call:
    return (tensor(batch, 4), pair(batch), None, 3.0), {}


def keyword_call(batch: int) -> Call:
    return (), {"input": tensor(batch, 4), "more": pair(batch), "mask": tensor(batch, 3, seed=3)}


MODELS: dict[str, tuple[type[nn.Module], Callable[[int], Call]]] = {
    "vit": (TinyViT, vit_call),
    "windows": (Windows, windows_call),
    "positional": (Structured, positional_call),
    "keywords": (Structured, keyword_call),
    "quantized": (TinyViT, vit_call),
}


def make_graph(name: str) -> GraphModule:
    torch.manual_seed(0)
    kind, make_call = MODELS[name]
    args, kwargs = make_call(3)
    graph_module = capture(kind().eval(), kwargs or args)
    if name == "quantized":
        quantize_linears(graph_module)
    return graph_module


def quantize_linears(graph_module: GraphModule) -> None:
    """Codes of many types in front of every linear: int8 per channel, uint8, uint16, per token."""
    linears = [n for n in graph_module.graph.nodes if "aten.linear" in str(n.target)]
    for position, node in enumerate(linears):
        x, weight_node = node.args[0], node.args[1]
        weight = tensor_at(graph_module, str(weight_node.target)).detach()
        scale = weight.abs().amax(1) / 127
        codes = torch.round(weight / scale[:, None]).to(torch.int8)
        put = {"like": node, "before": node}
        held = [
            add_buffer(graph_module, f"q{position}__{slot}", value, **put)
            for slot, value in (("codes", codes), ("scale", scale), ("zero", scale.long() * 0))
        ]
        with graph_module.graph.inserting_before(node):
            args = (*held, 0, -128, 127, torch.int8)
            w = call(graph_module, ops.dequantize_per_channel, args, like=node)
            if position % 3 == 2:
                args = (x, 0, 255, torch.uint8)
                made = call(graph_module, ops.quantize_per_token, args, like=node)
                parts = [
                    call(graph_module, operator.getitem, (made, i), like=node) for i in range(3)
                ]
                x = call(graph_module, ops.dequantize_per_token, tuple(parts), like=node)
            else:
                top, dtype = ((255, torch.uint8), (65535, torch.uint16))[position % 3]
                rest = (0.1 / 3 if top == 255 else 1e-4, top // 2, 0, top, dtype)
                q = call(graph_module, ops.quantize_per_tensor, (x, *rest), like=node)
                x = call(graph_module, ops.dequantize_per_tensor, (q, *rest), like=node)
        node.args = (x, w, *node.args[2:])
    prune(graph_module)


TARGET = Target(backend="x86", machine="test", activation_bits=7, roles=("fc1", "fc2"))
PLAN = Plan(
    {
        Site("head", "input"): Decision(scheme=Scheme(), reason="measured"),
        Site("head", "weight"): Decision(compute="bfloat16", reason="small"),
    },
    TARGET,
    "w8a8",
)
REPORT = Report(
    model="tiny",
    recipe="w8a8",
    backend="x86",
    machine="test",
    simulated=False,
    rows=(
        Row(layer="head", role="head", source="pkg/vit.py:12", input_shape=(16,), sqnr_db=31.5),
        Row(layer="blocks.0.fc1", role="fc1", macs=10, float_bytes=4, bytes=1, int8=True),
    ),
    output_sqnr_db=float("inf"),
    timings=(("capture", 0.5),),
    notes=(("head", "kept in float"),),
)


def through_json(graph_module: GraphModule) -> GraphModule:
    """The graph as it comes back, with text and tensor bytes in between."""
    text = json.dumps(graph_to_json(graph_module))
    tensors = safetensors.torch.load(safetensors.torch.save(stored_tensors(graph_module)))
    return graph_from_json(json.loads(text), tensors)


def equal_trees(left: Any, right: Any) -> bool:
    """Same structure, same bits."""
    a, in_a = torch.utils._pytree.tree_flatten(left)
    b, in_b = torch.utils._pytree.tree_flatten(right)
    return in_a == in_b and all(
        x.dtype == y.dtype and torch.equal(x, y) if isinstance(x, Tensor) else x == y
        for x, y in zip(a, b, strict=True)
    )


def save(path: Path, graph_module: GraphModule, **changes: Any) -> Path:
    given: dict[str, Any] = {
        "plan": PLAN,
        "report": REPORT,
        "backend": "x86",
        "model_name": "tiny",
        "recipe": "w8a8",
        "extra": {"pipeline": "plan, apply"},
    }
    write(path, graph_module=graph_module, **{**given, **changes})
    return path


def members_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewritten(
    path: Path, source: Path, *, sign: bool = True, **changes: Callable[[Any], Any]
) -> Path:
    """A copy of an artifact with documents changed by functions, checksums made right again.

    Keywords are ``graph``, ``plan``, ``report`` and ``manifest``.
    """
    members = members_of(source)
    for name, change in changes.items():
        data = json.loads(members[f"{name}.json"])
        changed = change(data)
        members[f"{name}.json"] = json.dumps(data if changed is None else changed).encode()
    return packed(path, members, sign=sign)


def packed(path: Path, members: dict[str, bytes], *, sign: bool = True) -> Path:
    """Write any members as a zip; ``sign`` puts the right checksums into the manifest."""
    if sign:
        manifest = json.loads(members[container.MANIFEST])
        for name in manifest["sha256"]:
            manifest["sha256"][name] = container.digest(members[name])
        members[container.MANIFEST] = json.dumps(manifest).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    path.write_bytes(buffer.getvalue())
    return path


def changed(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A deep copy of JSON data with one place replaced."""
    made = copy.deepcopy(data)
    if not path:
        return value
    place = made
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return made


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to every value in JSON data."""
    found = [path]
    if isinstance(data, (dict, list)):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            found += places(value, (*path, key))
    return found
