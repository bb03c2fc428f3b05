"""One file from a URL to disk: retried, resumed, measured, never trusted.

The bytes arrive in a partial file; beside it is kept what is remembered of the file behind the URL (`<partial>.state`: URL, ETag,
date, size), so that a later call, or a later process, goes on where this one was cut. What the bytes are worth is decided by the
caller, who compares the returned SHA-256 before anything gets its final name.
http.client waits without end for a header, a chunk's size or a trailer that goes on for ever. So each attempt has a watch of its own
(`watch.Watch`), which cuts its connections where the answer or the next bytes are not there in time.
"""

from __future__ import annotations

import contextlib
import email.utils
import math
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from .. import files
from .. import progress as bars
from ..errors import CacheError, DownloadError, UPerNetZooError, WriteError, shown
from ..files import not_a_checkpoint, size_text
from ..version import __version__
from . import connect
from .cache import elsewhere
from .partial import Partial, Transfer
from .request import Settings, Target, TransientError, UnreachableError, open_url
from .watch import Watch

__all__ = ["SETTINGS", "bring", "download", "require_space"]

SETTINGS = Settings()
_STATUS = {401: "access denied", 403: "access denied", 404: "the file is not there", 410: "the file is gone"}
_RETRIED = {408, 425, 429, 500, 502, 503, 504}
_HEAD = 512  # bytes looked at to recognize what is no checkpoint


def require_space(folder: Path, size: int, settings: Settings) -> None:
    """Refuse before the first byte what the disk cannot hold.

    Raises:
        CacheError: less than `size` and the spare space of `settings` is free in `folder`.
    """
    free = shutil.disk_usage(folder).free
    if free < size + settings.spare:
        raise CacheError(
            f"{folder}: {size_text(free)} are free, {size_text(size)} are to come and {size_text(settings.spare)} must stay. "
            f"Free some space, or {elsewhere()}."
        )


@dataclass(kw_only=True)
class _Order(Target):
    """What is to be brought, and where to."""

    part: Partial
    bar: Any


def download(
    url: str,
    partial: Path,
    *,
    name: str | None = None,
    progress: bool = True,
    follow_lapsed: bool = True,
    settings: Settings | None = None,
) -> Transfer:
    """Bring what a URL has into the file `partial`, going on with the bytes that it already holds.

    Args:
        url: http or https.
        partial: file for the bytes; its folder exists.
        name, progress, follow_lapsed, settings: as for `bring`.

    Raises:
        TakenError: another process has the partial open, or it is another user's.
        DownloadError, UnreachableError, CacheError: as `bring`.
    """
    with Partial(partial) as part:
        return bring(url, part, name=name, progress=progress, follow_lapsed=follow_lapsed, settings=settings)


def bring(
    url: str,
    part: Partial,
    *,
    name: str | None = None,
    progress: bool = True,
    headers: Mapping[str, str] | None = None,
    follow_lapsed: bool = True,
    settings: Settings | None = None,
) -> Transfer:
    """Bring what a URL has into a partial, going on with the bytes that it already holds.

    Connections that are refused, cut, silent or slow, and the statuses 408, 425, 429 and 5xx, are tried again after a growing
    wait, or the one that Retry-After asks for. Bytes on disk are kept by a Range request with If-Range; when the server ignores it,
    or the file changed, the transfer starts again. Redirects never lead from https to http. Proxies, certificates and `.netrc` are
    used as requests does.

    Args:
        url: http or https.
        part: for the bytes. The caller holds the lock, verifies and renames it.
        name: what the progress bar shows; by default the partial's name.
        progress: show a bar on stderr, where that is a terminal.
        headers: more of the request, such as Authorization; they go to the URL's own host alone.
        follow_lapsed: follow a redirect to a domain that has lapsed; for a file whose digest cannot be forged.
        settings: by default `SETTINGS`.

    Raises:
        DownloadError: this URL does not give the file; the message is the cause alone. The bytes so far stay for the next call.
        UnreachableError: the same, where no connection came about.
        CacheError: the disk is full (the partial is removed then) or the partial cannot be written.
    """
    settings = settings or SETTINGS
    with bars.counter(
        desc=name or part.path.name, unit="B", unit_scale=True, unit_divisor=1000, show=progress and bars.on_terminal()
    ) as bar:
        order = _Order(url=url, headers=headers or {}, follow_lapsed=follow_lapsed, settings=settings, part=part, bar=bar)
        failures, unreached, furthest = 0, 0, part.size
        cause: TransientError | None = None
        while True:
            try:
                _attempt(order)
                return part.finish()
            except TransientError as error:
                deadline = math.inf if error.peer is None else order.deadlines[error.peer]
                # an attempt that had but a moment left to connect says less than the one before
                if cause is None or cause.peer != error.peer or time.monotonic() < deadline:
                    cause = error
                if part.size >= furthest + settings.stall_bytes:
                    failures = 0
                failures, furthest = failures + 1, max(furthest, part.size)
                unreached = 0 if error.peer is None else unreached + 1
                wait = min(settings.backoff * 2 ** (failures - 1), settings.longest_wait) if error.wait is None else error.wait
                if error.peer is None:
                    order.deadlines.clear()  # there was a connection
                over = time.monotonic() + wait >= deadline
                if over or failures >= settings.attempts or unreached >= settings.connect_attempts:
                    message = f"{cause} (given up after {failures} attempt{'s' if failures > 1 else ''})"
                    if error.peer is not None:
                        connect.give_up(error.peer)
                        raise UnreachableError(message) from None
                    raise DownloadError(message) from None
                bar.set_postfix_str(f"{error}; again in {wait:.0f} s")
                time.sleep(wait)
                bar.set_postfix_str("")
            except UPerNetZooError as error:
                if isinstance(error, WriteError) and isinstance(error.__cause__, OSError):
                    _give_up(part, error.__cause__)
                raise
            except OSError as error:
                _give_up(part, error)


def _give_up(part: Partial, error: OSError) -> NoReturn:
    """Say that the partial cannot be written; where the disk is full, give back what these bytes take."""
    if files.no_space(error):
        with contextlib.suppress(OSError):
            part.file.truncate(0)
        part.size = 0
    raise CacheError(files.write_problem(error, part.path, elsewhere())) from error


def _attempt(order: _Order) -> None:
    """One request, from the bytes on disk to the end of the file."""
    from .session import session as new_session

    if order.part.complete:
        order.part.resumed = True
        return
    with Watch(max(order.settings.stall_seconds, order.settings.read_timeout)) as watch, new_session(watch.over) as session:
        _ask(session, watch, order)


def _headers(order: _Order) -> dict[str, str]:
    """Of a request for what is not here yet, if the file is still the one that the bytes here are of."""
    part = order.part
    headers = {**order.headers, "Accept-Encoding": "identity", "User-Agent": f"upernet_zoo/{__version__}"}
    if part.size:
        headers["Range"] = f"bytes={part.size}-"
        etag = part.state["etag"]
        validator = etag if etag and not etag.startswith("W/") else part.state["modified"]
        if validator and part.state["url"] == shown(order.url, "url"):
            headers["If-Range"] = validator
    return headers


def _ask(session: Any, watch: Watch, order: _Order) -> None:
    url, part, bar, settings = order.url, order.part, order.bar, order.settings
    with contextlib.closing(open_url(session, watch, order, "GET", _headers(order))) as response:
        status = response.status_code
        seen = {"url": shown(url, "url"), "etag": response.headers.get("ETag"), "modified": response.headers.get("Last-Modified")}
        first, total = _content_range(response.headers.get("Content-Range", ""))
        if status == 416 and part.size:
            if total == part.size:
                part.resumed = True
                return
            part.restart()
            raise TransientError("the server has fewer bytes than are here already", wait=0)
        if status == 206 and not (part.size and first == part.size and total is not None and _same(part.state, seen, total)):
            part.restart()
            raise TransientError("the server answered with another part than asked for, or of another file", wait=0)
        if status == 200:
            total = _content_length(response)
            head = _first_bytes(response, watch, settings)
            content_type = response.headers.get("Content-Type", "").lower()
            if what := not_a_checkpoint(head, content_type):
                raise DownloadError(f"HTTP 200, but the answer is {what}")
            if not head:
                raise TransientError("the answer is empty")
            _require(part, total, total, settings)
            part.restart({**seen, "size": total})
        elif status == 206 and total is not None:  # which the check above made sure of
            head = b""
            part.resumed = True
            part.state["size"] = total
            _require(part, total, total - part.size, settings)
        else:
            _refuse(response, settings)
        bar.reset(total)
        bar.update(part.size)
        _receive(response, watch, part, head, total, bar, settings)


def _receive(response: Any, watch: Watch, part: Partial, data: bytes, total: int | None, bar: Any, settings: Settings) -> None:
    """Append the body to the partial; `data` is the part of it that has been read already."""
    since, count = time.monotonic(), 0
    while True:
        if part.size + len(data) > (settings.largest if total is None else total):
            part.restart()
            raise DownloadError(f"the answer goes on after its announced size, or after the {size_text(settings.largest)} that are taken")
        part.append(data)
        bar.update(len(data))
        count += len(data)
        if (now := time.monotonic()) - since >= settings.stall_seconds:
            if count < settings.stall_bytes:
                raise TransientError(f"stalled: {count} bytes in {now - since:.0f} s")
            since, count = now, 0
        data = _read(response, watch, part.size, settings)
        if not data:
            break
    if total is not None and part.size != total:
        raise TransientError(f"the connection ended after {part.size} of {total} bytes")


def _require(part: Partial, total: int | None, missing: int | None, settings: Settings) -> None:
    if total is not None and total > settings.largest:
        raise DownloadError(f"the server announces {size_text(total)}; no more than {size_text(settings.largest)} are taken")
    if missing is not None:
        freed = part.size if missing == total else 0  # a restart gives the old bytes back
        require_space(part.path.parent, missing - freed, settings)


def _refuse(response: Any, settings: Settings) -> NoReturn:
    status = response.status_code
    message = f"HTTP {status} ({_STATUS.get(status) or shown(response.reason or 'no reason given', 'text')})"
    if status not in _RETRIED:
        raise DownloadError(message)
    wait = _retry_after(response.headers.get("Retry-After"))
    if wait is not None and wait > settings.longest_wait:
        raise DownloadError(f"{message}; the server asks to come back in {wait:.0f} s")
    raise TransientError(message, wait=wait)


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait from a Retry-After header, which has seconds or a date (RFC 9110, 10.2.3); None if it has neither."""
    if value is None:
        return None
    if re.fullmatch(r"\d{1,9}", seconds := value.strip()):  # strip() knows more kinds of space than float()
        return float(seconds)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None


def _content_range(value: str) -> tuple[int | None, int | None]:
    """First byte and total size from a Content-Range header: "bytes 5-9/10", or "bytes */10" (RFC 9110, 14.4)."""
    match = re.fullmatch(r"\s*bytes\s+(?:(\d{1,18})-\d{1,18}|\*)/(\d{1,18})\s*", value)
    return (int(match[1]) if match[1] else None, int(match[2])) if match else (None, None)


def _content_length(response: Any) -> int | None:
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise DownloadError("the server sends the file compressed although it was asked not to")
    value = response.headers.get("Content-Length", "")
    return int(value) if re.fullmatch(r"\d{1,18}", value) else None


def _same(state: dict[str, Any], seen: dict[str, Any], total: int) -> bool:
    """Whether the file behind the URL is the one that the partial began with, as far as headers tell; the digest decides."""
    if state["size"] not in (None, total):
        return False
    # another mirror of the same file has an ETag and a date of its own
    return state["url"] != seen["url"] or all(None in (state[k], seen[k]) or state[k] == seen[k] for k in ("etag", "modified"))


def _read(response: Any, watch: Watch, position: int, settings: Settings) -> bytes:
    """What has arrived of the body, at least one byte; nothing at its end. `position` is for the message."""
    import http.client

    from urllib3.exceptions import HTTPError, ReadTimeoutError

    try:
        # read1 and not read: the latter waits for a full chunk, and a trickle would keep it waiting for hours
        data = response.raw.read1(settings.chunk, decode_content=False) or b""
    except (ReadTimeoutError, TimeoutError):
        raise TransientError(f"stalled: no byte for {settings.read_timeout:g} s after {position} bytes") from None
    except (HTTPError, http.client.HTTPException, OSError, ValueError):
        if not watch.expired:
            raise TransientError(f"the connection was cut after {position} bytes") from None
        data = b""
    if watch.expired:
        raise TransientError(f"stalled: no byte for {watch.seconds:g} s after {position} bytes")
    watch.restart()
    return data


def _first_bytes(response: Any, watch: Watch, settings: Settings) -> bytes:
    since, head = time.monotonic(), b""
    while len(head) < _HEAD and (data := _read(response, watch, len(head), settings)):
        head += data
        if len(head) < _HEAD and time.monotonic() - since >= settings.stall_seconds:
            raise TransientError(f"stalled: {len(head)} bytes in {settings.stall_seconds:g} s")
    return head
