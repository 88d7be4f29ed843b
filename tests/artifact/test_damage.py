"""Damaged, foreign and altered ``.fxq`` files: refused with an error that says what is wrong."""

from __future__ import annotations

import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.fx import GraphModule

from fxquant.artifact import Stored, container, read
from fxquant.errors import ArtifactError
from tests.artifact.samples import PLAN, make_graph, members_of, packed, rewritten, save, vit_call


@pytest.fixture(scope="module")
def graph() -> GraphModule:
    return make_graph("quantized")


@pytest.fixture(scope="module")
def source(graph: GraphModule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("artifact") / "tiny.fxq", graph)


@pytest.fixture(scope="module")
def stored(source: Path) -> Stored:
    return read(source)


def outputs(graph_module: GraphModule) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = graph_module(*vit_call(3)[0])
    return result


class TestDamage:
    def test_truncation_anywhere_is_refused(self, source: Path, tmp_path: Path) -> None:
        content, path = source.read_bytes(), tmp_path / "cut.fxq"
        offsets = {*range(0, len(content), max(1, len(content) // 60)), len(content) - 1, 1, 21}
        for offset in sorted(offsets):
            path.write_bytes(content[:offset])
            with pytest.raises(ArtifactError):
                read(path)

    def test_flipped_bits_are_refused_or_harmless(
        self, source: Path, stored: Stored, tmp_path: Path
    ) -> None:
        content, path, chance = source.read_bytes(), tmp_path / "bit.fxq", random.Random(0)
        with zipfile.ZipFile(source) as archive:
            directory = archive.start_dir
        # Everywhere, and again where the zip keeps its own notes and little else.
        offsets = [chance.randrange(len(content)) for _ in range(40)]
        offsets += [chance.randrange(directory, len(content)) for _ in range(30)]
        refused, reference = 0, outputs(stored.graph_module)
        for offset in offsets:
            damaged = bytearray(content)
            damaged[offset] ^= 1 << chance.randrange(8)
            path.write_bytes(damaged)
            try:
                found = read(path)
            except ArtifactError:
                refused += 1
                continue
            assert (found.plan, found.report, found.manifest) == (
                stored.plan,
                stored.report,
                stored.manifest,
            )
            assert torch.equal(outputs(found.graph_module), reference)
        assert refused > 45

    def test_flip_in_tensors_is_found_by_checksum(self, source: Path, tmp_path: Path) -> None:
        members = members_of(source)
        content = bytearray(members["tensors.safetensors"])
        content[-1] ^= 1
        members["tensors.safetensors"] = bytes(content)
        with pytest.raises(ArtifactError, match="checksum"):
            read(packed(tmp_path / "a.fxq", members, sign=False))

    @pytest.mark.parametrize("name", container.MEMBERS)
    def test_missing_member_is_refused(self, source: Path, tmp_path: Path, name: str) -> None:
        members = members_of(source)
        del members[name]
        with pytest.raises(ArtifactError):
            read(packed(tmp_path / "a.fxq", members, sign=False))

    @pytest.mark.parametrize(
        "name", ["code.py", "../../evil", "/etc/evil", "C:\\evil", "graph.json/", "data.pkl"]
    )
    def test_extra_member_is_refused_and_not_unpacked(
        self, source: Path, tmp_path: Path, name: str
    ) -> None:
        folder = tmp_path / "a" / "b"
        folder.mkdir(parents=True)
        path = packed(folder / "a.fxq", {**members_of(source), name: b"x"})
        with pytest.raises(ArtifactError):
            read(path)
        assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_doubled_member_is_refused(self, source: Path, tmp_path: Path) -> None:
        path = packed(tmp_path / "a.fxq", members_of(source))
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("graph.json", b"{}")
        with pytest.raises(ArtifactError, match=r"graph\.json"):
            read(path)


class TestForeignFiles:
    def test_absent_file(self, tmp_path: Path) -> None:
        for path in (tmp_path / "absent.fxq", tmp_path):
            with pytest.raises(ArtifactError, match="no such artifact"):
                read(path)

    @pytest.mark.parametrize("content", [b"", b"PK", b"\x80\x04N.", b"not a zip" * 99])
    def test_other_formats(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "a.fxq"
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=r"a\.fxq"):
            read(path)

    def test_other_archives(self, tmp_path: Path) -> None:
        path = tmp_path / "a.fxq"
        torch.save({"x": torch.ones(1)}, path)
        with pytest.raises(ArtifactError, match="not a fxquant artifact"):
            read(path)
        with pytest.raises(ArtifactError, match="not a fxquant artifact"):
            read(packed(path, {"manifest.json": b'{"format": "other"}'}, sign=False))

    def test_newer_format_says_so(self, source: Path, tmp_path: Path) -> None:
        def newer(manifest: dict[str, Any]) -> dict[str, Any]:
            return {"format": "fxquant", "format_version": 2, "new": manifest}

        path = rewritten(tmp_path / "a.fxq", source, sign=False, manifest=newer)
        with pytest.raises(ArtifactError, match=r"(?s)newer fxquant.*upgrade"):
            read(path)


def setter(key: str, value: Any) -> Callable[[Any], Any]:
    return lambda data: {**data, key: value}


def row(**changes: Any) -> Callable[[Any], Any]:
    return lambda data: {**data, "rows": [{**data["rows"][0], **changes}]}


JUNK: list[Any] = [None, 3, [], {}, "\u0000", [[1]], True]
WRONG: list[tuple[str, Callable[[Any], Any]]] = [
    *(("manifest", setter(key, value)) for key in ("backend", "model", "torch") for value in JUNK),
    *(("manifest", setter("sha256", value)) for value in ({}, [], {"x": "y"}, None)),
    *(("manifest", setter("format_version", value)) for value in (0, -1, "1", 1.0, True, None)),
    ("manifest", setter("target", {})),
    ("manifest", setter("extra", 3)),
    ("manifest", setter("code", "import os")),
    *((name, lambda _, v=value: v or []) for name in ("graph", "plan", "report") for value in JUNK),
    ("plan", setter("decisions", {"head:input": {"scheme": "s99/x", "reason": ""}})),
    ("plan", setter("decisions", {"head": 3})),
    ("plan", setter("decisions", {"head:input": []})),
    ("plan", setter("target", [])),
    ("plan", setter("fxquant_plan", 1)),
    *(("report", setter("rows", value)) for value in (None, 3, {}, [3], "abc", [None], [{}])),
    *(("report", setter(key, [1])) for key in ("model", "simulated", "output_sqnr_db", "timings")),
    ("report", row(layer=3)),
    ("report", row(layer="\x1b[2J")),
    ("plan", setter("recipe", "\r")),
    ("report", row(macs="many")),
    ("report", row(int8=1)),
    ("report", row(input_shape="abc")),
    ("report", row(input_shape=None)),
    ("report", row(sqnr_db="high")),
    ("report", row(unknown=1)),
]  # fmt: skip


class TestAlteredFiles:
    """Checksums are made right again: they are no defence against whoever writes the file."""

    def test_rewriting_alone_changes_nothing(self, source: Path, tmp_path: Path) -> None:
        assert read(rewritten(tmp_path / "a.fxq", source)).plan == PLAN

    def test_wrong_types_are_refused(self, source: Path, tmp_path: Path) -> None:
        for number, (name, change) in enumerate(WRONG):
            sign = name != "manifest"
            path = rewritten(tmp_path / f"{number}.fxq", source, sign=sign, **{name: change})
            with pytest.raises(ArtifactError, match=path.name):
                read(path)

    @pytest.mark.parametrize("name", ["manifest.json", "graph.json", "plan.json", "report.json"])
    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{",
            b"\xff\xfe",
            b"[" * 200_000 + b"]" * 200_000,
            b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
            b'{"format": "fxquant", "format": "fxquant"}',
            b"1" * 10_000,
        ],
        ids=["empty", "open", "no text", "deep list", "deep dict", "doubled key", "huge number"],
    )
    def test_malformed_documents_are_refused(
        self, source: Path, tmp_path: Path, name: str, content: bytes
    ) -> None:
        members = {**members_of(source), name: content}
        path = packed(tmp_path / "a.fxq", members, sign=name != "manifest.json")
        with pytest.raises(ArtifactError):
            read(path)

    @pytest.mark.parametrize("name", container.MEMBERS)
    def test_bombs_are_refused_before_they_unpack(
        self, source: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "a.fxq"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, content in members_of(source).items():
                archive.writestr(member, bytes(2**22) if member == name else content)
        unpacked: list[str] = []
        original = zipfile.ZipFile.read

        def watched(archive: zipfile.ZipFile, info: Any, *rest: Any) -> bytes:
            unpacked.append(info.filename)
            return original(archive, info, *rest)

        monkeypatch.setattr(zipfile.ZipFile, "read", watched)
        with pytest.raises(ArtifactError, match=r"unpack|compressed"):
            read(path)
        assert name not in unpacked

    def test_large_documents_are_refused(
        self, source: Path, monkeypatch: pytest.MonkeyPatch, graph: GraphModule, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(container, "LARGEST_DOCUMENT", 5000)
        with pytest.raises(ArtifactError, match="unpack"):
            read(source)
        with pytest.raises(ArtifactError, match="size"):
            save(tmp_path / "a.fxq", graph)

    @pytest.mark.parametrize(
        "change",
        [
            lambda header: header.update({"__class__.x": header.pop(next(iter(header)))}),
            lambda header: next(iter(header.values())).update(dtype="F128"),
            lambda header: next(iter(header.values())).update(data_offsets=[0, 2**40]),
            lambda header: next(iter(header.values())).update(shape=[2**40]),
            lambda header: header.clear(),
        ],
    )
    def test_altered_tensors_are_refused(
        self, source: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]
    ) -> None:
        members = members_of(source)
        content = members["tensors.safetensors"]
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        change(header)
        made = json.dumps(header).encode()
        members["tensors.safetensors"] = (
            len(made).to_bytes(8, "little") + made + content[8 + size :]
        )
        with pytest.raises(ArtifactError):
            read(packed(tmp_path / "a.fxq", members))

    def test_code_in_names_does_not_run(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        code = "__import__('pathlib').Path('fxquant-canary').touch()"

        def attack(graph: dict[str, Any]) -> Any:
            old = graph["nodes"][5]["name"]
            return json.loads(json.dumps(graph).replace(f'"{old}"', json.dumps(f"a=0;{code};a")))

        path = rewritten(tmp_path / "a.fxq", source, graph=attack)
        with pytest.raises(ArtifactError, match="cannot be a name"):
            read(path)
        assert list(tmp_path.iterdir()) == [path]
