"""Files that are no artifact, or no longer one."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from typing import Any

import fxquant
from fxquant.errors import ArtifactError
from tests.bad_inputs.place import Call, Cases, Place, artifact_bytes

CASES = Cases()


def with_bytes(place: Place, change: Callable[[bytes], bytes]) -> Call:
    path = place.file(change(artifact_bytes()), "model.fxq")
    return lambda: fxquant.load(path, executor="eager")


def cut(share: float) -> Callable[[bytes], bytes]:
    return lambda whole: whole[: int(share * len(whole))]


def flipped(name: str, share: float) -> Callable[[bytes], bytes]:
    """One bit of a member turned over: the archive's own dates may change, its content may not."""

    def flip(whole: bytes) -> bytes:
        made = bytearray(whole)
        with zipfile.ZipFile(io.BytesIO(whole)) as archive:
            info = archive.getinfo(name)
        start = info.header_offset + 30 + len(name)
        made[start + int(share * (info.compress_size - 1))] ^= 0x10
        return bytes(made)

    return flip


def in_member(name: str, change: Callable[[bytes], bytes | None]) -> Callable[[bytes], bytes]:
    """The archive with one member rewritten, or left out."""

    def rewrite(whole: bytes) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(buffer, "w") as new:
            for member in old.namelist():
                content = old.read(member)
                made = change(content) if member == name else content
                if made is not None:
                    new.writestr(member, made)
        return buffer.getvalue()

    return rewrite


def manifest(key: str, value: Any) -> Callable[[bytes], bytes]:
    return in_member(
        "manifest.json", lambda text: json.dumps(json.loads(text) | {key: value}).encode()
    )


def foreign(whole: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", b"cos\nsystem\n")
    return buffer.getvalue()


CASES.family(
    ArtifactError,
    [(f"an artifact cut to {share:.0%}", cut(share)) for share in (0.01, 0.25, 0.5, 0.75, 0.99)]
    + [
        (f"a bit of {name} flipped at {share:.0%}", flipped(name, share))
        for name in ("manifest.json", "graph.json", "plan.json", "tensors.safetensors")
        for share in (0.1, 0.9)
    ]
    + [
        ("an empty file", lambda whole: b""),
        ("a text file", lambda whole: b"weights"),
        ("a foreign archive", foreign),
        ("an artifact of a newer version", manifest("format_version", 99)),
        ("an artifact whose version is text", manifest("format_version", "1")),
        ("an artifact of another format", manifest("format", "onnx")),
        ("an artifact for an unknown backend", manifest("backend", "arm")),
        ("an artifact whose backend is a path", manifest("backend", "../x86")),
        ("an artifact without a plan", in_member("plan.json", lambda content: None)),
        ("an artifact without tensors", in_member("tensors.safetensors", lambda content: None)),
        ("an artifact with another plan", in_member("plan.json", lambda content: content + b" ")),
        ("an artifact whose graph is empty", in_member("graph.json", lambda content: b"{}")),
    ],
    with_bytes,
)


@CASES("a file that does not exist", ArtifactError)
def _(place: Place) -> Call:
    return lambda: fxquant.load(place.folder / "nowhere.fxq")


@CASES("a folder in place of an artifact", ArtifactError)
def _(place: Place) -> Call:
    return lambda: fxquant.load(place.folder)


CASES.family(
    ArtifactError,
    [("None as an artifact", None), ("a number as an artifact", 3), ("bytes as an artifact", b"x")],
    lambda place, value: lambda: fxquant.load(value),
)
