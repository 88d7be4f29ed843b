"""The ``.fxq`` file: a quantized model as data that is safe to load."""

from fxquant.artifact.store import Stored, read, write

__all__ = ["Stored", "read", "write"]
