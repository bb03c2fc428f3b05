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
    """The loader's batches. If a worker process dies, this is raised between two batches, after the other workers have ended.

    torch's handler of SIGCHLD raises what it says of a dead worker wherever the main thread is by then. Raised within a step, it would
    leave some weights new and others old; raised within a write, no file. So it waits until the next batch is asked for. One loader at
    a time is read so.

    Raises:
        WorkerError: a worker process died; the message is the cause alone.
    """
    if not loader.num_workers:
        yield from loader
        return
    with _Deaths() as deaths:
        batches = None
        try:
            while True:
                try:
                    with deaths.told():
                        if batches is None:
                            batches = iter(loader)
                        batch = next(batches)
                except StopIteration:
                    return
                except (RuntimeError, ConnectionError, EOFError) as error:
                    if not _is_death(error):
                        raise
                    cause = next(iter(str(error).splitlines()), type(error).__name__)
                    break
                yield batch
        finally:
            del batches  # the last reference: this ends the other workers and waits for them, so that nothing is said of them later
    raise WorkerError(cause)


def _is_death(error: Exception) -> bool:
    """Whether the error means that a worker died, and not that a living one raised it."""
    text = str(error)
    if "in DataLoader worker process" in text:
        return False
    # other errors than torch's own are of what a worker was sending, which has no end
    return not isinstance(error, RuntimeError) or re.search(r"DataLoader worker \(pid|Pin memory thread exited", text) is not None


class _Deaths:
    """Keeps signals of ended processes from the handler of SIGCHLD, torch's or another, until it may raise.

    Those that come meanwhile are one, which the handler gets at the next `told`, or at the end.
    """

    def __init__(self) -> None:
        # Windows has no such signal, and no thread but the main one may set a handler or is interrupted by one
        self.settable = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
        self.handler: Any = None
        self.missed: tuple[Any, ...] | None = None

    def __enter__(self) -> _Deaths:
        self._keep()
        return self

    def __exit__(self, *_: object) -> None:
        self._let()

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Let the handler have what it missed, and what comes meanwhile; it may also be set."""
        try:
            self._let()
            yield
        finally:
            self._keep()

    def _keep(self) -> None:
        handler = signal.getsignal(signal.SIGCHLD) if self.settable else None
        if callable(handler) and handler != self._note:
            self.handler = handler
            signal.signal(signal.SIGCHLD, self._note)

    def _let(self) -> None:
        if self.handler is not None:
            signal.signal(signal.SIGCHLD, self.handler)
            missed, self.missed = self.missed, None
            if missed:
                self.handler(*missed)

    def _note(self, *args: Any) -> None:
        self.missed = args
