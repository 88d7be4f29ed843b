"""Integer-only graphs on x86: ``torch._int_mm`` and an integer epilogue."""

from __future__ import annotations

from pathlib import Path

import torch

import fxquant
from fxquant.passes.integers.proof import prove_integer
from tests.backends.tiny import images, vit

X = images(8)


def test_every_linear_of_an_integer_graph_has_a_kernel_and_the_same_bits(tmp_path: Path) -> None:
    q = fxquant.quantize(vit(), calibration=X, recipe="integer-only")
    lowered = fxquant.lower(q, strict=True, executor="eager")
    linears = {"patch", "head"} | {
        f"blocks.0.{name}" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    assert set(lowered.int8_kernels) == linears
    assert {name.partition(" ")[0] for name in lowered.int8_kernels.values()} == {"torch._int_mm"}
    with torch.no_grad():
        for batch in (1, 2, 7):
            assert torch.equal(lowered(X[:batch]), q(X[:batch]))
    assert prove_integer(lowered.graph_module) == prove_integer(q)
    assert lowered.report["blocks.0.mlp.fc1"].int8
    assert not any(row.reason for row in lowered.report.rows)
    lowered.save(tmp_path / "integer.fxq")
    again = fxquant.load(tmp_path / "integer.fxq", executor="eager", strict=True)
    assert torch.equal(again(X), lowered(X))
