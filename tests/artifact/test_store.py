"""The ``.fxq`` file: whole or absent, equal when read, refused when damaged or altered."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.fx import GraphModule

from fxquant.artifact import Stored, container, read
from fxquant.errors import ArtifactError
from fxquant.graph.text import print_graph
from fxquant.report.model import Report
from tests.artifact.samples import (
    PLAN,
    REPORT,
    make_graph,
    members_of,
    save,
    vit_call,
)


@pytest.fixture(scope="module")
def graph() -> GraphModule:
    return make_graph("quantized")


@pytest.fixture(scope="module")
def source(graph: GraphModule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("artifact") / "tiny.fxq", graph)


@pytest.fixture(scope="module")
def stored(source: Path) -> Stored:
    return read(source)


class TestRoundTrip:
    def test_graph_is_bit_equal(self, graph: GraphModule, stored: Stored) -> None:
        for batch in (1, 2, 7):
            (x,), _ = vit_call(batch)
            assert torch.equal(stored.graph_module(x), graph(x))
        assert print_graph(stored.graph_module) == print_graph(graph)

    def test_plan_and_report_are_equal(self, stored: Stored) -> None:
        assert stored.plan == PLAN
        assert stored.report == REPORT

    def test_manifest_describes_the_file(self, stored: Stored) -> None:
        manifest = stored.manifest
        assert (manifest["format"], manifest["format_version"]) == ("fxquant", 1)
        assert (manifest["backend"], manifest["model"]) == ("x86", "tiny")
        assert (manifest["recipe"], manifest["torch"]) == ("w8a8", torch.__version__)
        assert manifest["target"] == PLAN.target.to_json()
        assert manifest["extra"] == {"pipeline": "plan, apply"}

    def test_every_other_member_has_a_checksum(self, source: Path, stored: Stored) -> None:
        members = members_of(source)
        assert set(members) == set(container.MEMBERS)
        del members["manifest.json"]
        sums = {name: hashlib.sha256(content).hexdigest() for name, content in members.items()}
        assert stored.manifest["sha256"] == sums

    def test_all_types_of_codes_occur(self, stored: Stored) -> None:
        values = [n.meta.get("val") for n in stored.graph_module.graph.nodes]
        found = {v.dtype for v in values if isinstance(v, torch.Tensor)}
        assert found >= {torch.uint8, torch.int8, torch.uint16, torch.float32, torch.int64}

    def test_second_generation_is_the_same_file(
        self, source: Path, stored: Stored, tmp_path: Path
    ) -> None:
        again = save(tmp_path / "again.fxq", stored.graph_module)
        assert again.read_bytes() == source.read_bytes()

    def test_holds_no_path_of_this_machine_and_no_code(
        self, graph: GraphModule, tmp_path: Path
    ) -> None:
        row = replace(REPORT.rows[0], source=f"{__file__}:12")
        path = save(tmp_path / "x.fxq", graph, report=REPORT.with_rows((row,)))
        assert read(path).report.rows[0].source == "artifact/test_store.py:12"
        for content in members_of(path).values():
            assert str(Path(__file__).parents[1]).encode() not in content
            assert b"def forward" not in content
            assert b"import" not in content

    def test_takes_text_paths(self, source: Path) -> None:
        assert read(str(source)).plan == PLAN


class TestWriting:
    def test_makes_one_file_with_ordinary_rights(self, graph: GraphModule, tmp_path: Path) -> None:
        path = save(tmp_path / "a.fxq", graph)
        assert list(tmp_path.iterdir()) == [path]
        tmp_path.joinpath("plain").touch()
        assert path.stat().st_mode == tmp_path.joinpath("plain").stat().st_mode

    @pytest.mark.parametrize("step", ["replace", "fsync"])
    def test_failure_leaves_the_old_file_and_nothing_else(
        self, graph: GraphModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        path = tmp_path / "a.fxq"
        path.write_bytes(b"old")

        def fail(*_: Any) -> None:
            raise OSError("disk full")

        monkeypatch.setattr(os, step, fail)
        with pytest.raises(ArtifactError, match="disk full"):
            save(path, graph)
        assert list(tmp_path.iterdir()) == [path]
        assert path.read_bytes() == b"old"

    def test_interruption_leaves_nothing(
        self, graph: GraphModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*_: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path / "a.fxq", graph)
        assert list(tmp_path.iterdir()) == []

    def test_bad_places_are_refused(self, graph: GraphModule, tmp_path: Path) -> None:
        for path in (tmp_path, tmp_path / "absent" / "a.fxq"):
            with pytest.raises(ArtifactError, match="cannot write"):
                save(path, graph)
        assert list(tmp_path.iterdir()) == []

    def test_unknown_operator_is_refused_by_name_and_layer(self, tmp_path: Path) -> None:
        graph = make_graph("vit")
        node = next(n for n in graph.graph.nodes if "gelu" in str(n.target))
        node.target, node.kwargs = torch.ops.aten.bernoulli.default, {}
        with pytest.raises(ArtifactError, match=r"(?s)aten\.bernoulli\.default.*blocks\.0"):
            save(tmp_path / "a.fxq", graph)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "change",
        [
            {"backend": "../x"},
            {"backend": ""},
            {"model_name": "a\nb"},
            {"recipe": 3},
            {"extra": {"x": print}},
            {"extra": []},
        ],
    )
    def test_descriptions_that_could_not_be_read_are_refused(
        self, graph: GraphModule, tmp_path: Path, change: dict[str, Any]
    ) -> None:
        with pytest.raises(ArtifactError):
            save(tmp_path / "a.fxq", graph, **change)
        assert list(tmp_path.iterdir()) == []


def test_reading_makes_no_file(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.fxq"
    path.write_bytes(source.read_bytes())
    read(path)
    assert list(tmp_path.iterdir()) == [path]


def test_stored_report_is_complete(stored: Stored) -> None:
    assert isinstance(stored.report, Report)
    assert stored.report.totals == REPORT.totals
