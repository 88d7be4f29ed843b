"""Which images belong to which class: a csv, or one folder per class."""

from __future__ import annotations

import csv
from pathlib import Path

from fxquant.errors import InputError
from fxquant.models.images import SUFFIXES

LABELS = "labels.csv"


def labelled_files(folder: Path, labels: Path | None) -> tuple[list[Path], list[int] | None]:
    """Images in a fixed order with their class indices, or None for the latter.

    ``labels``: a csv ``file,label``; without it ``labels.csv`` in the folder, else subfolders
    named by class index, else no labels.
    """
    if not folder.is_dir():
        raise InputError("the image folder does not exist", where=str(folder))
    listed = labels or (folder / LABELS if (folder / LABELS).is_file() else None)
    if listed is not None:
        return _from_csv(folder, listed)
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise InputError("the folder holds no images", where=str(folder))
    classes = [path.relative_to(folder).parts[0] for path in files]
    if all(name.isdecimal() for name in classes):
        return files, [int(name) for name in classes]
    return files, None


def _from_csv(folder: Path, path: Path) -> tuple[list[Path], list[int]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
        files = [folder / row["file"] for row in rows]
        classes = [int(row["label"]) for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError) as error:
        raise InputError(
            "the labels cannot be read",
            where=str(path),
            why=f"{type(error).__name__}: {error}",
            fix="give a csv with the columns file (relative to the images) and label (a number)",
        ) from error
    if not files:
        raise InputError("the labels name no image", where=str(path))
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise InputError("a labelled image does not exist", where=str(missing))
    return files, classes
