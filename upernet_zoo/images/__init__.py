"""Pictures: read, prepared, drawn, written. The modules are loaded when they are first used."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import preprocess, reading, resample, save, visualize

__all__ = ["preprocess", "reading", "resample", "save", "visualize"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f".{name}", __name__)
