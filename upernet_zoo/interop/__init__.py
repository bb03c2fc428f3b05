"""Models to other libraries and formats, and back."""

import importlib

__all__ = ["export", "formats", "mmsegmentation", "smp", "transformers"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f".{name}", __name__)
