"""TCP connections within a time limit for everything: the name, and all addresses together. Hosts that have none are remembered.

Addresses are tried side by side, each a moment after the one before (RFC 8305), so that one that swallows packets costs no more than
that moment. The system's resolver knows no limit: it is asked in a thread that is left alone when the time is over.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import threading
import time
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

__all__ = ["REMEMBERED", "Option", "connect", "forget", "give_up", "pause", "peer"]

REMEMBERED = 300.0  # seconds for which a host that could not be reached is not asked again
_STAGGER = 0.25  # seconds before the next address is tried beside those that have not answered
_UNDER_WAY = {0, errno.EINPROGRESS, errno.EWOULDBLOCK, getattr(errno, "WSAEWOULDBLOCK", errno.EWOULDBLOCK)}
Option = tuple[int, int, int | bytes]
_given_up: dict[str, float] = {}  # host and port -> when it was given up


def peer(url: str) -> str:
    """Host and port of a URL, or of a proxy, which may come without a scheme."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    return f"{parts.hostname}:{parts.port or {'http': 80, 'https': 443}.get(parts.scheme.lower(), 0)}"


def give_up(peer: str) -> None:
    """Remember that a host could not be reached."""
    _given_up[peer] = time.monotonic()


def pause(peer: str) -> float:
    """Seconds for which a host is not asked, because it could not be reached; 0 if it may be asked."""
    return max(0.0, _given_up.get(peer, -REMEMBERED) + REMEMBERED - time.monotonic())


def forget() -> None:
    """Ask every host again."""
    _given_up.clear()


def connect(host: str, port: int, deadline: float, options: Iterable[Option] = ()) -> socket.socket:
    """A connected socket, whose timeout is the time that is left.

    Args:
        host: name or address.
        port: of TCP.
        deadline: on the clock of `time.monotonic`.
        options: for `setsockopt`.

    Raises:
        socket.gaierror: the name cannot be resolved.
        TimeoutError: nothing answered in time.
        OSError: what the last address said.
    """
    addresses = _resolve(host, port, deadline)
    with selectors.DefaultSelector() as selector:
        try:
            connected = _first(selector, addresses, deadline, tuple(options))
        finally:
            for key in list(selector.get_map().values()):
                selector.unregister(key.fileobj)
                _socket(key).close()
    connected.settimeout(max(deadline - time.monotonic(), 0.001))
    return connected


def _resolve(host: str, port: int, deadline: float) -> list[Any]:
    try:  # an address needs no resolver
        return socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        pass  # a name
    found: list[list[Any]] = []
    failed: list[OSError] = []

    def ask() -> None:
        try:
            found.append(socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM))
        except UnicodeError as error:  # a label that no name can have
            failed.append(socket.gaierror(socket.EAI_NONAME, str(error)))
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=ask, name=f"resolve {host}", daemon=True)
    thread.start()
    thread.join(max(0.0, deadline - time.monotonic()))
    if failed:
        raise failed[0]
    if not found:
        raise TimeoutError(f"the name {host} was not resolved in time")
    return found[0]


def _first(selector: selectors.BaseSelector, addresses: list[Any], deadline: float, options: tuple[Option, ...]) -> socket.socket:
    """The first socket that is connected. Those that are still on their way stay registered."""
    waiting, failure, next_start = list(addresses), OSError("the name has no address"), 0.0
    while waiting or selector.get_map():
        now = time.monotonic()
        if now >= deadline:
            raise TimeoutError("no address answered in time")
        if waiting and (now >= next_start or not selector.get_map()):
            try:
                selector.register(_start(waiting.pop(0), options), selectors.EVENT_WRITE)
                next_start = now + _STAGGER
            except OSError as error:
                failure = error
            continue
        for key, _ in selector.select((min(deadline, next_start) if waiting else deadline) - now):
            candidate = _socket(key)
            selector.unregister(candidate)
            code = candidate.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not code:
                return candidate
            candidate.close()
            failure = OSError(code, os.strerror(code))
    raise failure


def _socket(key: selectors.SelectorKey) -> socket.socket:
    assert isinstance(key.fileobj, socket.socket)
    return key.fileobj


def _start(address: Any, options: tuple[Option, ...]) -> socket.socket:
    family, kind, protocol, _, where = address
    started = socket.socket(family, kind, protocol)
    try:
        for option in options:
            started.setsockopt(*option)
        started.setblocking(False)
        code = started.connect_ex(where)
        if code not in _UNDER_WAY:
            raise OSError(code, os.strerror(code))
    except OSError:
        started.close()
        raise
    return started
