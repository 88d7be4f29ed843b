"""What was quantized, what it costs in accuracy, which kernel runs, and why not int8."""

from fxquant.report.model import Report, Row, Sensitivity, Totals

__all__ = ["Report", "Row", "Sensitivity", "Totals"]
