"""One file from a URL to disk: retried, resumed, measured, never trusted.

The bytes arrive in a partial file; beside it stands what is remembered of the file behind the URL (`<partial>.state`: URL, ETag,
date, size), so that a later call, or a later process, goes on where this one was cut. What the bytes are worth is decided by the
caller, who compares the returned SHA-256 before anything gets its final name.
"""

from __future__ import annotations

import contextlib
import email.utils
import errno
import hashlib
import json
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urljoin, urlsplit, urlunsplit

from .errors import CacheError, DownloadError
from .version import __version__


@dataclass(frozen=True)
class Settings:
    """How patient a transfer is. Times in seconds, amounts in bytes."""

    attempts: int = 5  # failures in a row, without `stall_bytes` of progress between them, before the source is given up
    connect_attempts: int = 2  # the same where no connection came about: another source is tried sooner
    backoff: float = 1.0  # wait after the first failure; doubled with each further one
    longest_wait: float = 60.0  # no wait is longer; a server that asks for more by Retry-After is left alone
    connect_timeout: float = 10.0
    read_timeout: float = 30.0  # complete silence
    stall_seconds: float = 60.0  # fewer than `stall_bytes` in so many seconds is a stall
    stall_bytes: int = 64 << 10
    redirects: int = 10
    chunk: int = 1 << 20
    spare: int = 64 << 20  # left free on the disk
    largest: int = 8 << 30  # no checkpoint of this kind is near it; an endless answer stops here


SETTINGS = Settings()
ELSEWHERE = "name another folder (for the cache: cache_dir= or UPERNET_ZOO_CACHE)"
_STATUS = {401: "access denied", 403: "access denied", 404: "the file is not there", 410: "the file is gone"}
_RETRIED = {408, 425, 429, 500, 502, 503, 504}
_NO_SPACE = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_HEAD = 512  # bytes looked at to recognise what is no checkpoint
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_MARKUP = (b"<!doctype", b"<html", b"<head", b"<body", b"<?xml", b"<!--", b"<error")


class Unreachable(DownloadError):
    """No connection to the server: what else it may have need not be asked for."""


class _Transient(Exception):
    """A failure that may be over at the next attempt. `wait`: seconds that the server asked for."""

    def __init__(self, message: str, *, wait: float | None = None, unreachable: bool = False):
        super().__init__(message)
        self.wait, self.unreachable = wait, unreachable


@dataclass(frozen=True)
class Transfer:
    """What arrived. `resumed`: some of it came from an earlier connection, so it may be of two different files."""

    sha256: str
    size: int
    resumed: bool


def shown(url: str) -> str:
    """The URL without user name, password and query, which may hold secrets: for messages and records."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def not_a_checkpoint(head: bytes, content_type: str = "") -> str | None:
    """Name what is often saved as a checkpoint and is none, by its first bytes (and the Content-Type, where there is one)."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:64].lower()
    if text.startswith(_LFS_POINTER):
        return "a Git LFS pointer: the file's address in a Git repository, without its content"
    typed = content_type.startswith(("text/html", "application/xhtml")) and head[:1] not in (b"\x80", b"P")
    if text.startswith(_MARKUP) or typed:
        return "an HTML page: an error, a login or a notice in place of the file"
    return None


def size_text(size: float) -> str:
    """Bytes for people: "254 MB"."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def hash_into(hasher: Any, path: Path) -> int:
    """Feed a file to a hash in constant memory; returns its size."""
    size = 0
    buffer = memoryview(bytearray(1 << 20))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            hasher.update(buffer[:count])
            size += count
    return size


def state_path(partial: Path) -> Path:
    return partial.with_name(partial.name + ".state")


def _new_state_path(partial: Path) -> Path:
    return partial.with_name(partial.name + ".state.tmp")


def discard(partial: Path) -> None:
    """Remove a partial file and what is remembered with it."""
    for path in (partial, state_path(partial), _new_state_path(partial)):
        path.unlink(missing_ok=True)


def no_space(error: OSError, path: Path) -> CacheError | None:
    """The error to raise where a write failed for lack of space (disk, quota or limit on file size); None for other causes."""
    if error.errno not in _NO_SPACE:
        return None
    return CacheError(f"{path}: the disk or the quota is full ({error.strerror}). Free some space, or {ELSEWHERE}.")


def require_space(folder: Path, size: int, settings: Settings) -> None:
    """Refuse before the first byte what the disk cannot hold.

    Raises:
        CacheError: less than `size` and the spare space of `settings` is free in `folder`.
    """
    free = shutil.disk_usage(folder).free
    if free < size + settings.spare:
        raise CacheError(
            f"{folder}: {size_text(free)} are free, {size_text(size)} are to come and {size_text(settings.spare)} must stay. "
            f"Free some space, or {ELSEWHERE}."
        )


class _Partial:
    """The part of a file that is on disk, its digest so far, and what is remembered of the file behind the URL."""

    def __init__(self, path: Path):
        self.path = path
        self.state = self._read_state()
        self.hasher = hashlib.sha256()
        self.size = 0
        self.resumed = False
        total = self.state.get("size")
        with contextlib.suppress(FileNotFoundError):
            if self.state and (total is None or path.stat().st_size <= total):
                self.size = hash_into(self.hasher, path)
        self.file = open(path, "r+b" if self.size else "wb", buffering=0)
        self.file.seek(self.size)

    def _read_state(self) -> dict[str, Any]:
        types = {"url": str, "etag": (str, type(None)), "modified": (str, type(None)), "size": (int, type(None))}
        try:
            state = json.loads(state_path(self.path).read_text(encoding="utf-8"))
            return state if all(isinstance(state[key], kind) for key, kind in types.items()) else {}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return {}

    @property
    def complete(self) -> bool:
        return self.size > 0 and self.state.get("size") == self.size

    def restart(self, state: dict[str, Any]) -> None:
        """Start again with nothing. The bytes go first, so that no crash leaves old bytes beside a new state."""
        self.file.seek(0)
        self.file.truncate()
        self.hasher, self.size, self.state, self.resumed = hashlib.sha256(), 0, state, False
        _new_state_path(self.path).write_text(json.dumps(state), encoding="utf-8")
        os.replace(_new_state_path(self.path), state_path(self.path))

    def append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = self.file.write(view)
            self.hasher.update(view[:written])
            self.size += written
            view = view[written:]

    def finish(self) -> Transfer:
        os.fsync(self.file.fileno())
        return Transfer(self.hasher.hexdigest(), self.size, self.resumed)

    def close(self) -> None:
        self.file.close()
        if not self.size:
            discard(self.path)


def download(url: str, partial: Path, *, name: str | None = None, progress: bool = True, settings: Settings | None = None) -> Transfer:
    """Bring what a URL has into the file `partial`, going on with the bytes that it already holds.

    Connections that are refused, cut, silent or slow, and the statuses 408, 425, 429 and 5xx, are tried again after a growing
    wait, or the one that Retry-After asks for. Bytes on disk are kept by a Range request with If-Range; when the server ignores it,
    or the file changed, the transfer starts again. Redirects never lead from https to http. Proxies, certificates and `.netrc` are
    used as requests does.

    Args:
        url: http or https.
        partial: file for the bytes; its folder exists. The caller holds the lock, verifies and renames it.
        name: what the progress bar shows; by default the partial's name.
        progress: show a bar on stderr, where that is a terminal.
        settings: by default `SETTINGS`.

    Raises:
        DownloadError: this URL does not give the file; the message is the cause alone. The bytes so far stay for the next call.
        Unreachable: the same, where no connection came about.
        CacheError: the disk is full (the partial is removed then) or the partial cannot be written.
    """
    import requests
    from tqdm import tqdm

    settings = settings or SETTINGS
    try:
        part = _Partial(partial)
    except OSError as error:
        raise CacheError(f"{partial}: cannot be written ({error}); {ELSEWHERE}.") from None
    bar = tqdm(desc=name or partial.name, unit="B", unit_scale=True, unit_divisor=1000, disable=None if progress else True)
    with contextlib.closing(part), requests.Session() as session, bar:
        failures, furthest = 0, part.size
        while True:
            try:
                _attempt(session, url, part, bar, settings)
                return part.finish()
            except _Transient as error:
                if part.size >= furthest + settings.stall_bytes:
                    failures = 0
                failures, furthest = failures + 1, max(furthest, part.size)
                if failures >= (settings.connect_attempts if error.unreachable else settings.attempts):
                    kind = Unreachable if error.unreachable else DownloadError
                    raise kind(f"{error} (given up after {failures} attempt{'s' if failures > 1 else ''})") from None
                wait = min(settings.backoff * 2 ** (failures - 1), settings.longest_wait) if error.wait is None else error.wait
                bar.set_postfix_str(f"{error}; again in {wait:.0f} s")
                time.sleep(wait)
                bar.set_postfix_str("")
            except OSError as error:
                if isinstance(error, (DownloadError, CacheError)):
                    raise
                if full := no_space(error, partial):
                    part.close()
                    discard(partial)  # these bytes are what fills the disk
                    raise full from None
                raise CacheError(f"{partial}: cannot be written ({error}); {ELSEWHERE}.") from None


def _attempt(session: Any, url: str, part: _Partial, bar: Any, settings: Settings) -> None:
    """One request, from the bytes on disk to the end of the file."""
    if part.complete:
        part.resumed = True
        return
    headers = {"Accept-Encoding": "identity", "User-Agent": f"upernet_zoo/{__version__}"}
    if part.size:
        headers["Range"] = f"bytes={part.size}-"
        etag = part.state["etag"]
        validator = etag if etag and not etag.startswith("W/") else part.state["modified"]
        if validator and part.state["url"] == shown(url):
            headers["If-Range"] = validator
    with contextlib.closing(_open(session, url, headers, settings)) as response:
        status = response.status_code
        seen = {"url": shown(url), "etag": response.headers.get("ETag"), "modified": response.headers.get("Last-Modified")}
        first, total = _content_range(response.headers.get("Content-Range", ""))
        if status == 416 and part.size:
            if total == part.size:
                part.resumed = True
                return
            part.restart({})
            raise _Transient("the server has fewer bytes than are here already", wait=0)
        if status == 206 and not (part.size and first == part.size and total is not None and _same(part.state, seen, total)):
            part.restart({})
            raise _Transient("the server answered with another part than asked for, or of another file", wait=0)
        if status == 200:
            total = _content_length(response)
            head = _first_bytes(response, settings)
            content_type = response.headers.get("Content-Type", "").lower()
            if what := not_a_checkpoint(head, content_type):
                raise DownloadError(f"HTTP 200, but the answer is {what}")
            if not head:
                raise _Transient("the answer is empty")
            _require(part, total, total, settings)
            part.restart({**seen, "size": total})
        elif status == 206:
            head = b""
            part.resumed = True
            part.state["size"] = total
            _require(part, total, total - part.size, settings)
        else:
            _refuse(response, settings)
        bar.reset(total)
        bar.update(part.size)
        _receive(response, part, head, total, bar, settings)


def _receive(response: Any, part: _Partial, data: bytes, total: int | None, bar: Any, settings: Settings) -> None:
    """Append the body to the partial; `data` is the part of it that has been read already."""
    since, count = time.monotonic(), 0
    while True:
        if part.size + len(data) > (settings.largest if total is None else total):
            part.restart({})
            raise DownloadError(f"the answer goes on after its announced size, or after the {size_text(settings.largest)} that are taken")
        part.append(data)
        bar.update(len(data))
        count += len(data)
        if (now := time.monotonic()) - since >= settings.stall_seconds:
            if count < settings.stall_bytes:
                raise _Transient(f"stalled: {count} bytes in {now - since:.0f} s")
            since, count = now, 0
        data = _read(response, part.size, settings)
        if not data:
            break
    if total is not None and part.size != total:
        raise _Transient(f"the connection ended after {part.size} of {total} bytes")


def _require(part: _Partial, total: int | None, missing: int | None, settings: Settings) -> None:
    if total is not None and total > settings.largest:
        raise DownloadError(f"the server announces {size_text(total)}; no more than {size_text(settings.largest)} are taken")
    if missing is not None:
        freed = part.size if missing == total else 0  # a restart gives the old bytes back
        require_space(part.path.parent, missing - freed, settings)


def _open(session: Any, url: str, headers: dict[str, str], settings: Settings) -> Any:
    """Send the request and follow redirects; a streamed response of any status that is no redirect."""
    from requests import Request
    from requests.exceptions import RequestException
    from urllib3.exceptions import HTTPError

    timeout = (settings.connect_timeout, settings.read_timeout)
    for _ in range(settings.redirects + 1):
        try:
            # not session.get, which reads the whole body of a redirect into memory, followed or not
            request = session.prepare_request(Request("GET", url, headers=headers))
            options = session.merge_environment_settings(request.url, {}, True, None, None)
            response = session.get_adapter(request.url).send(request, timeout=timeout, **options)
            location = session.get_redirect_target(response)
        except (RequestException, HTTPError, ValueError) as error:
            _explain(error, url, settings)
        if location is None:
            return response
        response.close()
        try:
            target = urljoin(url, location)
            schemes = urlsplit(url).scheme.lower(), urlsplit(target).scheme.lower()
        except ValueError:
            raise DownloadError("redirected to what is no URL") from None
        if schemes[1] not in ("http", "https") or schemes == ("https", "http"):
            raise DownloadError(f"redirected from {schemes[0]} to {shown(target)}, which is not followed")
        url = target
    raise DownloadError(f"more than {settings.redirects} redirects")


def _explain(error: Exception, url: str, settings: Settings) -> NoReturn:
    """Raise what a failed request means, in words: requests' own text repeats the whole URL and hides the cause."""
    import socket
    import ssl

    from requests import exceptions

    cause, host = _root(error), urlsplit(url).hostname
    if isinstance(cause, ssl.SSLCertVerificationError):
        raise Unreachable(f"the TLS certificate of {host} is not valid ({cause.verify_message})") from None
    if isinstance(error, exceptions.ProxyError):
        raise _Transient(f"the proxy does not answer ({cause})", unreachable=True) from None
    if isinstance(error, exceptions.ConnectTimeout):
        raise _Transient(f"no connection to {host} within {settings.connect_timeout:g} s", unreachable=True) from None
    if isinstance(error, exceptions.ReadTimeout):
        raise _Transient(f"no answer from {host} within {settings.read_timeout:g} s") from None
    if isinstance(cause, socket.gaierror):
        raise _Transient(f"the name {host} cannot be resolved ({cause.strerror})", unreachable=True) from None
    if isinstance(cause, ConnectionRefusedError):
        raise _Transient(f"connection refused by {host}", unreachable=True) from None
    if isinstance(error, exceptions.ConnectionError):
        raise _Transient(f"no connection to {host} ({cause})") from None
    raise DownloadError(f"the request failed ({str(cause).replace(url, shown(url))})") from None


def _root(error: BaseException) -> BaseException:
    """The operating system's or ssl's own error inside those of requests and urllib3."""
    for _ in range(10):
        inner = [getattr(error, "reason", None), *reversed(error.args), error.__cause__]
        inner = [e for e in inner if isinstance(e, BaseException)]
        if not inner:
            break
        error = inner[0]
    return error


def _refuse(response: Any, settings: Settings) -> NoReturn:
    status = response.status_code
    message = f"HTTP {status} ({_STATUS.get(status) or response.reason or 'no reason given'})"
    if status not in _RETRIED:
        raise DownloadError(message)
    wait = _retry_after(response.headers.get("Retry-After"))
    if wait is not None and wait > settings.longest_wait:
        raise DownloadError(f"{message}; the server asks to come back in {wait:.0f} s")
    raise _Transient(message, wait=wait)


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait from a Retry-After header, which has seconds or a date (RFC 9110, 10.2.3); None if it has neither."""
    if value is None:
        return None
    if re.fullmatch(r"\s*\d{1,9}\s*", value):
        return float(value)
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
    # another home of the same file has an ETag and a date of its own
    return state["url"] != seen["url"] or all(None in (state[k], seen[k]) or state[k] == seen[k] for k in ("etag", "modified"))


def _read(response: Any, position: int, settings: Settings) -> bytes:
    """What has arrived of the body, at least one byte; nothing at its end. `position` is for the message."""
    import http.client

    from urllib3.exceptions import HTTPError, ReadTimeoutError

    try:
        # read1 and not read: the latter waits for a full chunk, and a trickle would keep it waiting for hours
        return response.raw.read1(settings.chunk, decode_content=False) or b""
    except (ReadTimeoutError, TimeoutError):
        raise _Transient(f"stalled: no byte for {settings.read_timeout:g} s after {position} bytes") from None
    except (HTTPError, http.client.HTTPException, OSError, ValueError):
        raise _Transient(f"the connection was cut after {position} bytes") from None


def _first_bytes(response: Any, settings: Settings) -> bytes:
    since, head = time.monotonic(), b""
    while len(head) < _HEAD and (data := _read(response, len(head), settings)):
        head += data
        if len(head) < _HEAD and time.monotonic() - since >= settings.stall_seconds:
            raise _Transient(f"stalled: {len(head)} bytes in {settings.stall_seconds:g} s")
    return head


def copy(source: Path, target: Path) -> tuple[str, int]:
    """Copy a file of this machine, synced to disk; full SHA-256 in hex and size of what was written."""
    hasher, size = hashlib.sha256(), 0
    with open(source, "rb") as reading, open(target, "wb") as writing:
        while data := reading.read(1 << 20):
            hasher.update(data)
            writing.write(data)
            size += len(data)
        writing.flush()
        os.fsync(writing.fileno())
    return hasher.hexdigest(), size
