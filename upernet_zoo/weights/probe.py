"""Which sources of a model's checkpoint answer now, and with a file of the right size; no file is fetched.

A server is asked by HEAD, and for one byte (Range) where it does not say the size that way. All sources of all models are asked side by
side, each within its time.
"""

from __future__ import annotations

import contextlib
import enum
import os
import re
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from ..errors import DownloadError, shown
from ..index import ModelEntry
from ..version import __version__
from . import cache, connect, download, sources
from .request import Settings, Target, TransientError, UnreachableError, open_url
from .sources import Kind, Source, State, hub_request
from .watch import Watch

__all__ = ["Answer", "Probe", "probe"]

_SIDE_BY_SIDE = 16
_PATIENCE = 10.0  # seconds for an answer, once there is a connection
_HEADERS = {"Accept-Encoding": "identity", "User-Agent": f"upernet_zoo/{__version__}"}


class Answer(enum.Enum):
    """What a source has to say. The values are the words for people."""

    THERE = "yes"
    ABSENT = "no"
    WRONG_SIZE = "wrong size"
    DAMAGED = "damaged"
    NO_CHECKPOINT = "no checkpoint"
    REFUSED = "refused"
    SLOW = "slow"
    DEAD = "dead"
    NOT_ASKED = "not asked"


@dataclass(frozen=True)
class Probe:
    """What came of asking one source.

    Attributes:
        source: that was asked.
        answer: what it said.
        size: of its file in bytes, None if it did not say.
        seconds: until it answered, or was given up; None for a place on this machine or one that was not asked.
        detail: more about the answer, for people.
    """

    source: Source
    answer: Answer
    size: int | None = None
    seconds: float | None = None
    detail: str = ""

    @property
    def text(self) -> str:
        """The answer and its detail, for people."""
        return f"{self.answer.value} ({self.detail})" if self.detail else self.answer.value


_LOCAL = {
    State.VERIFIED: Answer.THERE,
    State.UNVERIFIED: Answer.THERE,
    State.ABSENT: Answer.ABSENT,
    State.DAMAGED: Answer.DAMAGED,
    State.UNREADABLE: Answer.REFUSED,
    State.OFFLINE: Answer.NOT_ASKED,
    State.FORGEABLE: Answer.NOT_ASKED,
}


def probe(
    entries: Iterable[ModelEntry],
    *,
    mirrors: Sequence[str | os.PathLike] = (),
    cache_dir: str | os.PathLike | None = None,
    settings: Settings | None = None,
) -> dict[str, list[Probe]]:
    """Ask every source of each model for presence and size.

    Args:
        entries: the models.
        mirrors, cache_dir: as for `sources.fetch`.
        settings: how patient; by default `download.SETTINGS`, and no more than ten seconds for an answer.

    Returns:
        For each model's name, in order, what came of its sources, in the order in which `sources.fetch` would ask them. A size is
        compared with that of the index or of the receipt in the cache, where one of them knows it.

    Raises:
        ArgumentError: a mirror that is none.
    """
    settings = settings or download.SETTINGS
    settings = replace(settings, read_timeout=min(settings.read_timeout, _PATIENCE))
    entries = list(entries)
    plans = {entry.name: sources.plan(entry, mirrors=mirrors, cache_dir=cache_dir) for entry in entries}
    with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
        asked = {
            entry.name: [
                pool.submit(_probe, entry, source, _known_size(entry, cache_dir), settings, cache_dir) for source in plans[entry.name]
            ]
            for entry in entries
        }
        return {name: [future.result() for future in futures] for name, futures in asked.items()}


def _known_size(entry: ModelEntry, cache_dir: str | os.PathLike | None) -> int | None:
    receipt = cache.read_receipt(cache.cached_path(entry, cache_dir))
    if entry.size is None and receipt is not None and receipt.sha256.startswith(entry.sha256):
        return receipt.size
    return entry.size


def _probe(entry: ModelEntry, source: Source, expected: int | None, settings: Settings, cache_dir: str | os.PathLike | None) -> Probe:
    if source.state is State.NOT_ASKED:
        forgeable = source.kind not in (Kind.MIRROR, Kind.HUB) and len(cache.expected_digest(entry, cache_dir=cache_dir)) < 64
        started = time.monotonic()
        found = _ask(entry, source, not forgeable, settings)
        known = ", ".join(filter(None, (source.detail, found.detail)))  # such as that the domain has lapsed
        size = None if source.kind is Kind.COPY else found.size  # asked was its config
        found = replace(found, size=size, detail=known, seconds=time.monotonic() - started)
    else:
        detail = source.detail if source.state is not State.VERIFIED else ""
        found = Probe(source, _LOCAL[source.state], source.size, detail=detail)
    if found.answer is Answer.THERE and None not in (expected, found.size) and found.size != expected:
        return replace(found, answer=Answer.WRONG_SIZE, detail=f"{expected} bytes are right")
    return found


def _ask(entry: ModelEntry, source: Source, follow_lapsed: bool, settings: Settings) -> Probe:
    from .session import session

    try:
        url, private = hub_request(source, entry) if source.kind in (Kind.HUB, Kind.COPY) else (source.location, {})
        target = Target(url=url, headers=private, follow_lapsed=follow_lapsed, settings=settings)
        for method, headers in (("HEAD", {}), ("GET", {"Range": "bytes=0-0"})):
            with (
                Watch(settings.read_timeout) as watch,
                session(watch.over) as opened,
                contextlib.closing(open_url(opened, watch, target, method, {**private, **_HEADERS, **headers})) as response,
            ):
                found = _read_answer(source, response)
            if found.answer is Answer.ABSENT or (found.answer is Answer.THERE and found.size is not None):
                break
        return found
    except UnreachableError as error:
        return Probe(source, Answer.DEAD, detail=str(error))
    except TransientError as error:
        if error.peer is not None:
            connect.give_up(error.peer)
            return Probe(source, Answer.DEAD, detail=str(error))
        return Probe(source, Answer.SLOW if error.slow else Answer.REFUSED, detail=str(error))
    except DownloadError as error:
        return Probe(source, Answer.REFUSED, detail=str(error))


def _read_answer(source: Source, response: Any) -> Probe:
    status = response.status_code
    if status in (404, 410):
        return Probe(source, Answer.ABSENT, detail=f"HTTP {status}")
    if status not in (200, 206):
        return Probe(source, Answer.REFUSED, detail=f"HTTP {status} ({shown(response.reason or 'no reason given', 'text')})")
    if response.headers.get("Content-Type", "").lower().startswith(("text/html", "application/xhtml")):
        return Probe(source, Answer.NO_CHECKPOINT, detail="an HTML page")
    header = "Content-Length" if status == 200 else "Content-Range"
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        return Probe(source, Answer.THERE, detail="compressed on its way")
    size = re.fullmatch(r"(?:bytes \d+-\d+/)?(\d{1,18})", response.headers.get(header, "").strip())
    return Probe(source, Answer.THERE, int(size[1]) if size else None)
