"""The wheel holds fxquant and nothing else."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[1]
DATA = (
    "py.typed",
    "recipes/*.yaml",
    "quickstart/*.safetensors",
    "backends/x86/kernels/*.cpp",
    "backends/x86/kernels/*.h",
)


def copy_tree(destination: Path) -> None:
    """Copies what a clone holds: root files and links, the package and the tests."""
    destination.mkdir()
    for entry in ROOT.iterdir():
        if entry.is_symlink() or entry.is_file():
            shutil.copy2(entry, destination / entry.name, follow_symlinks=False)
    for folder in ("fxquant", "tests"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, destination / folder, symlinks=True, ignore=ignore)


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    base = tmp_path_factory.mktemp("wheel")
    copy_tree(base / "tree")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "../dist"]
    done = subprocess.run(command, cwd=base / "tree", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (base / "dist").glob("fxquant-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheel_holds_only_fxquant(wheel_names: set[str]) -> None:
    def is_ours(name: str) -> bool:
        top = PurePosixPath(name).parts[0]
        return top == "fxquant" or (top.startswith("fxquant-") and top.endswith(".dist-info"))

    assert [name for name in sorted(wheel_names) if not is_ours(name)] == []


@pytest.mark.parametrize("pattern", ["**/*.py", *DATA])
def test_wheel_holds_every_file_of(wheel_names: set[str], pattern: str) -> None:
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "fxquant").glob(pattern)}
    assert sorted(files - wheel_names) == []


@pytest.mark.parametrize("pattern", ["py.typed", "recipes/*.yaml", "quickstart/*.safetensors"])
def test_wheel_has_package_data(wheel_names: set[str], pattern: str) -> None:
    assert any(PurePosixPath(name).match(f"fxquant/{pattern}") for name in wheel_names)


@pytest.mark.parametrize("name", ["passes", "backends"])
def test_root_link_points_into_the_package(name: str) -> None:
    link = ROOT / name
    assert link.is_symlink()
    assert link.readlink() == Path("fxquant") / name
