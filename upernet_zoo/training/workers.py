"""Batches that other processes read, where one of those may die at any moment."""

from __future__ import annotations

import contextlib
import re
import signal
import threading
from collections.abc import Generator, Iterator
from typing import Any

from torch.utils.data import DataLoader

from ..errors import WorkerError

__all__ = ["steady"]


def steady(loader: DataLoader) -> Generator[Any, None, None]:
    """The loader's batches; that a process of its died is said between two of them, when the others have ended too.

    torch's handler of SIGCHLD raises what it says of a dead process wherever the main thread is by then. Within a step that leaves some
    weights new and others old, and within a write no file. So it is kept waiting until the next batch is asked for.

    Raises:
        WorkerError: a process died; the message is the cause alone.
    """
    batches = iter(loader)
    with _Deaths() as deaths:
        while True:
            try:
                with deaths.told():
                    batch = next(batches)
            except StopIteration:
                return
            except (RuntimeError, ConnectionError, EOFError) as error:
                if not _is_death(error):
                    raise
                cause = next(iter(str(error).splitlines()), type(error).__name__)
                break
            yield batch
        del batches  # its last reference: ends and awaits the other processes, so that nothing is said of them later
    raise WorkerError(cause)


def _is_death(error: Exception) -> bool:
    """Whether torch says that a process died, or what it was sending has no end; and not what a living one raised."""
    text = str(error)
    if "in DataLoader worker process" in text:
        return False
    return not isinstance(error, RuntimeError) or re.search(r"DataLoader worker \(pid", text) is not None


class _Deaths:
    """Lets torch's handler of SIGCHLD, or whichever is there, hear of ended processes only where it may raise."""

    def __init__(self) -> None:
        self.listening = False
        self.missed: tuple[Any, ...] | None = None
        # Windows has no such signal, and no thread but the main one may set a handler or is interrupted by one
        settable = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
        self.handler: Any = signal.getsignal(signal.SIGCHLD) if settable else None

    def __enter__(self) -> _Deaths:
        if callable(self.handler):
            signal.signal(signal.SIGCHLD, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        if callable(self.handler):
            signal.signal(signal.SIGCHLD, self.handler)

    def _hear(self, *args: Any) -> None:
        if self.listening:
            self.handler(*args)
        else:
            self.missed = args

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Tell what was missed, and what happens meanwhile."""
        self.listening = True
        try:
            if self.missed:
                missed, self.missed = self.missed, None
                self.handler(*missed)
            yield
        finally:
            self.listening = False
