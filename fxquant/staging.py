"""Several output files, all or none."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fxquant.errors import InputError


def check_writable(*paths: Path | None) -> None:
    """Raise :class:`InputError` for what cannot be written, before the work is begun."""
    wanted = [path for path in paths if path is not None]
    for path in wanted:
        if path.is_dir():
            raise InputError("the output is a folder", where=str(path), fix="name a file in it")
        if not path.parent.is_dir():
            raise InputError(
                "the output folder does not exist", where=str(path.parent), fix="make it first"
            )
        if not os.access(path.parent, os.W_OK):
            raise InputError("the output folder is read-only", where=str(path.parent))
    if len({path.resolve() for path in wanted}) < len(wanted):
        raise InputError("two outputs have the same name", where=", ".join(map(str, wanted)))


@contextmanager
def staged(*paths: Path | None) -> Iterator[list[Path]]:
    """Names to write to in place of ``paths``; the files move there if the block ends well.

    None stands for an output that is not wanted: it takes no place in the list.
    """
    check_writable(*paths)
    wanted = [path for path in paths if path is not None]
    mark = secrets.token_hex(4)
    temporary = [path.with_name(f".{path.name[:100]}.{mark}{path.suffix}") for path in wanted]
    try:
        yield temporary
        for source, target in zip(temporary, wanted, strict=True):
            os.replace(source, target)
    except OSError as error:
        raise InputError(
            "cannot write the output", where=", ".join(map(str, wanted)), why=str(error)
        ) from error
    finally:
        for path in temporary:
            with suppress(OSError):
                path.unlink(missing_ok=True)
