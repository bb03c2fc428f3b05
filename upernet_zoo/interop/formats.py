"""Formats of exported models, by the endings of their names, and forms of their graphs. No torch here."""

from __future__ import annotations

from pathlib import Path

from ..errors import ArgumentError
from ..wording import option

__all__ = ["FORMS", "SUFFIXES", "format_of"]

SUFFIXES = {".onnx": "onnx", ".pt2": "torch"}
FORMS = ("fused", "direct", "plain")  # see `export`


def format_of(path: Path, asked: str | None = None) -> str:
    """The format that a name's ending says: "onnx" or "torch".

    Args:
        path: of the file.
        asked: the format that was asked for besides.

    Raises:
        ArgumentError: an ending that is none of these, or of another format than the one asked for.
    """
    found = SUFFIXES.get(path.suffix.lower())
    known = ", ".join(f"{suffix} ({format})" for suffix, format in SUFFIXES.items())
    if found is None:
        raise ArgumentError(f"{path}: no model is exported as {path.suffix or 'a file without an ending'}; the endings are {known}.")
    if asked not in (None, found):
        raise ArgumentError(f"{path}: its ending says {found}, and {option('format', asked)} another; the endings are {known}.")
    return found
