"""Every error fxquant raises on purpose: what went wrong, where, why, and what to do about it."""

from __future__ import annotations


class FxquantError(Exception):
    """Root of all deliberate errors.

    ``what`` is one sentence; ``where`` names the layer, site, file or argument; ``why`` gives the
    cause; ``fix`` says what the reader can do. Subclasses also derive from the builtin that a
    caller would expect, so ``except ValueError`` keeps working.
    """

    def __init__(self, what: str, *, where: str = "", why: str = "", fix: str = "") -> None:
        self.what, self.where, self.why, self.fix = what, where, why, fix
        lines = [what]
        for label, text in (("where", where), ("why", why), ("fix", fix)):
            if text:
                lines.append(f"  {label}: {text}")
        super().__init__("\n".join(lines))


class CaptureError(FxquantError, ValueError):
    """A model cannot be turned into a graph in normal form."""


class UnsupportedOpError(CaptureError):
    """An operation outside the normal form."""


class VerificationError(FxquantError, RuntimeError):
    """A graph is not in normal form after a pass: a defect of that pass."""


class CalibrationError(FxquantError, ValueError):
    """Calibration data is missing, empty, not finite, or of the wrong shape or type."""


class SchemeError(FxquantError, ValueError):
    """A quantization scheme that cannot exist."""


class PlanError(FxquantError, ValueError):
    """A plan that cannot be read, or does not fit the graph."""


class RecipeError(FxquantError, ValueError):
    """A recipe that cannot be read."""


class PipelineError(FxquantError, ValueError):
    """Passes in an impossible order, an unknown pass, or text that is not a pipeline."""


class ArtifactError(FxquantError, ValueError):
    """A file that is not a sound fxquant artifact."""


class BackendError(FxquantError, RuntimeError):
    """A backend is unknown, unavailable on this machine, or could not lower the graph."""


class LoweringError(BackendError):
    """Fewer int8 kernels came out than the plan holds, and the caller asked to be strict."""


class FrozenModelError(FxquantError, TypeError):
    """An operation that a quantized or lowered model cannot carry out, such as ``.half()``."""


class InputError(FxquantError, ValueError):
    """An argument of the wrong type, shape or dtype."""


class DependencyError(FxquantError, ImportError):
    """An optional package is needed and not installed."""


class FxquantWarning(UserWarning):
    """Something the reader should know that does not stop the work."""
