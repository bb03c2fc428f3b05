"""Native modules: plain torch, no side effects. Names are loaded when they are first used, so that a module here can be imported alone."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .heads import AuxiliaryHead, PyramidPooling, UPerHead
    from .upernet import UPerNet

_NAMES = {"AuxiliaryHead": "heads", "PyramidPooling": "heads", "UPerHead": "heads", "UPerNet": "upernet"}

__all__ = ["AuxiliaryHead", "PyramidPooling", "UPerHead", "UPerNet"]


def __getattr__(name: str) -> object:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
