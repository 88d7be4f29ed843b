"""A graph in normal form to JSON and back.

Reading trusts nothing: see ``checks`` (names), ``arguments``, ``allowlist`` (operators) and
``structure`` (nested inputs). What passes cannot make torch.fx write code of the file's choosing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import CodeGen, _PyTreeCodeGen, _PyTreeInfo

from fxquant.artifact import checks
from fxquant.artifact.allowlist import ALLOWED, SIZE_ARITHMETIC, resolve
from fxquant.artifact.arguments import decode_argument, encode_argument
from fxquant.artifact.buffers import encode_table, restore
from fxquant.artifact.checks import brief, unsound, unstorable
from fxquant.artifact.replay import encode_input, replay
from fxquant.artifact.structure import decode_structure, encode_structure
from fxquant.errors import FxquantError
from fxquant.graph.normal_form import op_name
from fxquant.graph.normal_form import where as place_of

_KEYS = ("call", "inputs", "nodes", "tensors")
_NODE_KEYS = ("args", "kwargs", "layer", "name", "op", "source", "target")
_MOST_NODES = 200_000


def graph_to_json(graph_module: GraphModule) -> dict[str, Any]:
    """The graph as plain data; :class:`ArtifactError` names the layer that cannot be stored."""
    nodes = list(graph_module.graph.nodes)
    return {
        "call": _encode_call(graph_module),
        "inputs": [encode_input(node) for node in nodes if node.op == "placeholder"],
        "tensors": encode_table(graph_module),
        "nodes": [_encode_node(node) for node in nodes],
    }


def graph_from_json(data: Any, tensors: Mapping[str, Tensor]) -> GraphModule:
    """The graph behind :func:`graph_to_json`, with ``val``, ``layer`` and ``source``.

    ``tensors``: those of :func:`~fxquant.artifact.buffers.stored_tensors`; they come back as
    buffers, also where they were parameters. Raises
    :class:`ArtifactError` for anything that fxquant would not have written.
    """
    try:
        graph_module = build(data, tensors)
        replay(graph_module, data["inputs"])
    except FxquantError:
        raise
    except Exception as error:  # whatever torch.fx makes of content that is no graph
        raise unsound(f"{type(error).__name__}: {str(error)[:300]}", where="graph.json") from error
    return graph_module


def build(data: Any, tensors: Mapping[str, Tensor]) -> GraphModule:
    """The graph without ``val``: every check that does not need an operator to run."""
    checks.mapping(data, _KEYS, where="graph.json")
    entries = checks.items(data["nodes"], where="graph.json, nodes")
    if not 0 < len(entries) <= _MOST_NODES:
        raise unsound(f"{len(entries)} nodes", where="graph.json, nodes")
    root = restore(data["tensors"], tensors)
    graph = Graph()
    nodes: dict[str, Node] = {}
    for position, entry in enumerate(entries):
        _decode_node(graph, nodes, entry, last=position == len(entries) - 1, position=position)
    used = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    if used != set(tensors):
        raise unsound("the graph does not read exactly the stored tensors", where="graph.json")
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if len(checks.items(data["inputs"], where="graph.json, inputs")) != len(inputs):
        raise unsound("placeholders and inputs disagree", where="graph.json, inputs")
    if data["call"] is not None:
        graph.set_codegen(_decode_call(data["call"], graph, inputs))
    graph_module = GraphModule(root, graph)
    graph_module.eval()
    return graph_module


def _encode_node(node: Node) -> dict[str, Any]:
    place = place_of(node)
    target = str(node.target)
    if node.op == "call_function":
        target = op_name(node)
        if target not in ALLOWED:
            raise unstorable(
                f"operator {target}",
                where=place,
                why="only listed operators, which compute and do nothing else, are stored",
            )
    elif node.op not in ("placeholder", "get_attr", "output"):
        raise unstorable(f"a {node.op} node", where=place)
    return {
        "name": node.name,
        "op": node.op,
        "target": target,
        "args": [encode_argument(value, where=place) for value in node.args],
        "kwargs": {k: encode_argument(v, where=place) for k, v in node.kwargs.items()},
        "layer": str(node.meta.get("layer") or ""),
        "source": checks.short_source(str(node.meta.get("source") or "")),
    }


def _decode_node(
    graph: Graph, nodes: dict[str, Node], entry: Any, *, last: bool, position: int
) -> None:
    where = f"graph.json, node {position}"
    checks.mapping(entry, _NODE_KEYS, where=where)
    name = checks.identifier(entry["name"], where=where)
    where = f"graph.json, node {name}"
    if name in nodes:
        raise unsound("two nodes have this name", where=where)
    op = entry["op"]
    if op not in ("placeholder", "get_attr", "call_function", "output") or last != (op == "output"):
        raise unsound(f"{brief(op)} node out of place", where=where)
    layer = checks.layer_label(entry["layer"], where=where)
    source = checks.source_label(entry["source"], where=where)
    target: str | Callable[..., Any]
    target, args, kwargs = _DECODERS[op](entry, nodes, where)
    node = graph.create_node(op, target, args, kwargs, name=name)
    node.meta["layer"], node.meta["source"] = layer, source
    nodes[name] = node


_Decoded = tuple[str | Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def _decode_placeholder(entry: dict[str, Any], nodes: dict[str, Node], where: str) -> _Decoded:
    target = checks.identifier(entry["target"], where=where)
    taken = any(n.op != "placeholder" or n.target == target for n in nodes.values())
    if taken or entry["args"] != [] or entry["kwargs"] != {}:
        raise unsound("an input is out of place, doubled or has arguments", where=where)
    return target, (), {}


def _decode_tensor(entry: dict[str, Any], nodes: dict[str, Node], where: str) -> _Decoded:
    if entry["args"] != [] or entry["kwargs"] != {}:
        raise unsound("a tensor has arguments", where=where)
    return checks.tensor_name(entry["target"], where=where), (), {}


def _decode_output(entry: dict[str, Any], nodes: dict[str, Node], where: str) -> _Decoded:
    args = checks.items(entry["args"], where=where)
    if entry["target"] != "output" or entry["kwargs"] != {} or len(args) != 1:
        raise unsound("the output is malformed", where=where)
    return "output", (decode_argument(args[0], nodes, takes_text=False, where=where),), {}


def _decode_call_function(entry: dict[str, Any], nodes: dict[str, Node], where: str) -> _Decoded:
    target = resolve(entry["target"])
    args, kwargs = checks.items(entry["args"], where=where), entry["kwargs"]
    if not isinstance(kwargs, dict):
        raise unsound("keyword arguments are malformed", where=where)
    if not isinstance(target, torch._ops.OpOverload):
        return target, _size_operands(entry["target"], args, kwargs, nodes, where), {}
    known = target._schema.arguments
    positional = [argument for argument in known if not argument.kwarg_only]
    by_name = {argument.name: argument for argument in known}
    if len(args) > len(positional) or not set(kwargs) <= set(by_name):
        raise unsound(f"{target} does not take these arguments", where=where)
    given = tuple(
        decode_argument(value, nodes, takes_text=_is_text(argument), where=where)
        for value, argument in zip(args, positional, strict=False)
    )
    named = {  # the keys are the schema's own, so they are names
        key: decode_argument(value, nodes, takes_text=_is_text(by_name[key]), where=where)
        for key, value in kwargs.items()
    }
    return target, given, named


_DECODERS: dict[str, Callable[[dict[str, Any], dict[str, Node], str], _Decoded]] = {
    "placeholder": _decode_placeholder,
    "get_attr": _decode_tensor,
    "call_function": _decode_call_function,
    "output": _decode_output,
}


def _is_text(argument: torch.Argument) -> bool:
    return str(argument.type) in ("str", "Optional[str]")


def _size_operands(
    name: str, args: list[Any], kwargs: dict[str, Any], nodes: dict[str, Node], where: str
) -> tuple[Any, ...]:
    """Operands of arithmetic on sizes: earlier nodes and integers, nothing that could grow."""
    operands = tuple(decode_argument(v, nodes, takes_text=False, where=where) for v in args)
    sound = all(isinstance(o, Node) or type(o) is int for o in operands)
    if name == "operator.getitem":
        sound = sound and [isinstance(o, Node) for o in operands] == [True, False]
    if not sound or kwargs or len(operands) != SIZE_ARITHMETIC[name][1]:
        raise unsound(f"{name} does not take these arguments", where=where)
    return operands


def _encode_call(graph_module: GraphModule) -> dict[str, Any] | None:
    """How the module is called, for one made by torch.export; None where inputs are flat."""
    codegen = graph_module.graph._codegen
    if type(codegen) is CodeGen:
        return None
    info = codegen.pytree_info if type(codegen) is _PyTreeCodeGen else None
    if info is None or info.out_spec is None:
        raise unstorable(f"a graph with {type(codegen).__name__}", where="(model)")
    return {
        "arguments": list(info.orig_args),
        "inputs": encode_structure(info.in_spec, where="inputs of the model"),
        "outputs": encode_structure(info.out_spec, where="outputs of the model"),
    }


def _decode_call(data: Any, graph: Graph, inputs: list[Node]) -> CodeGen:
    where = "graph.json, call"
    checks.mapping(data, ("arguments", "inputs", "outputs"), where=where)
    listed = checks.items(data["arguments"], where=where)
    names = [checks.identifier(name, where=where) for name in listed]
    in_spec = decode_structure(data["inputs"], where=where)
    out_spec = decode_structure(data["outputs"], where=where)
    kinds = [in_spec.type, *(child.type for child in in_spec.children())]
    if kinds != [tuple, tuple, dict] or in_spec.num_leaves != len(inputs):
        raise unsound("the inputs are not positional and keyword arguments", where=where)
    positional, keywords = in_spec.children()
    for key in keywords.context:
        checks.identifier(key, where=where)
    if len(set(names)) != len(names) or len(names) != (
        positional.num_children + keywords.num_children
    ):
        raise unsound("argument names and inputs disagree", where=where)
    returned = graph.output_node().args[0]
    if not isinstance(returned, (list, tuple)) or len(returned) != out_spec.num_leaves:
        raise unsound("outputs and what the graph returns disagree", where=where)
    return _PyTreeCodeGen(_PyTreeInfo(names, in_spec, out_spec))
