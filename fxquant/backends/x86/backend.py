"""x86 as a backend: lower, count, account, warn or refuse."""

from __future__ import annotations

import warnings
from dataclasses import replace

from torch.fx import Node

from fxquant.backends.base import Executor, Support
from fxquant.backends.quantized import QuantizedModule
from fxquant.backends.x86 import machine
from fxquant.backends.x86.lower import Lowered, lower_graph
from fxquant.backends.x86.module import LoweredModule
from fxquant.backends.x86.native import Native, lower_native
from fxquant.backends.x86.program.values import Unsupported
from fxquant.errors import BackendError, FxquantWarning, LoweringError
from fxquant.pipeline.plan import Plan
from fxquant.pipeline.target import Target
from fxquant.report import Report, Row


class X86Backend:
    """u8 x s8 linears and patch embedding on packed oneDNN kernels."""

    name = "x86"

    def available(self) -> Support:
        """x86-64 and a torch with oneDNN."""
        return machine.available()

    def target(self) -> Target:
        """This machine."""
        return machine.target()

    def supports(self, node: Node) -> Support:
        """Linears, and convolutions that the patch rule takes."""
        import torch

        if node.target in {torch.ops.aten.linear.default, torch.ops.aten.conv2d.default}:
            return Support(ok=True)
        return Support(ok=False, reason=f"no int8 kernel for {node.target}")

    def lower(
        self, quantized: QuantizedModule, *, strict: bool, executor: Executor
    ) -> LoweredModule:
        """Kernels for everything the plan quantizes.

        Fewer int8 kernels than planned: a :class:`FxquantWarning` that names layers and reasons,
        with ``strict`` a :class:`LoweringError`; none at all is always an error.
        """
        _check_widths(quantized.plan, self.target())
        lowered, used, note = _lowered(quantized, executor)
        planned = {
            site.layer
            for site, decision in quantized.plan.decisions.items()
            if site.slot == "weight" and decision.scheme is not None
        }
        missing = {
            layer: "; ".join(lowered.declined.get(layer, ("no rule matched its region",)))
            for layer in sorted(planned - set(lowered.kernel_of))
        }
        if not lowered.kernel_of:
            raise LoweringError(
                "not one int8 kernel came out of lowering",
                where=", ".join(list(missing)[:5]) or "the plan quantizes no layer",
                why=next(iter(missing.values()), "every site of the plan stays float"),
                fix="use a recipe with int8 schemes, such as w8a8, or backend='reference'",
            )
        if missing:
            _report_missing(missing, len(planned), strict=strict)
        report = _report(quantized.report, lowered, missing)
        if note:
            report = replace(report, notes=(*report.notes, ("", note)))
        return LoweredModule(quantized, lowered, report, executor=used)


def _lowered(
    quantized: QuantizedModule, executor: Executor
) -> tuple[Lowered | Native, Executor, str]:
    """The lowered graph, the executor that runs it, and why it is not the one asked for."""
    if executor != "native":
        return lower_graph(quantized), executor, ""
    try:
        return lower_native(quantized, micro=quantized.micro_batch), executor, ""
    except Unsupported as error:
        note = f"runs through Inductor, not as one program: {error}"
        planned = any(s.slot == "lhs" and d.scheme for s, d in quantized.plan.decisions.items())
        if planned and quantized.report.simulated:
            note += (
                "; attention planned in int8 is simulated in float there, slower than in bf16: "
                "quantize with pipeline.without('open_attention')"
            )
        return lower_graph(quantized), "inductor", note


def _check_widths(plan: Plan, here: Target) -> None:
    """Refuse codes that overflow the kernels of this machine, wherever they were planned."""
    for site, decision in plan.decisions.items():
        scheme = decision.scheme
        if scheme is None or site.slot == "weight" or not here.activation_bits < scheme.bits <= 8:
            continue
        raise BackendError(
            f"the plan uses {scheme.bits}-bit activations, which saturate here",
            where=f"{site}, planned for {plan.target.machine}; this machine is {here.machine}",
            why="without VNNI, pairs of u8 x s8 products overflow 16 bits",
            fix="quantize again on this machine, or use backend='reference'",
        )


def _report_missing(missing: dict[str, str], planned: int, *, strict: bool) -> None:
    names = ", ".join(list(missing)[:8]) + (" ..." if len(missing) > 8 else "")
    what = f"{len(missing)} of {planned} layers planned in int8 run in float"
    why = next(iter(missing.values()))
    if strict:
        raise LoweringError(
            what, where=names, why=why, fix="keep these layers float in the plan, or drop strict"
        )
    warnings.warn(
        f"{what}: {names} ({why}). report.show() has every reason", FxquantWarning, stacklevel=4
    )


def _report(report: Report, lowered: Lowered | Native, missing: dict[str, str]) -> Report:
    def renewed(row: Row) -> Row:
        if row.layer in lowered.kernel_of:
            return replace(row, kernel=lowered.kernel_of[row.layer], int8=True)
        if row.layer in missing:
            return replace(row, kernel="float32", int8=False, reason=missing[row.layer])
        return row

    return replace(
        report,
        rows=tuple(renewed(row) for row in report.rows),
        backend="x86",
        machine=machine.target().machine,
        simulated=False,
    )
