"""The C++ kernels as shared objects: built at first use, cached by content, one per level."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fxquant.errors import BackendError

_SOURCES = Path(__file__).with_name("kernels")
_COMMON = ("-O3", "-std=c++17", "-fPIC", "-fopenmp", "-fvisibility=hidden")
# What GCC says of its own intrinsics, and of vectors in signatures that never leave a file.
_QUIET = ("-Wno-psabi", "-Wno-uninitialized", "-Wno-maybe-uninitialized")
_WARNINGS = ("-Wall", "-Wextra", *_QUIET)
_AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni", "fma")
# Level, best first: compiler options, and the CPU flags (Linux's names) it needs.
_LEVELS: dict[str, tuple[tuple[str, ...], frozenset[str]]] = {
    "avx512vnni": (
        tuple(f"-m{name}" for name in _AVX512),
        frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "fma"}),
    ),
    "avxvnni": (("-mavx2", "-mfma", "-mavxvnni"), frozenset({"avx2", "fma", "avx_vnni"})),
    "avx2": (("-mavx2", "-mfma"), frozenset({"avx2", "fma"})),
    "portable": ((), frozenset()),
}


def levels() -> tuple[str, ...]:
    """Instruction-set levels that this CPU runs, best first; empty where it is not x86-64."""
    if platform.machine().lower() not in {"x86_64", "amd64"}:
        return ()
    have = _cpu_flags()
    return tuple(name for name, (_, needed) in _LEVELS.items() if needed <= have)


def compiler() -> str | None:
    """Path of the C++ compiler: ``$CXX``, else g++ or clang++; None without one."""
    for name in (os.environ.get("CXX", ""), "g++", "clang++"):
        if name and (found := shutil.which(name)):
            return found
    return None


@functools.cache
def library(level: str) -> ctypes.CDLL:
    """The kernels of a level, loaded. Raises :class:`BackendError` where they cannot be built.

    The file lies in the user's cache (``$FXQUANT_CACHE``, else ``$XDG_CACHE_HOME/fxquant``, else
    ``~/.cache/fxquant``), named by a hash of sources, options and compiler.
    """
    with_cxx = compiler()
    if with_cxx is None:
        raise BackendError(
            "there is no C++ compiler for the x86 kernels",
            where="$CXX, g++, clang++",
            fix="install g++, or go on with the oneDNN kernels, which need none",
        )
    path = _cache_folder() / f"kernels-{level}-{_content_hash(with_cxx, level)}.so"
    if not path.exists():
        _build(with_cxx, level, path)
    return _typed(ctypes.CDLL(str(path)))


def _options(level: str) -> tuple[str, ...]:
    extra = ("-mavx512bf16",) if level == "avx512vnni" and "avx512_bf16" in _cpu_flags() else ()
    return (*_COMMON, *_LEVELS[level][0], *extra)


@functools.cache
def _cpu_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return frozenset(line.partition(":")[2].split())


def _cache_folder() -> Path:
    if named := os.environ.get("FXQUANT_CACHE"):
        return Path(named)
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "fxquant"


def _content_hash(with_cxx: str, level: str) -> str:
    digest = hashlib.sha256()
    for source in sorted((*_SOURCES.glob("*.cpp"), *_SOURCES.glob("*.h"))):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    version = subprocess.run([with_cxx, "--version"], capture_output=True, check=False)
    digest.update(repr(_options(level)).encode() + version.stdout)
    return digest.hexdigest()[:20]


def _build(with_cxx: str, level: str, path: Path) -> None:
    """Compile every source at once, link, and move the result into place in one step."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            sources = sorted(_SOURCES.glob("*.cpp"))
            objects = [Path(folder, f"{source.stem}.o") for source in sources]
            options = (*_options(level), *_WARNINGS)
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                pairs = zip(sources, objects, strict=True)
                commands = [
                    [with_cxx, *options, "-c", str(source), "-o", str(made)]
                    for source, made in pairs
                ]
                list(pool.map(_run, commands))
            linked = Path(folder, path.name)
            _run([with_cxx, *_options(level), "-shared", *map(str, objects), "-o", str(linked)])
            os.replace(linked, path)
    except OSError as error:
        raise BackendError(
            "the x86 kernels cannot be written",
            where=str(path.parent),
            why=str(error),
            fix="set FXQUANT_CACHE to a folder that can be written",
        ) from error


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BackendError(
            "the x86 kernels do not compile",
            where=" ".join(command[:1] + command[-3:]),
            why="\n".join(done.stderr.splitlines()[:10]),
            fix="set CXX to a newer g++ or clang++ (C++17, GCC's vector extensions)",
        )


def _typed(loaded: ctypes.CDLL) -> ctypes.CDLL:
    """Sizes are 64 bits wide; ctypes takes results for 32 otherwise."""
    sizes = ("panel", "packed_bytes", "attention_scratch", "float_attention_scratch", "workspace")
    for name in sizes:
        getattr(loaded, f"fxq_{name}").restype = ctypes.c_int64
    return loaded
