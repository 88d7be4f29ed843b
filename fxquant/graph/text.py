"""A graph as text, for reading, golden files and differences between passes."""

from __future__ import annotations

import difflib
import operator
import re
from typing import Any

import torch
from torch.fx import GraphModule, Node

from fxquant.graph.normal_form import op_name

_SHORT = {
    "torch.float32": "f32",
    "torch.bfloat16": "bf16",
    "torch.uint8": "u8",
    "torch.int8": "s8",
    "torch.int16": "s16",
    "torch.uint16": "u16",
    "torch.int32": "s32",
    "torch.int64": "s64",
    "torch.bool": "b1",
}


_VALUE = re.compile(r"%(\d+)")  # in a printed graph: the number of the line that makes it


def _number(index: dict[Node, int], value: Any) -> str:
    if isinstance(value, Node):
        return f"%{index[value]}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_number(index, v) for v in value) + "]"
    if isinstance(value, float):
        return f"{value:.9g}"
    return _SHORT.get(str(value), str(value))


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        sizes = ", ".join(str(size) for size in value.shape)
        return f"{_SHORT.get(str(value.dtype), str(value.dtype))}[{sizes}]"
    if isinstance(value, (list, tuple)):
        return "(" + ", ".join(_type(v) for v in value) + ")"
    return "size" if isinstance(value, (int, torch.SymInt)) else type(value).__name__


def print_graph(graph_module: GraphModule) -> str:
    """One line per node: number, call, type, layer. Independent of node names and paths."""
    index: dict[Node, int] = {}
    lines = []
    for position, node in enumerate(graph_module.graph.nodes):
        index[node] = position
        if node.op == "placeholder":
            body = f"input {node.target}"
        elif node.op == "get_attr":
            body = f"tensor {node.target}"
        elif node.op == "output":
            lines.append(f"return {_number(index, node.args[0])}")
            continue
        else:
            arguments = [_number(index, a) for a in node.args]
            arguments += [f"{k}={_number(index, v)}" for k, v in node.kwargs.items()]
            name = "getitem" if node.target is operator.getitem else op_name(node)
            body = f"{name}({', '.join(arguments)})"
        layer = node.meta.get("layer") or "-"
        lines.append(f"%{position} = {body} : {_type(node.meta.get('val'))}  # {layer}")
    return _renamed_symbols("\n".join(lines) + "\n")


def _renamed_symbols(text: str) -> str:
    """The batch symbol's number depends on what was exported before: print it as ``B``."""
    symbols = sorted(set(re.findall(r"\bs\d+\b(?=[^\n]*#)", text)) - {"s8", "s16", "s32", "s64"})
    if len(symbols) == 1:
        text = re.sub(rf"\b{symbols[0]}\b", "B", text)
    return text


def diff_graphs(before: str, after: str, *, name: str) -> str:
    """Unified difference of two printed graphs with one line of context; mere renumbering of
    values does not show."""
    old, new = before.splitlines(), after.splitlines()
    plain = [[_VALUE.sub("%", line) for line in lines] for lines in (old, new)]
    blocks = difflib.SequenceMatcher(None, plain[0], plain[1], autojunk=False).get_matching_blocks()
    paired = {b.a + i: b.b + i for b in blocks for i in range(b.size)}
    number = {line: f"%{paired[line]}" for line in paired}
    signed, reached = [], 0
    for line, text in enumerate(old):
        if line not in paired:
            signed.append(f"-{text}")
            continue
        signed += [f"+{added}" for added in new[reached : paired[line]]]
        reached = paired[line] + 1
        renamed = _VALUE.sub(lambda m: number.get(int(m[1]), "gone"), text)
        same = renamed == new[paired[line]]
        signed += [f" {new[paired[line]]}"] if same else [f"-{text}", f"+{new[paired[line]]}"]
    signed += [f"+{added}" for added in new[reached:]]
    changed = {i for i, text in enumerate(signed) if text[0] != " "}
    lines = [f"--- before {name}", f"+++ after {name}"] if changed else []
    for i, text in enumerate(signed):
        if changed & {i - 1, i, i + 1}:
            lines += [text] if changed & {i - 2, i - 1, i} or i == 0 else ["@@", text]
    return "\n".join(lines)
