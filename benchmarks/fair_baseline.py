"""Start the running script again with the settings that a fair fp32 baseline needs."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from fxquant.timing import baseline_is_fair

SOURCE = Path(__file__).with_name("mkl_vendor.c")
MARK = "FXQUANT_FAIR_BASELINE"  # set in the restarted process: the folder to remove
# Large blocks stay with the process: giving them back to the system costs large batches dearly.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "2000000000", "MALLOC_TRIM_THRESHOLD_": "4000000000"}


def restart_fairly() -> bool:
    """Replace this process by one with the settings; whether they are in force comes back.

    MKL's vendor check is overridden by a preloaded library where MKL would take its slow path.
    Without gcc, or where the loader ignores the library, the script goes on and says so.
    """
    if MARK in os.environ:
        # The library is loaded already; processes started from here must not look for it.
        shutil.rmtree(os.environ[MARK], ignore_errors=True)
        first, _, others = os.environ.get("LD_PRELOAD", "").partition(" ")
        if first.startswith(os.environ[MARK]):
            os.environ["LD_PRELOAD"] = others
    elif sys.platform == "linux":
        _restart()
    fair = baseline_is_fair()
    if not fair:
        print("warning: MKL takes its slow path: fp32 times may be up to twice too long")
    return fair


def _restart() -> None:
    folder = tempfile.mkdtemp(prefix="fxquant-")
    changed = {**os.environ, **MALLOC, MARK: folder}
    if not baseline_is_fair():
        library = Path(folder) / "libvendor.so"
        command = ["gcc", "-shared", "-fPIC", "-o", str(library), str(SOURCE)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"warning: gcc did not compile {SOURCE.name}: {error}")
        else:
            before = os.environ.get("LD_PRELOAD", "")
            changed["LD_PRELOAD"] = f"{library} {before}".strip()
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *sys.argv], changed)
