"""One request over HTTP: redirects that are followed, and what a failure means in words."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn
from urllib.parse import urljoin, urlsplit

from ..errors import DownloadError, UPerNetZooError, shown
from ..index import Standing, standing
from . import connect
from .watch import Watch

__all__ = ["Settings", "Target", "TransientError", "UnreachableError", "open_url"]


@dataclass(frozen=True)
class Settings:
    """How patient a transfer is. Times in seconds, amounts in bytes."""

    attempts: int = 5  # failures in a row, without `stall_bytes` of progress between them, before the source is given up
    connect_attempts: int = 2  # the same where no connection came about: another source is tried earlier
    backoff: float = 1.0  # wait after the first failure; doubled with each further one
    longest_wait: float = 60.0  # no wait is longer; a server that asks for more by Retry-After is left alone
    connect_timeout: float = 4.5  # for the name, every address, TLS, and every attempt at them; a dead host costs 5 s with all around it
    read_timeout: float = 30.0  # complete silence
    stall_seconds: float = 60.0  # fewer than `stall_bytes` in so many seconds is a stall
    stall_bytes: int = 64 << 10
    redirects: int = 10
    chunk: int = 1 << 20
    spare: int = 64 << 20  # left free on the disk
    largest: int = 8 << 30  # no checkpoint of this kind is near it; an endless answer stops here


@dataclass(kw_only=True)
class Target:
    """What is asked for, and how.

    Attributes:
        url: http or https.
        headers: that go to the URL's own host alone, such as Authorization.
        follow_lapsed: follow a redirect to a domain that has lapsed; for a file whose digest cannot be forged.
        settings: how patient.
        deadlines: until when a connection to a host, or to a proxy, must come about; kept over the attempts.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    follow_lapsed: bool
    settings: Settings
    deadlines: dict[str, float] = field(default_factory=dict)


class UnreachableError(DownloadError):
    """No connection to the server: what else it may have need not be asked for."""


class TransientError(Exception):
    """A failure that may be over at the next attempt.

    `wait`: seconds that the server asked for. `peer`: the host, or the proxy, to which no connection came about. `slow`: it is there,
    and has not answered in time.
    """

    def __init__(self, message: str, *, wait: float | None = None, peer: str | None = None, slow: bool = False) -> None:
        super().__init__(message)
        self.wait, self.peer, self.slow = wait, peer, slow


def open_url(session: Any, watch: Watch, target: Target, method: str, headers: Mapping[str, str]) -> Any:
    """Send a request and follow redirects.

    Args:
        session: as `session.session` makes it, under the watch.
        watch: that cuts its connections; restarted for each request.
        target: what is asked for.
        method: "GET" or "HEAD".
        headers: of this request, those of the target among them.

    Returns:
        A streamed response of any status that is no redirect, to be closed.

    Raises:
        TransientError: it may go better the next time.
        UnreachableError: no connection will come about.
        DownloadError: nothing will come of this URL.
    """
    from requests import Request
    from requests.utils import select_proxy
    from urllib3.exceptions import HTTPError

    from .session import discreet

    url, settings = target.url, target.settings
    for _ in range(settings.redirects + 1):
        proxy = None
        try:
            # not session.get, which reads the whole body of a redirect into memory, followed or not
            request = session.prepare_request(Request(method, url, headers=headers))
            options = session.merge_environment_settings(request.url, {}, True, None, None)
            proxy = select_proxy(request.url, options["proxies"])
            left = _time_to_connect((url, proxy) if proxy else (url,), target.deadlines, settings)
            watch.restart(left)
            with discreet():
                response = session.get_adapter(request.url).send(request, timeout=(left, settings.read_timeout), **options)
            location = session.get_redirect_target(response)
        except UPerNetZooError:
            raise
        except (OSError, HTTPError, ValueError, TypeError) as error:  # TypeError: a proxy without a host
            if watch.expired:
                _say_silent(url, watch)
            _explain(error, url, proxy, settings)
        if watch.expired:  # what was cut within its headers looks like an answer
            response.close()
            _say_silent(url, watch)
        target.deadlines.clear()
        if location is None:
            return response
        response.close()
        try:
            onward = urljoin(url, location)
            schemes = urlsplit(url).scheme.lower(), urlsplit(onward).scheme.lower()
        except ValueError:
            raise DownloadError("redirected to what is no URL") from None
        where = shown(shown(onward, "url"), "text")
        if schemes[1] not in ("http", "https") or schemes == ("https", "http"):
            raise DownloadError(f"redirected from {schemes[0]} to {where}, which is not followed")
        if not target.follow_lapsed and standing(onward) is Standing.LAPSED:
            raise DownloadError(f"redirected to {where}, whose domain has lapsed: its new owner could forge the known digits")
        if connect.peer(onward) != connect.peer(url):
            headers = {name: value for name, value in headers.items() if name not in target.headers}
        url = onward
    raise DownloadError(f"more than {settings.redirects} redirects")


def _time_to_connect(urls: tuple[str, ...], deadlines: dict[str, float], settings: Settings) -> float:
    """Seconds that are left for a connection to the host, by its proxy if there is one.

    Raises:
        UnreachableError: one of the two could not be reached, a short while ago.
    """
    now = time.monotonic()
    peers = [connect.peer(url) for url in urls]
    if pause := max(map(connect.pause, peers)):
        raise UnreachableError(f"not asked: the same server could not be reached; it is asked again in {pause:.0f} s")
    return max(min(deadlines.setdefault(peer, now + settings.connect_timeout) for peer in peers) - now, 0.001)


def _say_silent(url: str, watch: Watch) -> NoReturn:
    raise TransientError(f"no answer from {urlsplit(url).hostname} within {watch.seconds:g} s", slow=True) from None


def _explain(error: Exception, url: str, proxy: str | None, settings: Settings) -> NoReturn:
    """Raise what a failed request means, in words: requests' own text repeats the whole URL and hides the cause."""
    import socket
    import ssl

    from requests import exceptions
    from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

    from .session import BeyondProxyError, causes

    chain, host = list(causes(error)), urlsplit(url).hostname
    cause = chain[-1]
    words = shown(str(cause).replace(url, shown(url, "url")), "text")  # which a server may have sent, of any length
    refused = any(isinstance(e, NewConnectionError) for e in chain)  # which urllib3 derives from ConnectTimeoutError
    if isinstance(cause, ssl.SSLCertVerificationError):
        connect.give_up(connect.peer(url))
        raise UnreachableError(f"the TLS certificate of {host} is not valid ({cause.verify_message})") from None
    if isinstance(error, exceptions.ProxyError) and not any(isinstance(e, BeyondProxyError) for e in chain):
        raise TransientError(f"the proxy does not answer ({words})", peer=connect.peer(proxy or url)) from None
    if not refused and any(isinstance(e, ConnectTimeoutError) for e in chain):
        raise TransientError(f"no connection to {host} within {settings.connect_timeout:g} s", peer=connect.peer(url)) from None
    if isinstance(error, exceptions.ReadTimeout):
        raise TransientError(f"no answer from {host} within {settings.read_timeout:g} s", slow=True) from None
    if isinstance(cause, socket.gaierror):
        raise TransientError(f"the name {host} cannot be resolved ({cause.strerror})", peer=connect.peer(url)) from None
    if isinstance(cause, ConnectionRefusedError):
        raise TransientError(f"connection refused by {host}", peer=connect.peer(url)) from None
    if isinstance(error, exceptions.ConnectionError):
        raise TransientError(f"no connection to {host} ({words})", peer=connect.peer(url) if refused else None) from None
    raise DownloadError(f"the request failed ({words})") from None
