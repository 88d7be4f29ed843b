"""Text from files and models, made safe to print."""

from __future__ import annotations


def plain(text: str) -> str:
    """The text without control characters, which could steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)
