"""An end for transfers: http.client knows none where a header, a chunk's size or a trailer goes on for ever."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

__all__ = ["Watch"]


class Watch:
    """Cuts the connections of one attempt when its time is over. A context manager; `over` is told of each connection."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.expired = False
        self._sockets: list[socket.socket] = []
        self._condition = threading.Condition()
        self._end = 0.0
        self._done = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def restart(self, more: float = 0.0) -> None:
        """Give the next thing its time, and `more` where a connection must come about first."""
        with self._condition:
            self._end = time.monotonic() + self.seconds + more

    def over(self, connection: socket.socket) -> None:
        """Take a new connection under the watch. A descriptor of the watch's own is kept, since TLS takes over the other."""
        with self._condition:
            self._sockets.append(connection.dup())
            self._end = time.monotonic() + self.seconds
            if self.expired:
                self._cut()

    def _run(self) -> None:
        with self._condition:
            while not self._done and (left := self._end - time.monotonic()) > 0:
                self._condition.wait(min(left, threading.TIMEOUT_MAX))
            if not self._done:
                self.expired = True
                self._cut()

    def _cut(self) -> None:
        for connection in self._sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Watch:
        self.restart()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._condition:
            self._done = True
            self._condition.notify()
        self._thread.join()
        for connection in self._sockets:
            connection.close()
