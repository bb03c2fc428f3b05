"""An end for what huggingface_hub's client downloads: its own limits are for single reads, so a server that drips keeps it for ever."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from ..errors import DownloadError
from ..weights import download

__all__ = ["an_end"]

_POLL = 0.2  # seconds


@contextlib.contextmanager
def an_end(folder: Path, owner: str) -> Iterator[None]:
    """Close the client's connections, and those of its further attempts, where too little arrives in a folder of the Hub's cache.

    Args:
        folder: of the repository in the Hub's cache, where the client writes what is under way.
        owner: named in the error.

    Raises:
        DownloadError: it was closed, for fewer than `stall_bytes` had come in `stall_seconds` (`download.SETTINGS`).
    """
    import huggingface_hub

    settings, done, expired = download.SETTINGS, threading.Event(), threading.Event()

    def watch() -> None:
        since, before = time.monotonic(), _arrived(folder)
        while not done.wait(_POLL):
            if expired.is_set():
                huggingface_hub.close_session()
            elif time.monotonic() - since >= settings.stall_seconds:
                now = _arrived(folder)
                if now - before < settings.stall_bytes:
                    expired.set()
                since, before = time.monotonic(), now

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    except Exception as error:
        if not expired.is_set():
            raise
        raise DownloadError(f"{owner}: stalled: too little came in {settings.stall_seconds:g} s. Try again later.") from error
    finally:
        done.set()
        thread.join()


def _arrived(folder: Path) -> int:
    """Bytes of what is under way."""
    size = 0
    for path in folder.rglob("*.incomplete"):
        with contextlib.suppress(OSError):
            size += path.stat().st_size
    return size
