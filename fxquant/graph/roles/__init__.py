"""What each operation is for: found by patterns on ATen, never by module classes."""

from fxquant.graph.roles.find import find_roles

__all__ = ["find_roles"]
