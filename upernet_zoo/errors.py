"""Every exception that the library raises on purpose.

Each derives from `UPerNetZooError` and from the built-in that fits, so `except UPerNetZooError` catches all of them and code that
knows only Python's own exceptions works too. A message names the file or model, the cause, and the next thing to do.
"""

from __future__ import annotations

import reprlib
from typing import Any

_REPR = reprlib.Repr()
_REPR.maxlevel = 3
_REPR.maxstring = _REPR.maxother = 100


def shown(value: Any) -> str:
    """`repr` of a value from a file, short even where aliases make a value unfold to billions, or a number has more digits than fit."""
    try:
        return _REPR.repr(value)
    except ValueError:
        return "a number of thousands of digits"


class UPerNetZooError(Exception):
    """Base of all errors raised by upernet_zoo."""


class ArgumentError(UPerNetZooError, ValueError):
    """An argument has a value that cannot be used."""


class UnknownKeywordError(UPerNetZooError, TypeError):
    """A keyword argument that does not exist."""


class ModelNotFoundError(UPerNetZooError, LookupError):
    """No model, label set or data set has that name."""


class IndexFormatError(UPerNetZooError, ValueError):
    """A model index that is not what the format asks for."""


class ConfigError(UPerNetZooError, ValueError):
    """An architecture, recipe or label set that is not valid."""


class MissingFileError(UPerNetZooError, FileNotFoundError):
    """A file or folder that is not there."""


class CheckpointError(UPerNetZooError, ValueError):
    """A checkpoint file that cannot be read, or holds something other than this UPerNet."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint that would run code, or ask for more memory than its size allows. Nothing of it was run."""


class IntegrityError(UPerNetZooError, ValueError):
    """A file that is not what it must be: another SHA-256 or size, or an exported one that computes something else than its model."""


class DownloadError(UPerNetZooError, ConnectionError):
    """No source had the file, or none could be reached."""


class OfflineError(DownloadError):
    """The file is not on this machine, and the network may not be used."""


class CacheError(UPerNetZooError, OSError):
    """The cache cannot be read or written."""


class ImageError(UPerNetZooError, ValueError):
    """A picture that cannot be read."""
