"""The part of a file that has arrived: kept for the next call, one process's at a time, and never somebody else's file.

Beside it is kept what is remembered of the file behind the URL (`<partial>.state`), without which the bytes are worth nothing. In a
folder where others may write, a link, a FIFO or another user's file may wait under the name: none is followed or written to.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import files
from ..errors import CacheError
from ..files import Hashed, hash_into
from .cache import cache_errors, elsewhere

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["Partial", "TakenError", "Transfer", "discard", "partial_path", "state_path"]

_LONGEST_STATE = 1 << 16  # bytes


class TakenError(CacheError):
    """The partial is another process's, or another user's."""


@dataclass(frozen=True)
class Transfer:
    """What arrived. `resumed`: some of it came from an earlier connection, so it may be of two different files."""

    sha256: str
    size: int
    resumed: bool
    mtime_ns: int = field(default=0, compare=False)

    @property
    def hashed(self) -> Hashed:
        """Digest and size, as `files` has them."""
        return Hashed(self.sha256, self.size, self.mtime_ns)


def partial_path(target: Path) -> Path:
    """Where the bytes of a file that is to be `target` arrive, so that another process can go on with them."""
    return files.beside(target, ".partial")


def state_path(partial: Path) -> Path:
    """Where it is kept what is remembered of the file behind the URL."""
    return files.beside(partial, ".state")


def discard(partial: Path) -> None:
    """Remove a partial file and what is remembered with it."""
    for path in (partial, state_path(partial)):
        path.unlink(missing_ok=True)


class Partial:
    """The part of a file that is on disk, its digest so far, and what is remembered of the file behind the URL. A context manager.

    Raises:
        TakenError: another process has it open, or it is another user's.
        CacheError: a link or a special file is there in its place, or it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with cache_errors(path.parent):
            self.file, self.exclusive = _open_own(path)
        self.state = self._read_state()
        self.hasher = hashlib.sha256()
        self.size = 0
        self.resumed = False
        total = self.state.get("size")
        if self.state and (total is None or os.fstat(self.file.fileno()).st_size <= total):
            self.size = hash_into(self.hasher, self.file)
        self.file.seek(self.size)

    def _read_state(self) -> dict[str, Any]:
        types = {"url": str, "etag": str | None, "modified": str | None, "size": int | None}
        try:
            with files.open_regular(state_path(self.path)) as file:
                state = json.loads(file.read(_LONGEST_STATE).decode("utf-8"))
            return state if all(isinstance(state[key], kind) for key, kind in types.items()) else {}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return {}

    @property
    def complete(self) -> bool:
        """Whether all bytes are here that the server spoke of."""
        return self.size > 0 and self.state.get("size") == self.size

    def restart(self, state: dict[str, Any] | None = None) -> None:
        """Start again with nothing. The bytes go first, so that no crash leaves old bytes beside a new state."""
        self.file.seek(0)
        self.file.truncate()
        self.hasher, self.size, self.state, self.resumed = hashlib.sha256(), 0, state or {}, False
        files.write_atomically(state_path(self.path), lambda temporary: temporary.write_text(json.dumps(self.state), encoding="utf-8"))

    def append(self, data: bytes) -> None:
        """Write what has arrived."""
        view = memoryview(data)
        while view:
            written = self.file.write(view)
            self.hasher.update(view[:written])
            self.size += written
            view = view[written:]

    def finish(self) -> Transfer:
        """What is here, on disk under the partial's name.

        Raises:
            CacheError: something else has that name by now.
        """
        os.fsync(self.file.fileno())
        status = os.fstat(self.file.fileno())
        if not self.exclusive:  # another process may have written to it too
            self.hasher = hashlib.sha256()
            self.file.seek(0)
            self.size = hash_into(self.hasher, self.file)
        if not os.path.samestat(status, self.path.lstat()):
            raise CacheError(f"{self.path} was replaced while it was written. Try again, or {elsewhere()}.")
        return Transfer(self.hasher.hexdigest(), self.size, self.resumed, status.st_mtime_ns)

    def release(self) -> None:
        """Ready to be renamed, which Windows does with no file that is open. Elsewhere no other process can have it before that."""
        if os.name == "nt":
            self.file.close()

    def __enter__(self) -> Partial:
        return self

    def __exit__(self, *_: object) -> None:
        """Let it go; bytes stay for the next call where there are any."""
        if self.file.closed:
            return
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(self.file.fileno()), self.path.lstat()) and not self.size:
                discard(self.path)
        self.file.close()


def _open_own(path: Path) -> tuple[Any, bool]:
    """A file of this user's, made if it is missing, for reading and writing; and whether no other process has it open here."""
    flags = os.O_RDWR | os.O_CREAT
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name, 0)
    refused = f"{path} is a link or a special file, which is neither followed nor overwritten. Remove it, or {elsewhere()}."
    while True:
        try:
            file = open(path, "r+b", buffering=0, opener=lambda name, _: os.open(name, flags, 0o666))  # noqa: SIM115 (for the caller)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENXIO) or path.is_dir():
                raise CacheError(refused) from None
            if isinstance(error, PermissionError) and path.exists():
                raise TakenError(f"{path} is another user's") from None
            raise
        with contextlib.ExitStack() as stack:
            stack.callback(file.close)
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                raise CacheError(refused)
            if hasattr(os, "geteuid") and status.st_uid != os.geteuid():
                raise TakenError(f"{path} is another user's")
            exclusive = _lock_own(file, path)
            if _has_name(status, path):  # else another process has given it its final name, or removed it, in the meantime
                stack.pop_all()
                return file, exclusive


def _has_name(status: os.stat_result, path: Path) -> bool:
    try:
        return os.path.samestat(status, path.lstat())
    except FileNotFoundError:
        return False


def _lock_own(file: Any, path: Path) -> bool:
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise TakenError(f"{path} is in use by another process") from None
    except OSError:  # no such locks on this file system
        return False
    return True
