"""Settings that hold for every test."""

import os
from pathlib import Path

import hypothesis
import pytest
import torch

from fxquant.capture.torchvision_ops import import_with_torchvision

# Before anything imports timm: torchvision's registry wheel does not load beside a CPU torch.
import_with_torchvision("torchvision")

from tests.asset_models.data import assets_dir, missing_reason  # noqa: E402

# Two threads at most, so that results do not depend on the machine; fewer under xdist, where
# workers would otherwise fight for the cores.
_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
torch.set_num_threads(max(1, min(2, (os.cpu_count() or 1) // _workers)))

# The first call of a kernel can take seconds, which says nothing about the property under test.
hypothesis.settings.register_profile("dev", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--update-golden``."""
    parser.addoption(
        "--update-golden",
        action="store_true",
        default=False,
        help="rewrite the golden files with what the tests produce now",
    )


@pytest.fixture(scope="session")
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be rewritten rather than compared."""
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder with the real weights and images; skips the test where it is absent."""
    folder = assets_dir()
    if folder is None:
        pytest.skip(missing_reason())
    return folder
