"""A requests session whose connections come about within the connect timeout, all addresses and the TLS handshake together."""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

from .connect import connect

__all__ = ["BeyondProxyError", "causes", "session"]


class BeyondProxyError(NewConnectionError):
    """The proxy takes connections, and none to the host came about through it."""


class _Prompt(HTTPConnection):
    """`timeout` is the limit for the whole connection while it is made."""

    def connect(self) -> None:
        self.arrived = False
        try:
            super().connect()
        except ssl.SSLCertVerificationError:
            raise
        except OSError as error:
            if self.proxy and self.arrived:
                raise BeyondProxyError(self, str(error)) from error
            if isinstance(error, TimeoutError):
                raise ConnectTimeoutError(self, "timed out") from error
            raise NewConnectionError(self, str(error)) from error

    def _new_conn(self) -> socket.socket:
        assert self.timeout is not None  # every request here has one
        try:
            connected = connect(self._dns_host, self.port, time.monotonic() + self.timeout, self.socket_options or ())
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error
        self.arrived = True
        sys.audit("http.client.connect", self, self.host, self.port)
        return connected


class _PromptTLS(_Prompt, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Prompt


class _PoolTLS(HTTPSConnectionPool):
    ConnectionCls = _PromptTLS


_POOLS = {"http": _Pool, "https": _PoolTLS}


class _Adapter(HTTPAdapter):
    def __init__(self, on_connection: Callable[[socket.socket], None] | None) -> None:
        self.on_connection = on_connection
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **options)
        if not proxy.lower().startswith("socks"):  # PySocks connects in its own way
            manager.pool_classes_by_scheme = _POOLS
        return manager

    def get_connection_with_tls_context(self, *args: Any, **options: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **options)
        if self.on_connection is not None:
            pool.ConnectionCls = _watched(pool.ConnectionCls, self.on_connection)
        return pool


def _watched(connection: Any, on_connection: Callable[[socket.socket], None]) -> type:
    """A class of connections whose sockets are shown to somebody, before TLS or a proxy is spoken on them."""

    class Shown(connection):
        def _new_conn(self) -> Any:
            connected = super()._new_conn()
            on_connection(connected)
            return connected

    return Shown


_DISCREET: ContextVar[bool] = ContextVar("upernet_zoo_discreet", default=False)


def _without_query(record: logging.LogRecord) -> bool:
    """A filter for urllib3, which logs whole paths: at DEBUG, and as a warning where headers cannot be read."""
    if _DISCREET.get():
        record.msg, record.args = re.sub(r"\?[^\s)]*", "?...", record.getMessage()), ()
    return True


for _name in ("urllib3.connection", "urllib3.connectionpool"):
    logging.getLogger(_name).addFilter(_without_query)


@contextlib.contextmanager
def discreet() -> Iterator[None]:
    """Have no query, which may be a password, in what urllib3 logs here."""
    token = _DISCREET.set(True)
    try:
        yield
    finally:
        _DISCREET.reset(token)


def session(on_connection: Callable[[socket.socket], None] | None = None) -> requests.Session:
    """A new session; `on_connection` is shown each new socket. Proxies, certificates and `.netrc` are used as requests does."""
    made = requests.Session()
    for prefix in ("http://", "https://"):
        made.mount(prefix, _Adapter(on_connection))
    return made


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error of requests, those of urllib3 inside it, and last the operating system's or ssl's own."""
    for _ in range(10):
        yield error
        inner = [getattr(error, "reason", None), *reversed(error.args), error.__cause__]
        inner = [e for e in inner if isinstance(e, BaseException)]
        if not inner:
            return
        error = inner[0]
