"""Packed oneDNN int8 kernels on x86; Inductor compiles everything between them."""

from fxquant.backends.x86.backend import X86Backend

__all__ = ["X86Backend"]
