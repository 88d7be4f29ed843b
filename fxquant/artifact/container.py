"""The zip around an artifact: fixed bytes for fixed content, and a reader that trusts nothing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from fxquant.artifact.checks import brief, unsound
from fxquant.errors import ArtifactError

MANIFEST = "manifest.json"
TENSORS = "tensors.safetensors"
DOCUMENTS = ("graph.json", "plan.json", "report.json")
MEMBERS = (MANIFEST, *DOCUMENTS, TENSORS)
LARGEST_DOCUMENT = 64 * 2**20
_LARGEST_RATIO = 200  # JSON of graphs shrinks to a thirtieth; zeros shrink to a thousandth
_EPOCH = (1980, 1, 1, 0, 0, 0)


def digest(content: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(content).hexdigest()


def to_bytes(data: Any) -> bytes:
    """Compact JSON."""
    return json.dumps(data, separators=(",", ":")).encode()


def from_bytes(content: bytes, *, where: str) -> Any:
    """JSON without doubled keys; raises for anything else, however deep."""
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:  # both decoding errors are ValueErrors
        raise unsound(f"not JSON: {str(error)[:200]}", where=where) from error


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key occurs twice")
    return made


def write_atomically(path: Path, members: Mapping[str, bytes]) -> None:
    """Write the archive beside ``path`` and move it there: readers see the old file or the new."""
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.tmp")
    try:
        if path.is_dir():
            raise IsADirectoryError("this is a folder")
        with open(temporary, "xb") as file:
            _pack(file, members)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ArtifactError(
            "cannot write the artifact",
            where=str(path),
            why=str(error),
            fix="name a file in a folder that exists and that you may write to",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _pack(file: BinaryIO, members: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for name in MEMBERS:
            info = zipfile.ZipInfo(name, _EPOCH)
            info.create_system = 3
            info.external_attr = 0o644 << 16
            # Weights hardly shrink, and stored bytes cannot hide a bomb.
            info.compress_type = zipfile.ZIP_STORED if name == TENSORS else zipfile.ZIP_DEFLATED
            archive.writestr(info, members[name])


def open_archive(path: Path) -> zipfile.ZipFile:
    """The archive at ``path``, if it looks like one of ours."""
    if not path.is_file():
        raise ArtifactError(
            "there is no such artifact", where=str(path), fix="check the path of the .fxq file"
        )
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # zipfile raises many types on bytes that are no archive
        raise ArtifactError(
            "this is not an artifact, or it is cut short",
            where=str(path),
            why=str(error)[:200],
            fix="name a .fxq file written by fxquant; if it was copied, copy it again",
        ) from error
    if MANIFEST not in archive.namelist():
        archive.close()
        raise ArtifactError(
            "this is not a fxquant artifact",
            where=str(path),
            why="the archive holds no manifest.json",
            fix="name a .fxq file written by fxquant",
        )
    return archive


def check_members(archive: zipfile.ZipFile, *, where: str) -> None:
    """Raise unless the archive holds our members, each once, and nothing else."""
    names = sorted(archive.namelist())
    missing = sorted(set(MEMBERS) - set(names))
    if missing:
        raise unsound(f"the archive lacks {', '.join(missing)}", where=where)
    if names != sorted(MEMBERS):
        extra = next(n for n in names if n not in MEMBERS or names.count(n) > 1)
        raise unsound(f"the archive holds {brief(extra)} as well", where=where)


def read_member(archive: zipfile.ZipFile, name: str, *, where: str) -> bytes:
    """The content of one member; sizes are checked before anything is unpacked."""
    place = f"{where}, {name}"
    info = archive.getinfo(name)
    if name == TENSORS:
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise unsound("tensors must not be compressed", where=place)
    else:
        limit = min(LARGEST_DOCUMENT, _LARGEST_RATIO * info.compress_size + 1024)
        if info.file_size > limit:
            raise unsound(f"it would unpack to {info.file_size} bytes", where=place)
    try:
        return archive.read(info)
    except Exception as error:  # zipfile, zlib and the file system raise types of their own
        raise unsound(f"it cannot be unpacked: {str(error)[:200]}", where=place) from error
