"""The ``.fxq`` file: a quantized graph, its plan and its report. No code, no pickle.

A zip of ``manifest.json`` (versions, checksums), ``graph.json``, ``plan.json``, ``report.json``
and ``tensors.safetensors``. The checksums find damage; they prove nothing about who wrote the
file, so reading relies on none of the content being executable.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch.fx import GraphModule

from fxquant.artifact import checks, container
from fxquant.artifact.buffers import stored_tensors
from fxquant.artifact.checks import brief, unsound, unstorable
from fxquant.artifact.codec import graph_from_json, graph_to_json
from fxquant.artifact.report_check import report_from_json, without_paths
from fxquant.errors import ArtifactError, FxquantError
from fxquant.pipeline.plan import Plan
from fxquant.report.model import Report

FORMAT = "fxquant"
FORMAT_VERSION = 1
_TEXTS = ("fxquant", "torch", "backend", "model", "recipe")
_KEYS = frozenset({"format", "format_version", "target", "extra", "sha256", *_TEXTS})
_CHECKED = (*container.DOCUMENTS, container.TENSORS)
_BACKEND = re.compile(r"[A-Za-z0-9_.\-]{1,100}")


@dataclass(frozen=True)
class Stored:
    """What an artifact holds. ``manifest`` has been checked; ``manifest["extra"]`` is a dict."""

    graph_module: GraphModule
    plan: Plan
    report: Report
    manifest: dict[str, Any]


def write(
    path: str | Path,
    *,
    graph_module: GraphModule,
    plan: Plan,
    report: Report,
    backend: str,
    model_name: str,
    recipe: str,
    extra: dict[str, Any],
) -> None:
    """Write an artifact whole or not at all; equal content gives equal bytes.

    ``extra``: plain data for the manifest. Raises :class:`ArtifactError`, before anything is
    written, for a graph that :func:`read` would refuse.
    """
    graph = graph_to_json(graph_module)
    tensors = stored_tensors(graph_module)
    documents = {
        "graph.json": container.to_bytes(graph),
        "plan.json": container.to_bytes(plan.to_json()),
        "report.json": container.to_bytes(without_paths(report).to_json()),
    }
    _check_readable(documents, tensors)
    members = documents | {container.TENSORS: safetensors.torch.save(tensors)}
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "fxquant": _version(),
        "torch": str(torch.__version__),
        "backend": backend,
        "model": model_name,
        "recipe": recipe,
        "target": plan.target.to_json(),
        "extra": extra,
        "sha256": {name: container.digest(members[name]) for name in _CHECKED},
    }
    try:
        _check_manifest(manifest, where="argument extra")
        members[container.MANIFEST] = container.to_bytes(manifest)
    except (TypeError, ValueError) as error:
        raise unstorable("this description", where="manifest.json", why=str(error)) from error
    too_large = [n for n, m in members.items() if len(m) > container.LARGEST_DOCUMENT]
    if set(too_large) - {container.TENSORS}:
        raise unstorable("a graph of this size", where=", ".join(too_large))
    container.write_atomically(Path(path), members)


def read(path: str | Path) -> Stored:
    """Read and check an artifact; nothing in it is executed, and no file is made.

    Raises :class:`ArtifactError` for anything but a sound artifact of this format version.
    """
    place = str(path)
    with container.open_archive(Path(path)) as archive:
        content = container.read_member(archive, container.MANIFEST, where=place)
        manifest = container.from_bytes(content, where=f"{place}, manifest.json")
        _check_format(manifest, where=place)
        container.check_members(archive, where=place)
        _check_manifest(manifest, where=f"{place}, manifest.json")
        members = {n: container.read_member(archive, n, where=place) for n in _CHECKED}
    for name, content in members.items():
        if container.digest(content) != manifest["sha256"][name]:
            raise unsound("its checksum is not the one in the manifest", where=f"{place}, {name}")
    try:
        return _decode(members, manifest)
    except FxquantError as error:
        if isinstance(error, ArtifactError) and error.where.startswith(place):
            raise
        raise ArtifactError(
            error.what, where=f"{place}, {error.where}", why=error.why, fix=error.fix
        ) from error
    except Exception as error:  # a last fence: content that no check above foresaw
        raise unsound(f"{type(error).__name__}: {str(error)[:300]}", where=place) from error


def _decode(members: dict[str, bytes], manifest: dict[str, Any]) -> Stored:
    graph, plan, report = _decode_documents(members)
    if plan.target.to_json() != manifest["target"]:
        raise unsound("plan and manifest name different targets", where="manifest.json")
    try:
        loaded = safetensors.torch.load(members.pop(container.TENSORS))
    except Exception as error:  # SafetensorError, and KeyError for an unknown dtype
        raise unsound(str(error)[:300], where=container.TENSORS) from error
    # Copies, for torch's own alignment: the loaded ones lie at any address.
    tensors = {name: loaded.pop(name).clone() for name in list(loaded)}
    return Stored(graph_from_json(graph, tensors), plan, report, manifest)


def _decode_documents(members: dict[str, bytes]) -> tuple[Any, Plan, Report]:
    graph, plan, report = (
        container.from_bytes(members[name], where=name) for name in container.DOCUMENTS
    )
    checks.plain_texts(plan, where="plan.json")
    checks.plain_texts(report, where="report.json")
    return graph, Plan.from_json(plan), report_from_json(report)


def _check_readable(documents: dict[str, bytes], tensors: dict[str, Tensor]) -> None:
    """Apply the reader's rules to what is about to be written."""
    try:
        graph, _, _ = _decode_documents(documents)
        graph_from_json(graph, tensors)
    except FxquantError as error:
        raise unstorable("this graph", where=error.where, why=error.why or error.what) from error


def _check_format(manifest: Any, *, where: str) -> None:
    """Whose file, and of which version: before the rest, which another version may change."""
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ArtifactError(
            "this is not a fxquant artifact",
            where=where,
            why="its manifest does not say so",
            fix="name a .fxq file written by fxquant",
        )
    number = checks.integer(manifest.get("format_version"), where=f"{where}, manifest.json")
    if number > FORMAT_VERSION:
        raise ArtifactError(
            "the artifact was written by a newer fxquant",
            where=where,
            why=f"its format version is {number}; this fxquant {_version()} reads {FORMAT_VERSION}",
            fix="upgrade fxquant",
        )
    if number < 1:
        raise unsound(f"format version {number} never existed", where=where)


def _check_manifest(manifest: dict[str, Any], *, where: str) -> None:
    checks.mapping(manifest, _KEYS, where=where)
    for key in _TEXTS:
        checks.text(manifest[key], where=f"{where}, {key}")
    if _BACKEND.fullmatch(manifest["backend"]) is None:
        raise unsound(f"{brief(manifest['backend'])} cannot be a backend", where=where)
    if not isinstance(manifest["extra"], dict) or not isinstance(manifest["target"], dict):
        raise unsound("target and extra must be mappings", where=where)
    checks.plain_texts(manifest["extra"], where=f"{where}, extra")
    sums = checks.mapping(manifest["sha256"], _CHECKED, where=f"{where}, sha256")
    for name, value in sums.items():
        if not isinstance(value, str) or re.fullmatch(r"[0-9a-f]{64}", value) is None:
            raise unsound(f"the checksum of {name} is no checksum", where=where)


def _version() -> str:
    try:
        return version("fxquant")
    except PackageNotFoundError:  # run from a source tree
        return "unknown"
