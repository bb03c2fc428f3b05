"""Where the bytes of a checkpoint come from: sources in order, every byte verified, files that appear whole or not at all.

A file on this machine is used where it is: one named explicitly, the project's cache, torch's hub directory. Otherwise the user's
mirrors, the Hugging Face Hub, and the origin and the mirrors of the index, in the order of their hosts' standing, are asked, each only
if the one before has no answer, and the file goes into the cache under a lock that other processes respect. A domain that has lapsed
is asked only where all 64 digits of the digest are known: whoever owns it now could forge eight. Beside a file is its receipt
(`<file>.json`: SHA-256, size, mtime, source), which outlives it: the first verified download pins the full digest for every later copy
of that name.

Environment: `UPERNET_ZOO_CACHE` (folder), `UPERNET_ZOO_MIRRORS` (URLs and folders, separated by white space or ';'; a folder with
a blank in its name goes as a file URL), `UPERNET_ZOO_HUB_ORG`, `UPERNET_ZOO_OFFLINE` and `HF_HUB_OFFLINE` (1, on, yes or true).
"""

from __future__ import annotations

import enum
import functools
import logging
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import SplitResult, quote, unquote, urlsplit, urlunsplit
from urllib.request import url2pathname

from .. import files
from ..errors import ArgumentError, DownloadError, IntegrityError, OfflineError, shown
from ..files import Hashed
from ..index import ModelEntry, Standing, standing
from ..wording import option, worded
from . import download
from .cache import (
    Found,
    cache_errors,
    cached_path,
    expected_digest,
    how_to_accept,
    lock,
    make_folder,
    mismatch,
    offline_reason,
    read_receipt,
    settle,
    torch_hub_folder,
    trusted,
    verified,
    write_receipt,
)
from .partial import Partial, TakenError, partial_path, state_path

__all__ = [
    "HUB_ENVIRONMENT",
    "MIRRORS_ENVIRONMENT",
    "NO_LIVING_SOURCE",
    "Kind",
    "Source",
    "State",
    "fetch",
    "hub_request",
    "lapsed_note",
    "plan",
]

MIRRORS_ENVIRONMENT = "UPERNET_ZOO_MIRRORS"
HUB_ENVIRONMENT = "UPERNET_ZOO_HUB_ORG"
# ';' in a user name, password or query is part of a URL; it ends one before another URL, a path, a blank or nothing
_SEPARATED = re.compile(r"[a-zA-Z][\w+.-]+://(?:[^\s;]|;(?![\s;]|$|[/~.]|[a-zA-Z][\w+.-]*:[/\\]))+|[^\s;]+")
_LOGIN = re.compile(r":[^/\\]*@")  # of a URL whose scheme is missing or mistyped; such a folder goes as a file URL
_logger = logging.getLogger("upernet_zoo")


class Kind(enum.Enum):
    """What a source is. The values are the words for people."""

    FILE = "file"
    CACHE = "cache"
    TORCH_HUB = "torch hub cache"
    MIRROR = "mirror"  # of the call or of the environment
    HUB = "Hugging Face Hub"
    ORIGIN = "origin"
    INDEX_MIRROR = "mirror of the index"
    COPY = "copy"  # in another library's format; see `hub.copies`


class State(enum.Enum):
    """What is known of a source without asking the network. The values are the words for people."""

    VERIFIED = "verified"
    UNVERIFIED = "there, not verified yet"
    ABSENT = "not there"
    DAMAGED = "damaged"
    UNREADABLE = "cannot be read"
    NOT_ASKED = "not asked yet"
    OFFLINE = "offline"
    FORGEABLE = "not asked"  # a lapsed domain, and a digest that its new owner could forge


@dataclass(frozen=True)
class Source:
    """A place that may have the file.

    Attributes:
        kind: what it is.
        location: path, URL or "organization/repository"; of a copy with its prefix and revision.
        state: what is known without asking the network.
        detail: more about the state, for people.
        size: of the file there in bytes, None if it is not known.
    """

    kind: Kind
    location: str
    state: State = State.NOT_ASKED
    detail: str = ""
    size: int | None = None

    def __str__(self) -> str:
        return f"{self.kind.value} {self.shown}"

    def __repr__(self) -> str:
        return f"<Source {self}: {self.state_text}>"  # a location may have a password

    @property
    def shown(self) -> str:
        """The location as it may be shown: a URL without what may be secret, a path without what steers a terminal."""
        return shown(self.location, "url")

    @property
    def state_text(self) -> str:
        """The state and its detail, for people."""
        return f"{self.state.value} ({self.detail})" if self.detail else self.state.value

    @property
    def may_have_it(self) -> bool:
        """Whether the file is there, or is asked for there."""
        return self.state in (State.VERIFIED, State.UNVERIFIED, State.NOT_ASKED)

    @property
    def promising(self) -> bool:
        """Whether the file is there, or the place is thought to be alive."""
        if self.kind is Kind.COPY:  # another file, if of the same model
            return False
        return self.may_have_it and not (self.on_network and standing(self.location) is not Standing.LIVING)

    @property
    def on_network(self) -> bool:
        """Whether it is asked over the network."""
        return self.kind in (Kind.HUB, Kind.COPY) or _is_remote(self.location)


def _is_remote(location: str) -> bool:
    return location.lower().startswith(("http://", "https://"))


def _has_host(parts: SplitResult) -> bool:
    """Whether it is a http or https URL of some host; a port that is no number raises ValueError."""
    return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)


def _quoted(mirror: object) -> str:
    """A mirror in a message, without a password wherever one is in what may be a mistyped URL."""
    return shown(_LOGIN.sub("@", mirror) if isinstance(mirror, str) else mirror)


def _mirrors(mirrors: Sequence[str | os.PathLike]) -> list[str]:
    """The mirrors of the call, then of the environment; URLs and folders as text, each checked for its kind."""
    if isinstance(mirrors, (str, os.PathLike)):
        raise ArgumentError(f"mirrors={_quoted(mirrors)}: give a list of URLs and folders, such as mirrors=[{_quoted(str(mirrors))}].")
    named = [(os.fspath(m) if isinstance(m, os.PathLike) else m, option("mirrors")) for m in mirrors]
    named += [(m, MIRRORS_ENVIRONMENT) for m in _SEPARATED.findall(os.environ.get(MIRRORS_ENVIRONMENT, ""))]
    for mirror, origin in named:
        if not isinstance(mirror, str):
            raise ArgumentError(f"{origin} has {_quoted(mirror)}: a mirror is a URL or a path, as text.")
        scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]+):", mirror)  # a single letter is a Windows drive
        try:
            parts = urlsplit(mirror)
            is_place = _has_host(parts) or scheme[1].lower() == "file" if scheme else not _LOGIN.search(mirror)
            valid = mirror and "\0" not in mirror and is_place
        except ValueError:  # such as "http://["
            valid = False
        if not valid:
            raise ArgumentError(f"{origin} has {_quoted(mirror)}: a mirror is a http, https or file URL, or a folder.")
    return [mirror for mirror, _ in named]


def _in_mirror(mirror: str, entry: ModelEntry) -> list[str]:
    """Where a mirror may have the file: by its name, by the original path; or the mirror itself, if it is the file's own URL."""
    original = [p for p in re.split(r"[/\\\0]", unquote(urlsplit(entry.weights).path)) if p not in ("", ".", "..")]
    if not mirror.lower().startswith(("http://", "https://", "file:")):
        return [str(files.expanded(mirror).absolute().joinpath(*parts)) for parts in ([entry.file_name], original)]
    base = urlsplit(mirror)
    if unquote(base.path).rsplit("/", 1)[-1] == entry.file_name:
        return [mirror]
    folder = base.path.rstrip("/")
    return [urlunsplit(base._replace(path=f"{folder}/{quote('/'.join(parts))}")) for parts in ([entry.file_name], original)]


def _further(entry: ModelEntry, mirrors: Sequence[str | os.PathLike]) -> list[Source]:
    """The sources that a file is brought from, in order, none twice."""
    found = [Source(Kind.MIRROR, location) for mirror in _mirrors(mirrors) for location in _in_mirror(mirror, entry)]
    if org := os.environ.get(HUB_ENVIRONMENT) or entry.hub_org:
        found.append(Source(Kind.HUB, f"{org}/{entry.name}"))
    published = [Source(Kind.ORIGIN, entry.weights), *(Source(Kind.INDEX_MIRROR, url) for url in entry.mirrors)]
    found += sorted(published, key=lambda source: standing(source.location))
    first: dict[str, Source] = {}
    for source in found:
        first.setdefault(source.location, source)
    return list(first.values())


def _forgeable(source: Source, expected: str) -> bool:
    """Whether a source is not asked, because its domain has lapsed and the digest could be forged.

    A mirror that the user names is asked: naming it says that its owner is known.
    """
    lapsed = source.kind is not Kind.MIRROR and _is_remote(source.location) and standing(source.location) is Standing.LAPSED
    return lapsed and len(expected) < 64


def lapsed_note(source: Source, expected: str) -> str:
    """Why a source of a lapsed domain is not asked, and how to ask it anyway."""
    parts = urlsplit(source.location)
    mirrors = worded("mirrors=[...]", "--mirror")
    return (
        f"the domain of {parts.hostname} has lapsed, and whoever owns it now could forge the {len(expected)} digits that are known of the "
        f"digest. It is asked where all 64 are known, or where {parts.scheme}://{parts.hostname} is named as a mirror ({mirrors} "
        f"or {MIRRORS_ENVIRONMENT})"
    )


def _local_path(location: str) -> Path:
    """The path of a folder's file or a file URL."""
    if not location.lower().startswith("file:"):
        return Path(location)
    parts = urlsplit(location)
    if parts.netloc not in ("", "localhost"):
        raise DownloadError("a file URL with a host is not read; write file:///path")
    path = url2pathname(parts.path)
    if "\0" in path:
        raise DownloadError("no path has a zero byte")
    return Path(path)


def _local(source: Source, path: Path, expected: str) -> Source:
    """A source on this machine, with what its receipt says."""
    try:
        size = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return replace(source, state=State.ABSENT)
    except OSError as error:
        return replace(source, state=State.UNREADABLE, detail=error.strerror or str(error))
    receipt, words = read_receipt(path), files.size_text(size)
    if receipt is None or not receipt.sha256.startswith(expected):
        return replace(source, state=State.UNVERIFIED, detail=words, size=size)
    if receipt.size != size:
        return replace(source, state=State.DAMAGED, detail=f"{size} bytes instead of {receipt.size}", size=size)
    if trusted(path):
        return replace(source, state=State.VERIFIED, detail=words, size=size)
    return replace(source, state=State.DAMAGED, detail="changed since it was verified", size=size)


def _remote(source: Source, expected: str, reason: str | None) -> Source:
    """A source in the network, with whether it would be asked. `reason`: why the network is not used, None if it is."""
    lapsed = source.kind is not Kind.HUB and standing(source.location) is Standing.LAPSED
    detail = "a lapsed domain" if lapsed else ""
    if _forgeable(source, expected):
        return replace(source, state=State.FORGEABLE, detail=detail)
    return replace(source, state=State.OFFLINE, detail=reason) if reason else replace(source, detail=detail)


def plan(
    entry: ModelEntry,
    *,
    checkpoint: str | os.PathLike | None = None,
    sha256: str | None = None,
    mirrors: Sequence[str | os.PathLike] = (),
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
) -> list[Source]:
    """What `fetch` would try, in order, without asking the network, and then the copies of the file. Arguments as there.

    Raises:
        ArgumentError: `sha256` or a mirror that is none.
    """
    expected = expected_digest(entry, sha256, cache_dir)
    if checkpoint is not None:
        path = files.expanded(checkpoint)
        return [_local(Source(Kind.FILE, str(path)), path, expected)]
    kept = {Kind.CACHE: cached_path(entry, cache_dir), Kind.TORCH_HUB: torch_hub_folder() / entry.file_name}
    found = [_local(Source(kind, str(path)), path, expected) for kind, path in kept.items()]
    reason = offline_reason(local_files_only)
    for source in _further(entry, mirrors):
        if source.on_network:
            found.append(_remote(source, expected, reason))
            continue
        try:
            found.append(_local(source, _local_path(source.location), expected))
        except DownloadError as error:
            found.append(replace(source, state=State.UNREADABLE, detail=str(error)))
    for copy in entry.copies:
        by = "verified against the index's digest" if copy.sha256 else "verified against its host's digest, not the index's"
        state = State.OFFLINE if reason else State.NOT_ASKED
        found.append(Source(Kind.COPY, copy.reference, state, f"{reason}; {by}" if reason else by))
    return found


# fetch


def fetch(
    entry: ModelEntry,
    *,
    checkpoint: str | os.PathLike | None = None,
    sha256: str | None = None,
    mirrors: Sequence[str | os.PathLike] = (),
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
    progress: bool = True,
) -> Found:
    """Find or bring the checkpoint file of a model, verified.

    Args:
        entry: the model.
        checkpoint: a file to take in place of all sources.
        sha256: digest that counts in place of the index's: all 64 hex digits, or the first 8 or more.
        mirrors: http, https or file URLs and folders, asked before those of `UPERNET_ZOO_MIRRORS`; each has the file under its
            plain name or under the path of the original URL.
        cache_dir: in place of `cache_root()`.
        local_files_only: open no socket.
        progress: show a bar on stderr, where that is a terminal.

    Raises:
        ArgumentError: `sha256` or a mirror that is none.
        MissingFileError: `checkpoint` does not exist.
        IntegrityError: `checkpoint` has another digest; or no source had the file, and at least one had a wrong one.
        OfflineError: not on this machine, and the network may not be used.
        DownloadError: no source had the file. The message has what each of them said.
        CacheError: the cache cannot be written, or the disk is full.
    """
    expected = expected_digest(entry, sha256, cache_dir)
    if checkpoint is not None:
        path = files.expanded(checkpoint)
        hashed = verified(path, expected, what=entry.name)
        return Found(path, hashed.sha256, hashed.size, Kind.FILE.value)
    sources = _further(entry, mirrors)
    target = cached_path(entry, cache_dir)
    failures = _Failures(entry, target, any(source.promising for source in sources))
    if found := _from_cache(target, expected, failures) or _from_torch_hub(entry, expected, failures):
        return found
    reason = offline_reason(local_files_only)
    if reason and all(source.on_network for source in sources):
        raise failures.error(reason)
    make_folder(target.parent)
    with lock(target, cache_dir=cache_dir):
        # another process may have brought it while this one waited
        expected = expected_digest(entry, sha256, cache_dir)
        if found := _from_cache(target, expected, None):
            return found
        for source in sources:
            if _forgeable(source, expected):
                failures.add(source, f"{State.FORGEABLE.value}: {lapsed_note(source, expected)}")
                continue
            if reason and source.on_network:
                continue
            try:
                return _bring(source, entry, target, expected, progress)
            except (DownloadError, IntegrityError) as error:
                failures.add(source, error)
    raise failures.error(reason)


NO_LIVING_SOURCE = "no living source of this file is known"


class _Failures:
    """What each source said, until one has the file; then the one error with all of it."""

    def __init__(self, entry: ModelEntry, target: Path, any_promising: bool) -> None:
        self.entry, self.target = entry, target
        self.any_promising = any_promising
        self.lines: list[str] = []
        self.wrong_digest = False

    def add(self, source: Source | str, error: Exception | str) -> None:
        self.wrong_digest |= isinstance(error, IntegrityError)
        self.lines.append(f"  - {source}: {error}")

    def error(self, offline_reason: str | None) -> Exception:
        name, file = self.entry.name, self.entry.file_name
        lines = "\n".join(self.lines)
        as_file = worded("checkpoint=...", "--checkpoint FILE")
        by_hand = f"copy the file into {self.target.parent} or {torch_hub_folder()}, or give its path ({as_file})"
        elsewhere = f"name a mirror or a folder that has it ({worded('mirrors=[...]', '--mirror URL')} or {MIRRORS_ENVIRONMENT})"
        if offline_reason:
            return OfflineError(
                f"{name}: {file} is not on this machine, and the network is not used ({offline_reason}):\n{lines}\n"
                f"Next: fetch it once with the network allowed, or {elsewhere}, or {by_hand}."
            )
        if self.wrong_digest:
            return IntegrityError(f"{name}: no source has the right {file}:\n{lines}\n{how_to_accept()} Or {elsewhere}, or {by_hand}.")
        later = "try again later, or" if self.any_promising else f"{NO_LIVING_SOURCE};"
        return DownloadError(f"{name}: no source has {file}:\n{lines}\nNext: {later} {elsewhere}, or {by_hand}.")


def _from_cache(target: Path, expected: str, failures: _Failures | None) -> Found | None:
    """The project's own copy, if it is there and right; a wrong one stays until a verified one takes its place."""
    source = Source(Kind.CACHE, str(target))
    try:
        receipt = trusted(target)
        if receipt is not None and receipt.sha256.startswith(expected):
            return Found(target, receipt.sha256, receipt.size, source.kind.value)
        hashed = files.hash_file(target)
        if hashed.sha256.startswith(expected):
            write_receipt(target, hashed, "found in the cache")
            return Found(target, hashed.sha256, hashed.size, source.kind.value)
        problem: Exception | str = IntegrityError(mismatch(target, expected, hashed))
        if failures is not None:
            warnings.warn(f"{target}: {problem}. It is not used, and kept aside when a right one has come.", stacklevel=3)
    except FileNotFoundError:
        problem = "not there"
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error})"
    if failures is not None:
        failures.add(source, problem)
    return None


def _from_torch_hub(entry: ModelEntry, expected: str, failures: _Failures) -> Found | None:
    """Another tool's copy, used where it is. A wrong one is that tool's business."""
    path = torch_hub_folder() / entry.file_name
    try:
        hashed = files.hash_file(path)
        if hashed.sha256.startswith(expected):
            return Found(path, hashed.sha256, hashed.size, Kind.TORCH_HUB.value)
        problem: Exception | str = IntegrityError(mismatch(path, expected, hashed))
        warnings.warn(f"{path}: {problem}. It is left as it is, and another source is asked.", stacklevel=3)
    except (FileNotFoundError, NotADirectoryError):
        problem = "not there"
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error})"
    failures.add(Source(Kind.TORCH_HUB, str(path)), problem)
    return None


def _bring(source: Source, entry: ModelEntry, target: Path, expected: str, progress: bool) -> Found:
    """Bring the file from one source into the cache. The lock is held, the folder exists.

    Raises:
        DownloadError: the source does not have it; the message is the cause alone.
        IntegrityError: it has another one.
        CacheError: it cannot be written.
    """
    _logger.info("%s: asking %s", entry.name, source)
    files.sweep(target)
    if source.kind is Kind.HUB:
        return _from_hub(source, entry, target, expected, progress)
    if _is_remote(source.location):
        return _from_url(source, target, expected, progress)
    return _from_folder(_local_path(source.location), target, expected)


def _from_url(source: Source, target: Path, expected: str, progress: bool) -> Found:
    follow_lapsed = source.kind is Kind.MIRROR or len(expected) == 64
    return _transfer(source.location, {}, follow_lapsed, target, expected, progress, source.shown)


def _transfer(url: str, headers: Mapping[str, str], follow_lapsed: bool, target: Path, expected: str, progress: bool, origin: str) -> Found:
    bring = functools.partial(download.bring, url, name=target.name, progress=progress, headers=headers, follow_lapsed=follow_lapsed)
    with _partial(target) as part:
        got = bring(part)
        if got.resumed and not got.sha256.startswith(expected):
            # what was on disk may be damaged or of another file of that name: once more from the first byte
            part.restart()
            got = bring(part)
        part.release()
        try:
            return settle(part.path, target, expected, got.hashed, origin)
        finally:
            state_path(part.path).unlink(missing_ok=True)


def _partial(target: Path) -> Partial:
    """The partial of a file, with what an earlier call left; one of this process's own where another uses that."""
    try:
        return Partial(partial_path(target))
    except TakenError as error:
        _logger.info("%s; starting from the first byte.", error)
        return Partial(files.temporary_path(target))


def _from_folder(path: Path, target: Path, expected: str) -> Found:
    try:
        hashed = files.hash_file(path)
    except (FileNotFoundError, NotADirectoryError):
        raise DownloadError("not there") from None
    except OSError as error:
        raise DownloadError(f"cannot be read ({error.strerror or error})") from None
    if not hashed.sha256.startswith(expected):
        raise IntegrityError(mismatch(path, expected, hashed))
    incoming = files.temporary_path(target)
    try:
        with cache_errors(target.parent):
            download.require_space(target.parent, hashed.size, download.SETTINGS)
            sha256, size = files.copy(path, incoming)
            mtime_ns = incoming.stat().st_mtime_ns
        return settle(incoming, target, expected, Hashed(sha256, size, mtime_ns), str(path))
    finally:
        incoming.unlink(missing_ok=True)


def _from_hub(source: Source, entry: ModelEntry, target: Path, expected: str, progress: bool) -> Found:
    """The original file from a repository on the Hugging Face Hub.

    The transfer is this library's, since the client's has no end where a server has none.
    """
    url, headers = hub_request(source, entry)
    return _transfer(url, headers, True, target, expected, progress, f"hf-hub:{source.location}")


def hub_request(source: Source, entry: ModelEntry) -> tuple[str, dict[str, str]]:
    """URL and private headers of a file on the Hugging Face Hub, as its client has them; of a copy that of its config.

    Raises:
        DownloadError: a name that no repository can have, or a token that cannot be read.
    """
    import huggingface_hub
    from huggingface_hub.utils import build_hf_headers

    repository, _, revision = source.location.removeprefix("hf-hub:").partition("@")
    name = "config.json" if source.kind is Kind.COPY else entry.file_name
    try:
        url = huggingface_hub.hf_hub_url(repository, name, revision=revision or None)
        token = build_hf_headers(library_name="upernet_zoo").get("authorization")
    except Exception as error:  # the client's own errors
        raise DownloadError(f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no reason given')}") from None
    return url, {"Authorization": token} if token else {}
