"""Models into graphs in normal form: one function, several doors."""

from fxquant.capture.door import capture

__all__ = ["capture"]
