"""Every exception that the library raises on purpose.

Each derives from `UPerNetZooError` and from the built-in that fits, so `except UPerNetZooError` catches all of them and code that
knows only Python's own exceptions works too. A message names the file or model, the cause, and the next thing to do.

    UPerNetZooError
    ├── ArgumentError (ValueError)             a value that cannot be used
    ├── UnknownKeywordError (TypeError)        a keyword that does not exist
    ├── UnknownNameError (LookupError)         a name that nothing has
    │   ├── ModelNotFoundError                 of a model or a repository
    │   ├── UnknownLabelSetError               of a label set
    │   ├── UnknownDatasetError                of a data set
    │   └── UnknownSplitError                  of a split of a data set
    ├── MissingPackageError (ImportError)      an extra package that is not installed
    ├── NotEnoughMemoryError (MemoryError)     more memory is needed than there is
    ├── TrainingDivergedError (ArithmeticError)  NaN or infinity in the loss or the weights
    ├── WorkerError (RuntimeError)             a process that reads pictures died
    ├── IndexFormatError (ValueError)          a model index
    ├── ConfigError (ValueError)               an architecture, recipe or label set
    ├── ImageError (ValueError)                a picture
    ├── MissingFileError (FileNotFoundError)   a file or folder that is not there
    ├── CheckpointError (ValueError)           a checkpoint that cannot be read
    │   └── UnsafeCheckpointError              that would run code or take all memory
    ├── IntegrityError (ValueError)            other bytes than those that were asked for
    ├── DownloadError (ConnectionError)        no source has the file
    │   └── OfflineError                       and the network may not be used
    ├── WriteError (OSError)                   a file or folder that cannot be written
    │   ├── CacheError                         in the cache
    │   └── ExistingFileError (FileExistsError)  it is there already and is not replaced
    └── StateError (ValueError)                the state of an interrupted run that cannot be taken up
"""

from __future__ import annotations

import re
import reprlib
from typing import Any, Literal

__all__ = [
    "ArgumentError",
    "CacheError",
    "CheckpointError",
    "ConfigError",
    "DownloadError",
    "ExistingFileError",
    "ImageError",
    "IndexFormatError",
    "IntegrityError",
    "MissingFileError",
    "MissingPackageError",
    "ModelNotFoundError",
    "NotEnoughMemoryError",
    "OfflineError",
    "StateError",
    "TrainingDivergedError",
    "UPerNetZooError",
    "UnknownDatasetError",
    "UnknownKeywordError",
    "UnknownLabelSetError",
    "UnknownNameError",
    "UnknownSplitError",
    "UnsafeCheckpointError",
    "WorkerError",
    "WriteError",
    "shown",
    "without_secrets",
]

_REPR = reprlib.Repr()
_REPR.maxlevel = 3
_REPR.maxstring = _REPR.maxother = 100
_LONGEST = 500  # characters of a text that is shown bare
_LONGEST_MESSAGE = 20_000
# what says more than itself in Markdown, HTML, a table's cell or a link; "_" does so only at the edge of a word
_MARKUP = re.compile(r"[&<>\"'\\`*\[\]|~#!$@]|(?<!\w)_|_(?!\w)|:(?=//)|(?<=www)\.", re.IGNORECASE)


def shown(value: Any, style: Literal["value", "text", "message", "markdown", "url"] = "value") -> str:
    """What came from a file, a server, an index or a user, safe to show: short, without characters that steer a terminal.

    Args:
        value: anything. Aliases may make it unfold to billions, and a number may have more digits than fit.
        style: "value": as `repr` writes it; "text": without quotes; "message": the same of any number of lines; "markdown": a text for a
            card, where nothing in it is Markdown or HTML; "url": a mirror without its user name, password, query and other parts that
            may be secret.

    Examples:
        >>> from upernet_zoo.errors import shown
        >>> shown("https://user:secret@zoo.test/a?token=1", "url")
        'https://zoo.test/a'
    """
    if style == "value":
        try:
            return without_secrets(_REPR.repr(value))
        except ValueError:
            return "a number of thousands of digits"
    text = value if isinstance(value, str) else shown(value)
    if style == "url":
        return _escaped(_bare_url(text))
    if style == "message":
        return _escaped(without_secrets(text), keep="\n")[:_LONGEST_MESSAGE]
    text = _escaped(without_secrets(text))
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]}...{text[-_LONGEST // 2 :]}"
    return _MARKUP.sub(lambda match: f"&#{ord(match[0])};", text) if style == "markdown" else text


def _escaped(text: str, keep: str = "") -> str:
    r"""With `\x1b` and the like in place of what cannot be printed: control characters, changes of direction, lone surrogates."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def _bare_url(url: str) -> str:
    """A mirror without what may be secret in it. A path of this machine stays as it is."""
    start = re.match(r"(?:[A-Za-z][A-Za-z0-9+.-]*:)?//", url)
    if start is None:
        return re.sub(r"^[^/\\]*:[^/\\]*@", "", url)
    rest = url[start.end() :]
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        rest = rest[authority.rindex("@") + 1 :]
    elif not re.fullmatch(r"[^:]*|.*:\d*|\[.*\]", authority):  # no port: the begin of a password with a slash in it, or cut off
        rest = rest.rpartition("@")[2] if "@" in rest else authority.partition(":")[0] + rest[len(authority) :]
    rest = re.split(r"[?#]", rest)[0]
    return start[0] + (rest if start[0].lower() == "file://" else re.sub(r";[^/]*", "", rest))


def without_secrets(text: str) -> str:
    """A message without user names, passwords and queries of the URLs in it: libraries quote whole ones, a proxy's too.

    Examples:
        >>> from upernet_zoo.errors import without_secrets
        >>> without_secrets("no answer from http://user:secret@proxy.test:3128/")
        'no answer from http://proxy.test:3128/'
    """
    if "@" in text:
        text = re.sub(r"//[^\s/?#]*@", "//", text)
        text = re.sub(r"(?<=[A-Za-z]{2}:/)[^\s/?#:@]*:[^\s/?#@]*@", "", text)  # as where a slash was forgotten
        text = re.sub(r"(?<![\w/\\@.%+-])[\w.%+-]+:[^\s/\\:@]+@(?=[\w\[])", "", text)  # as where the scheme was cut off
    if "//" in text:  # no port: a password with a slash in it, or cut off
        text = re.sub(r"(//[^\s/?#:@'\"\[]+):(?!\d*(?:[\s/?#'\").,;:\]]|$))(?:\S*@|[^\s'\"]*)", _host_of, text)
        text = re.sub(r"(?<=://)([^\s?#'\"]*)[?#][^\s'\")>]*", r"\1", text)
    return re.sub(r"(?<=[\w/])[?;#][\w.~%-]+=[^\s'\")>]*", "", text) if "=" in text else text


def _host_of(match: re.Match[str]) -> str:
    return "//" if match[0].endswith("@") else match[1]


class UPerNetZooError(Exception):
    """Base of all errors raised by upernet_zoo. What a message quotes from files, servers and URLs is safe to show: see `shown`.

    Examples:
        >>> import upernet_zoo as uz
        >>> try:
        ...     uz.model_info("upernet_r50_512x512")
        ... except uz.UPerNetZooError as error:
        ...     print("Did you mean" in str(error))
        True
    """

    def __str__(self) -> str:
        return shown(super().__str__(), "message")


class ArgumentError(UPerNetZooError, ValueError):
    """An argument has a value that cannot be used."""


class UnknownKeywordError(UPerNetZooError, TypeError):
    """A keyword argument that does not exist."""


class UnknownNameError(UPerNetZooError, LookupError):
    """A name that nothing has."""


class ModelNotFoundError(UnknownNameError):
    """No model or repository has that name."""


class UnknownLabelSetError(UnknownNameError):
    """No label set has that name."""


class UnknownDatasetError(UnknownNameError):
    """No data set has that name."""


class UnknownSplitError(UnknownNameError):
    """No split of a data set has that name."""


class MissingPackageError(UPerNetZooError, ImportError):
    """An extra package that is not installed; the message has the line that installs it."""


class NotEnoughMemoryError(UPerNetZooError, MemoryError):
    """More memory is needed than there is; nothing was computed."""


class TrainingDivergedError(UPerNetZooError, ArithmeticError):
    """NaN or infinity in the loss or the weights; the last good state is kept."""


class WorkerError(UPerNetZooError, RuntimeError):
    """A process that reads pictures for training died; the state is kept."""


class IndexFormatError(UPerNetZooError, ValueError):
    """A model index that is not what the format asks for."""


class ConfigError(UPerNetZooError, ValueError):
    """An architecture, recipe or label set that is not valid."""


class ImageError(UPerNetZooError, ValueError):
    """A picture that cannot be read."""


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


class WriteError(UPerNetZooError, OSError):
    """A file or folder that cannot be written; what was there before is still there."""


class CacheError(WriteError):
    """The cache cannot be read or written."""


class ExistingFileError(WriteError, FileExistsError):
    """A file or folder that is there already, and is not replaced unasked."""


class StateError(UPerNetZooError, ValueError):
    """The state of an interrupted run that is damaged or of another run."""
