"""Hostile graphs: each must raise, and nothing in them may run."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.fx import GraphModule

from fxquant.artifact.buffers import stored_tensors
from fxquant.artifact.codec import graph_from_json, graph_to_json
from fxquant.errors import ArtifactError
from tests.artifact.samples import changed, make_graph, places

Sample = tuple[dict[str, Any], dict[str, torch.Tensor]]
Place = tuple[Any, ...]
Finder = Callable[[dict[str, Any]], Place]

# Would make a file in the working directory if it were ever run.
CODE = "__import__('pathlib').Path('fxquant-canary').touch()"
NAMES = [
    "x\nimport os",
    f"x;{CODE}",
    CODE,
    "x=1",
    "x y",
    "lambda",
    "None",
    "self",
    "torch",
    "pytree",
    "__class__",
    "__builtins__",
    "é",
    "x\u2028",
    "",
    "1x",
    "x" * 1000,
    None,
    7,
    ["x"],
]
TENSORS = [
    "__class__.x",
    "forward",
    "_buffers",
    "_modules.x",
    "graph",
    "_in_spec",
    "head.forward",
    "head.__dict__.x",
    "head.register_buffer",
    "..",
    ".x",
    "x.",
    "head..x",
    "../../etc/passwd",
    'x");' + CODE + ';("',
    "x\ny",
    "²",
    "",
    "x" * 1000,
]
ARGUMENTS = [
    {"text": CODE},
    {"text": "none"},
    {"node": "nowhere"},
    {"node": "output"},
    {"node": ["x"]},
    {"float": CODE},
    {"float": 1.5},
    {"float": "1.5"},
    {"float": "0x1.0p+9999"},
    {"dtype": "__class__"},
    {"dtype": "float32; x"},
    {"dtype": ["float32"]},
    {"device": "cuda"},
    {"memory_format": "x"},
    {"eval": CODE},
    {"tuple": CODE},
    {"tuple": {"x": 1}},
    {"a": 1, "b": 2},
    {},
    1.5,
    "text",
    2**70,
    [[[[[[[1]]]]]]],
]
MALFORMED_SPECS = [
    {"type": "builtins.eval", "context": None, "children_spec": []},
    {"torch.Size": ["*"]},
    {"dict": [[1, "*"]]},
    {"dict": [["a", "*"], ["a", "*"]]},
    {"dict": [["a\n", "*"]]},
    {"dict": {"a": "*"}},
    {"tuple": "*"},
    ["*"],
    "**",
    None,
    1,
    {},
    {"tuple": []},
]
INPUT_SPECS = [
    *MALFORMED_SPECS,
    "*",
    {"tuple": [{"tuple": ["*", "*"]}, {"dict": []}]},
    {"tuple": [{"tuple": []}, {"dict": [[f"x':{CODE},'y", "*"]]}]},
    {"tuple": [{"tuple": []}, {"dict": [["lambda", "*"]]}]},
    {"list": [{"tuple": ["*"]}, {"dict": []}]},
]
INPUTS = [
    None,
    {},
    {"dtype": "x", "shape": []},
    {"dtype": [], "shape": ["batch"]},
    {"dtype": "float32", "shape": [-1]},
    {"dtype": "float32", "shape": ["batch", "batch"]},
    {"dtype": "float32", "shape": ["batch", 4, 8, 8]},
    {"dtype": "int64", "shape": ["batch", 3, 8, 8]},
    {"constant": CODE},
]
KINDS = ["call_method", "call_module", "root", "output", "placeholder", "get_attr", None, [], {}]
SOURCES = ["/a/b/c.py:1", '"""\n' + CODE + ":1", "x.py", None, ":1", "a.py:1\n", "a'.py:1", 3]
KEYWORDS = [{name: 1} for name in NAMES if isinstance(name, str)]


def index(data: dict[str, Any], op: str) -> int:
    """The first node of that kind that has at least two arguments, where the kind has any."""
    nodes = enumerate(data["nodes"])
    return next(i for i, n in nodes if n["op"] == op and (op == "get_attr" or len(n["args"]) > 1))


def call(*keys: Any) -> Finder:
    return lambda data: ("nodes", index(data, "call_function"), *keys)


def at(*keys: Any) -> Finder:
    return lambda data: keys


# Which place of the document takes which hostile values.
HOSTILE: dict[str, tuple[Finder, list[Any]]] = {
    "node name": (call("name"), NAMES),
    "placeholder name": (at("nodes", 0, "name"), NAMES),
    "input name": (at("nodes", 0, "target"), [*NAMES, "*x", "**x", "x=eval", "x: eval"]),
    "argument name": (at("call", "arguments", 0), [*NAMES, "*x", "x=eval", "x, y"]),
    "argument names": (at("call", "arguments"), [[], ["x", "y"], ["x", "x"], None, "x"]),
    "tensor name": (lambda data: ("nodes", index(data, "get_attr"), "target"), TENSORS),
    "opcode": (call("op"), KINDS),
    "argument": (call("args", 1), ARGUMENTS),
    "inner argument": (call("args", 0), [[argument] for argument in ARGUMENTS]),
    "keyword": (call("kwargs"), [*KEYWORDS, [], None, {"input": CODE}]),
    "output": (at("nodes", -1, "args"), [[], [1], [{"text": CODE}], [[]], [["x"]], None]),
    "layer": (at("nodes", 3, "layer"), ['"""\n' + CODE, '"', "'", "a\\", None, 3, "x" * 999]),
    "source": (at("nodes", 3, "source"), SOURCES),
    "input spec": (at("call", "inputs"), INPUT_SPECS),
    "output spec": (at("call", "outputs"), MALFORMED_SPECS),
    "input": (at("inputs", 0), INPUTS),
    "inputs": (at("inputs"), [[], {}, None, [None, None]]),
    "tensors": (at("tensors"), [[], {}, None, {"x": {}}]),
    "nodes": (at("nodes"), [[], {}, None, [None], ["x"]]),
    "document": (at(), [[], {}, None, "x", 3, {"nodes": []}]),
}


@pytest.fixture(scope="module")
def sample() -> Sample:
    graph = make_graph("quantized")
    return graph_to_json(graph), stored_tensors(graph)


@pytest.fixture(autouse=True)
def _nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    yield
    assert list(tmp_path.iterdir()) == []


def test_the_canary_works(tmp_path: Path) -> None:
    exec(CODE)
    tmp_path.joinpath("fxquant-canary").unlink()


@pytest.mark.parametrize("place", HOSTILE)
def test_hostile_content_is_refused(sample: Sample, place: str) -> None:
    data, tensors = sample
    find, values = HOSTILE[place]
    for value in values:
        with pytest.raises(ArtifactError):
            graph_from_json(changed(data, find(data), value), tensors)


@pytest.mark.parametrize("place", [p for p in HOSTILE if p.endswith(" name")])
def test_hostile_names_are_refused_when_used_throughout(sample: Sample, place: str) -> None:
    data, tensors = sample
    find, values = HOSTILE[place]
    old: Any = data
    for key in find(data):
        old = old[key]
    for value in values:
        if isinstance(value, str):
            text = json.dumps(data).replace(json.dumps(old), json.dumps(value))
            renamed = {value if k == old else k: v for k, v in tensors.items()}
            with pytest.raises(ArtifactError):
                graph_from_json(json.loads(text), renamed)


@pytest.mark.parametrize(
    "target", ["aten.from_file.default", "os.system", "aten.linear.default.__class__", 3, None, []]
)
def test_hostile_operator_is_refused(sample: Sample, target: Any) -> None:
    data, tensors = sample
    with pytest.raises(ArtifactError, match="may not occur"):
        graph_from_json(changed(data, call("target")(data), target), tensors)


def node(name: str, target: str, *args: Any) -> dict[str, Any]:
    made = {"name": name, "op": "call_function", "target": target, "args": list(args)}
    return {**made, "kwargs": {}, "layer": "", "source": ""}


def squares(first: dict[str, Any]) -> list[dict[str, Any]]:
    """Forty squarings: a number of a trillion digits if nobody stops it."""
    steps = ({"node": f"s{i}"} for i in range(40))
    return [first, *(node(f"s{i + 1}", "operator.mul", s, s) for i, s in enumerate(steps))]


CALLS = {
    "list times integer": [node("a", "operator.mul", [0], 10**12)],
    "getitem with a node": [node("a", "operator.getitem", {"node": "x"}, {"node": "x"})],
    "getitem of a number": [node("a", "operator.getitem", 3, 3)],
    "too few operands": [node("a", "operator.add", 3)],
    "too many operands": [node("a", "operator.neg", 3, 4)],
    "division by zero": [node("a", "operator.mod", 3, 0)],
    "too many arguments": [node("a", "aten.full.default", [1], 1, 1, 1)],
    "shapes that do not fit": [node("a", "aten.linear.default", {"node": "x"}, {"node": "x"})],
    "a keyword missing": [node("a", "aten.div.Tensor_mode", {"node": "x"}, 2)],
    "a name taken": [node("x", "aten.relu.default", {"node": "x"})],
    "a fixed batch": [node("a", "aten.expand.default", {"node": "x"}, [9, 3, 8, 8])],
    "huge batch": squares(node("s0", "aten.sym_size.int", {"node": "x"}, 0)),
    "huge integer": squares(node("s0", "operator.add", 3, 3)),
}


@pytest.mark.parametrize("added", CALLS.values(), ids=CALLS)
def test_hostile_calls_are_refused(sample: Sample, added: list[dict[str, Any]]) -> None:
    data, tensors = sample
    nodes = [*data["nodes"][:-1], *added, data["nodes"][-1]]
    with pytest.raises(ArtifactError):
        graph_from_json({**data, "nodes": nodes}, tensors)


def test_tensors_and_table_must_agree(sample: Sample) -> None:
    data, tensors = sample
    name = next(iter(tensors))
    extra = {**data["tensors"], "extra": {"dtype": "float32", "shape": [1], "order": [0]}}
    wrong: list[tuple[Any, Any]] = [
        (data, {}),
        (data, {**tensors, name: tensors[name][:1]}),
        (data, {**tensors, name: tensors[name].double()}),
        (data, {**tensors, "extra": torch.ones(1)}),
        ({**data, "tensors": extra}, {**tensors, "extra": torch.ones(1)}),
    ]
    for order in ([0, 0], [5, 1, 2], None, "01", [0.0], [True]):
        wrong.append((changed(data, ("tensors", name, "order"), order), tensors))
    for hostile, given in wrong:
        with pytest.raises(ArtifactError):
            graph_from_json(hostile, given)


def test_tensor_may_not_be_a_module_too(sample: Sample) -> None:
    data, tensors = sample
    owner = next(name for name in tensors if "." in name).rpartition(".")[0]
    other = next(name for name in tensors if not name.startswith(owner))
    text = json.dumps(data).replace(json.dumps(other), json.dumps(owner))
    renamed = {owner if k == other else k: v for k, v in tensors.items()}
    with pytest.raises(ArtifactError, match="same name"):
        graph_from_json(json.loads(text), renamed)


JUNK = [None, True, -1, 10**30, 1.5, "", "x", CODE, [], {}, [[]], {"node": "x"}, {"tuple": [1]}]


def test_random_damage_gives_a_graph_or_an_artifact_error(sample: Sample) -> None:
    data, tensors = sample
    everywhere, chance, refused = places(data), random.Random(0), 0
    for _ in range(100):
        damaged = changed(data, chance.choice(everywhere), chance.choice(JUNK))
        try:
            assert isinstance(graph_from_json(damaged, tensors), GraphModule)
        except ArtifactError:
            refused += 1
    assert refused > 60
