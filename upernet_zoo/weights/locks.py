"""One process at a time: locks that hold off those who work, and nobody for ever.

A lock is a file and a sign of life. Where the file system has flock, the file is locked, and let go whenever its holder ends; elsewhere
(Lustre, NFS without locks, Windows) a claim is made beside it, a file that only one can create. Whoever holds a lock touches its file
every second. One that is held without that is not waited for: its holder was killed where claims are used, or is somebody who may read
the cache and not write it. Going on is safe, for a lock only saves work: what is written has a name of its own until it is whole.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from ..files import beside

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["NOTICE", "QUIET", "hold"]

NOTICE = 3.0  # seconds of waiting for another process before that is said
QUIET = 5.0  # seconds without a sign of life before a lock is not waited for
_BEAT = 1.0
_POLL = 0.05
_NO_FLOCK = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.EBADF}  # EBADF: NFS, not open for writing

_NO_LOCK = "no lock file but a link, a folder or a special file: remove it"

_logger = logging.getLogger("upernet_zoo")
_own = threading.local()  # .paths: the locks that a thread holds, so that it can take one of them again


@contextlib.contextmanager
def hold(path: Path) -> Iterator[None]:
    """Hold a lock file, made if it is missing; a thread may take again what it holds.

    Raises:
        OSError: it cannot be opened, or something else than a lock file is there.
    """
    mine = _own.__dict__.setdefault("paths", set())
    if path in mine:
        yield
        return
    with contextlib.ExitStack() as stack:
        descriptor = _open(path)
        stack.callback(os.close, descriptor)
        claim = _take(path, descriptor)
        if claim is not None:
            stack.callback(claim.unlink, missing_ok=True)
        mine.add(path)
        stack.callback(mine.discard, path)
        done = threading.Event()
        beat = threading.Thread(target=_show_life, args=(descriptor, path, done), daemon=True)
        beat.start()
        stack.callback(beat.join)
        stack.callback(done.set)
        yield


def _open(path: Path) -> int:
    """A descriptor of a lock file. Those who may write the folder may write the file, so that they can show life too."""
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags, 0o666)
        if hasattr(os, "fchmod"):
            os.fchmod(descriptor, path.parent.stat().st_mode & 0o666)
        return descriptor
    except FileExistsError:
        pass
    flags |= getattr(os, "O_NONBLOCK", 0)
    try:
        try:
            descriptor = os.open(path, os.O_RDWR | flags)
        except PermissionError:  # another user's; to lock it is enough to read it
            descriptor = os.open(path, os.O_RDONLY | flags)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EISDIR):
            raise
        raise OSError(error.errno, _NO_LOCK) from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        raise OSError(errno.EINVAL, _NO_LOCK)
    return descriptor


def _take(path: Path, descriptor: int) -> Path | None:
    """Wait for a lock as long as its holder shows life; returns the claim, where one was made."""
    claim = beside(path, ".claim")
    started = seen = time.monotonic()
    last, quiet, told = None, 0.0, False
    while True:
        had = _try_flock(descriptor)
        if had is None:
            with contextlib.suppress(FileExistsError):
                os.close(os.open(claim, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
                return claim
        elif had:
            return None
        now, sign = time.monotonic(), os.fstat(descriptor).st_mtime_ns
        # a pause of this process does not count as silence of the holder: the whole machine may have stood still
        quiet = quiet + min(now - seen, 4 * _POLL) if sign == last else 0.0
        last, seen = sign, now
        if quiet > QUIET:
            _logger.warning("%s: whoever holds this lock shows no life; going on without it.", path)
            with contextlib.suppress(OSError):
                claim.unlink()  # of a process that was killed; where another's claim goes, work is done twice and no more
            return None
        if not told and now - started > NOTICE:
            _logger.warning("Waiting for another process that has %s in work (lock %s).", path.name.removesuffix(".lock"), path)
            told = True
        time.sleep(_POLL)


def _try_flock(descriptor: int) -> bool | None:
    """Whether the lock is had now; None where there are no such locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise
        return None
    return True


def _show_life(descriptor: int, path: Path, done: threading.Event) -> None:
    while not done.wait(_BEAT):
        with contextlib.suppress(OSError):
            os.utime(descriptor if os.utime in os.supports_fd else path)
