"""The reference as a backend: nothing to lower."""

from __future__ import annotations

from torch.fx import Node

from fxquant.backends.base import Executor, Support
from fxquant.backends.quantized import QuantizedModule
from fxquant.pipeline.target import Target


class ReferenceBackend:
    """Runs the quantized graph as it stands: the numbers of int8, the speed of float."""

    name = "reference"

    def available(self) -> Support:
        """Everywhere."""
        return Support(ok=True)

    def target(self) -> Target:
        """No limits but those of arithmetic; bf16 is not used, so results travel."""
        return Target(backend=self.name, machine="any")

    def supports(self, node: Node) -> Support:
        """No int8 kernels: that is what the other backends are for."""
        return Support(ok=False, reason="the reference backend simulates int8 in float")

    def lower(
        self, quantized: QuantizedModule, *, strict: bool, executor: Executor
    ) -> QuantizedModule:
        """The graph itself."""
        return quantized
