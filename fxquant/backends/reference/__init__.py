"""The quantized graph itself: defines the numbers, runs everywhere, simulates int8 in float."""

from fxquant.backends.reference.backend import ReferenceBackend

__all__ = ["ReferenceBackend"]
