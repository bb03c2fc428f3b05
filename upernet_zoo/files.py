"""Files: written whole or not at all, read once, hashed, copied; paths, and sizes in words."""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import hashlib
import io
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ArgumentError, ExistingFileError, UPerNetZooError, WriteError, shown
from .wording import option, worded

__all__ = [
    "STALE",
    "Content",
    "Hashed",
    "beside",
    "check_digest",
    "copy",
    "expanded",
    "file_digest",
    "hash_file",
    "hash_into",
    "is_full",
    "no_space",
    "not_a_checkpoint",
    "open_regular",
    "read_content",
    "require_replaceable",
    "size_text",
    "sweep",
    "sync_folder",
    "temporary_path",
    "write_atomically",
    "write_errors",
    "write_hashed",
    "write_problem",
    "write_together",
    "writing",
]

STALE = 3600.0  # seconds after which a temporary file belongs to nobody
_LONGEST_NAME = 255  # bytes, where the system does not say
_NO_SPACE = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_PIECE = 1 << 20
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_MARKUP = (b"<!doctype", b"<html", b"<head", b"<body", b"<?xml", b"<!--", b"<error")


# paths


def expanded(path: str | os.PathLike) -> Path:
    """The path, with the home folder in place of a leading "~/", or "~user/" of a user that there is. Any other "~x" is a name.

    Raises:
        ArgumentError: there is no home folder: no HOME, and no entry for the user among the system's accounts.
    """
    is_name = not os.fspath(path).startswith("~")  # "./~" is one
    path = Path(path)
    if is_name:
        return path
    try:
        return path.expanduser()
    except RuntimeError:
        if path.parts[0] != "~":
            return path
        raise ArgumentError(f"{path}: this user has no home folder (HOME is not set, and no account says). Give a full path.") from None


def beside(path: Path, suffix: str, prefix: str = "") -> Path:
    """A file beside another, named after it; where that is longer than the file system allows, after the name's start and hash."""
    name = prefix + path.name + suffix
    try:
        longest = os.pathconf(path.parent, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):  # not POSIX, or no such folder yet
        longest = _LONGEST_NAME
    if len(os.fsencode(name)) > longest:
        mark = "~" + hashlib.sha256(os.fsencode(path.name)).hexdigest()[:12]
        start = os.fsencode(path.name)[: longest - len(os.fsencode(prefix + mark + suffix))]
        name = prefix + start.decode("utf-8", "ignore") + mark + suffix
    return path.with_name(name)


# writing


def no_space(error: OSError) -> bool:
    """Whether a write failed for lack of space: disk, quota, or limit on a file's size."""
    return error.errno in _NO_SPACE


def write_problem(error: OSError, path: Path, elsewhere: str) -> str:
    """The message where a path could not be written; `elsewhere` is the next step."""
    cause = error.strerror or str(error)
    if no_space(error):
        return f"{path}: the disk or the quota is full ({cause}). Free some space, or {elsewhere}."
    return f"{path}: cannot be written ({cause}); {elsewhere}."


@contextlib.contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says about a path that is written into a WriteError that names the next step."""
    try:
        yield
    except UPerNetZooError:
        raise
    except OSError as error:
        raise WriteError(write_problem(error, path, "name another folder")) from error


def sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where the system can (not on Windows)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def temporary_path(path: Path) -> Path:
    """A name that nobody can foresee, for a file that is to take the place of `path`."""
    return beside(path, f".{os.getpid()}-{secrets.token_hex(8)}.tmp", ".")


def sweep(path: Path) -> None:
    """Remove what killed processes left of earlier attempts at a file. Age tells, for the process may be of another node."""
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.tmp*"):
        with contextlib.suppress(OSError):
            if time.time() - temporary.lstat().st_mtime > STALE:
                temporary.unlink()


def write_atomically(path: str | os.PathLike, writer: Callable[[Path], object]) -> None:
    """Have `writer` write a file under a temporary name in the same folder, then give it its name: whole, or not at all.

    Args:
        path: the final name. Its folder is made if it is missing.
        writer: called with the temporary path, which does not exist yet.

    Raises:
        WriteError: the folder cannot be written, or the disk is full; what had the name still has it. Errors of `writer`
            other than OSError pass through.
    """
    write_together([(Path(path), writer)])


def write_hashed(path: str | os.PathLike, writer: Callable[[Path], object]) -> Hashed:
    """`write_atomically`, and what was written.

    Raises:
        WriteError: as `write_atomically`.
    """
    written: list[Hashed] = []

    def write(temporary: Path) -> None:
        writer(temporary)
        written.append(hash_file(temporary))

    write_atomically(path, write)
    return written[0]


def write_together(writers: Sequence[tuple[Path, Callable[[Path], object]]]) -> None:
    """`write_atomically` for files that belong to each other: no name is given before all of them are whole.

    Args:
        writers: path and writer of each file. They are called in this order, so that one may use what another wrote.

    Raises:
        WriteError: as `write_atomically`; what had the names still has them.
    """
    temporaries = [(temporary_path(path), path) for path, _ in writers]
    try:
        for (temporary, path), (_, writer) in zip(temporaries, writers, strict=True):
            with write_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                sweep(path)
                writer(temporary)
                with temporary.open("r+b") as file:
                    os.fsync(file.fileno())
        for temporary, path in temporaries:
            with write_errors(path):
                temporary.replace(path)
                sync_folder(path.parent)
    finally:
        for temporary, _ in temporaries:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


class _KeepingErrors(io.FileIO):
    """Takes everything; the first error is kept, and what comes after it goes nowhere."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        length = len(view)
        try:
            while view and self.error is None:
                view = view[super().write(view) :]
        except OSError as error:
            self.error = error
        return length


@contextlib.contextmanager
def writing(path: Path) -> Iterator[io.FileIO]:
    """A new file for `torch.save` and its like, which make errors of their own, without a cause, of what a full disk says.

    Raises:
        OSError: what the system said, at the end.
    """
    with _KeepingErrors(path, "wb") as file:
        yield file
    if file.error is not None:
        raise file.error


# reading


@dataclass(frozen=True)
class Hashed:
    """What a file was when it was read: full SHA-256 in hex, size in bytes, and the mtime in ns from before the first byte was read."""

    sha256: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Content:
    """The bytes of a file, read once into memory, and the mtime in ns from before that."""

    path: Path
    data: bytes
    mtime_ns: int

    @functools.cached_property
    def hashed(self) -> Hashed:
        """Of these bytes."""
        return Hashed(hashlib.sha256(self.data).hexdigest(), len(self.data), self.mtime_ns)


def open_regular(path: str | os.PathLike) -> io.FileIO:
    """Open a file for reading, unbuffered. Links are followed; a FIFO or a device, which may have no end, is refused.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    _require_regular(Path(path).stat(), path)  # before it is opened, which alone has an effect on some devices
    file = open(  # noqa: SIM115 (for the caller)
        path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))
    )
    try:
        _require_regular(os.fstat(file.fileno()), path)
    except BaseException:
        file.close()
        raise
    return file


def _require_regular(status: os.stat_result, path: str | os.PathLike) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "no regular file but a FIFO, a socket or a device", os.fspath(path))


def read_content(path: Path) -> Content:
    """Read a regular file once, as long as it is when that begins.

    Raises:
        OSError: as `open_regular`.
        MemoryError: it does not fit.
    """
    with open_regular(path) as file, io.BufferedReader(file) as buffered:
        status = os.fstat(file.fileno())
        return Content(path, buffered.read(status.st_size), status.st_mtime_ns)


def hash_file(path: str | os.PathLike) -> Hashed:
    """Hash a regular file, read once in constant memory.

    Raises:
        OSError: as `open_regular`.
    """
    hasher = hashlib.sha256()
    with open_regular(path) as file:
        mtime_ns = os.fstat(file.fileno()).st_mtime_ns
        size = hash_into(hasher, file)
    return Hashed(hasher.hexdigest(), size, mtime_ns)


def file_digest(path: str | os.PathLike) -> tuple[str, int]:
    """Full SHA-256 in hex and size of a file, read once in constant memory.

    Raises:
        OSError: as `open_regular`.
    """
    hashed = hash_file(path)
    return hashed.sha256, hashed.size


def hash_into(hasher: Any, file: io.FileIO) -> int:
    """Feed an open file, from where it is to its end, to a hash in constant memory; returns the number of bytes."""
    size = 0
    buffer = memoryview(bytearray(_PIECE))
    while count := file.readinto(buffer):
        hasher.update(buffer[:count])
        size += count
    return size


def check_digest(sha256: str) -> str:
    """A SHA-256 as given by the user: 8 to 64 hex digits, returned in lower case.

    Raises:
        ArgumentError: something else.
    """
    if not isinstance(sha256, str) or not re.fullmatch("[0-9a-fA-F]{8,64}", sha256):
        raise ArgumentError(
            f"{worded(f'sha256={shown(sha256)}', f'--sha256 {shown(sha256)}')} is no SHA-256: give all 64 hex digits, or "
            "the first 8 or more, as text."
        )
    return sha256.lower()


def size_text(size: float) -> str:
    """Bytes for people: "254 MB"."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def not_a_checkpoint(head: bytes, content_type: str = "") -> str | None:
    """Name what is often saved as a checkpoint and is none, by its first bytes (and the Content-Type, where there is one)."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:64].lower()
    if text.startswith(_LFS_POINTER):
        return "a Git LFS pointer: the file's address in a Git repository, without its content"
    typed = content_type.startswith(("text/html", "application/xhtml")) and head[:1] not in (b"\x80", b"P")
    if text.startswith(_MARKUP) or typed:
        return "an HTML page: an error, a login or a notice in place of the file"
    return None


def copy(source: Path, target: Path) -> tuple[str, int]:
    """Copy a regular file of this machine to a new one, synced to disk; full SHA-256 in hex and size of what was written.

    Raises:
        OSError: `target` exists, or one of the two cannot be read or written.
    """
    hasher, size = hashlib.sha256(), 0
    with open_regular(source) as reading, target.open("xb") as writing:
        while data := reading.read(_PIECE):
            hasher.update(data)
            writing.write(data)
            size += len(data)
        writing.flush()
        os.fsync(writing.fileno())
    return hasher.hexdigest(), size


def require_replaceable(path: Path, own: Callable[[Path], bool], overwrite: bool | None) -> None:
    """Refuse to replace what the library did not write, unasked.

    Args:
        own: whether a file that is there is one that the library wrote.
        overwrite: it may be replaced; None: nobody can say so here.

    Raises:
        ExistingFileError: it is there, and is someone else's.
    """
    if not overwrite and os.path.lexists(path) and not own(path):
        way = f"Name another, or say that it may be replaced: {option('overwrite', True)}"
        raise ExistingFileError(
            f"{path} is there already and is not marked as written by upernet_zoo. "
            f"{'Choose another folder, or move it away' if overwrite is None else way}."
        )


def is_full(error: BaseException) -> bool:
    """Whether an error says that there is no space left: a WriteError's cause does."""
    cause = error.__cause__
    return isinstance(cause, OSError) and no_space(cause)
