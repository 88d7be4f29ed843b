"""``fxquant bench --profile``."""

from pathlib import Path

import pytest

import fxquant
from tests.cli.tiny import invoke, succeed


def test_profile_by_kernel_and_layer(home: Path) -> None:
    if getattr(fxquant.load("x86.fxq"), "native", None) is None:
        pytest.skip("no native program on this machine")
    text = succeed("bench", "x86.fxq", "--batch", "1,2", "--seconds", "0.01", "--profile").output
    for word in ("batch 1:", "batch 2:", "ms in steps", "GOP/s", "linear", "fc1", "patch"):
        assert word in text


def test_profile_needs_a_native_program(home: Path) -> None:
    result = invoke("bench", "ref.fxq", "--batch", "1", "--seconds", "0.01", "--profile")
    assert result.exit_code == 2
    assert "does not run as a native program" in result.stderr
    assert "executor='native'" in result.stderr
    assert "float / int8" not in result.output
