"""Where the bytes of a checkpoint come from: sources in order, every byte verified, files that appear whole or not at all.

A file on this machine is used where it is: one named explicitly, the project's cache, torch's hub directory. Otherwise mirrors,
the Hugging Face Hub, the origin and its further homes are asked in that order, each only if the one before has no answer, and the
file goes into the cache under a lock that other processes respect. Beside it stands its receipt (`<file>.json`: SHA-256, size,
mtime, source), which outlives it: the first verified download pins the full digest for every later copy of that name.

Environment: `UPERNET_ZOO_CACHE` (folder), `UPERNET_ZOO_MIRRORS` (URLs and folders, separated by white space or ';'; a folder with
a blank in its name goes as a file URL), `UPERNET_ZOO_HUB_ORG`, `UPERNET_ZOO_OFFLINE` and `HF_HUB_OFFLINE` (1, on, yes or true).
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit
from urllib.request import url2pathname

from . import transfer
from .errors import ArgumentError, CacheError, DownloadError, IntegrityError, MissingFileError, OfflineError, UPerNetZooError
from .index import ModelEntry

CACHE_ENVIRONMENT = "UPERNET_ZOO_CACHE"
MIRRORS_ENVIRONMENT = "UPERNET_ZOO_MIRRORS"
HUB_ENVIRONMENT = "UPERNET_ZOO_HUB_ORG"
OFFLINE_ENVIRONMENT = ("UPERNET_ZOO_OFFLINE", "HF_HUB_OFFLINE")
_TRUE = {"1", "ON", "YES", "TRUE"}  # as in huggingface_hub.constants
_STALE = 3600.0  # seconds after which a temporary file belongs to nobody
_LOCK_NOTICE = 3.0  # seconds of waiting for another process before that is said

_logger = logging.getLogger("upernet_zoo")


@dataclass(frozen=True)
class Found:
    """A verified file.

    Attributes:
        path: where it is.
        sha256: all 64 hex digits of its SHA-256.
        size: in bytes.
        source: where it came from, for people: "file", "cache", "torch hub cache" or a URL.
    """

    path: Path
    sha256: str
    size: int
    source: str


@dataclass(frozen=True)
class Receipt:
    """What was known of a file when it was last read whole: full SHA-256, size in bytes, mtime in ns, and where it came from."""

    sha256: str
    size: int
    mtime_ns: int
    source: str


@dataclass(frozen=True)
class Source:
    """A place that may have the file.

    Attributes:
        kind: "file", "cache", "torch hub cache", "mirror", "Hugging Face Hub", "origin" or "further home".
        location: path, URL or "organisation/repository".
        state: what is known without asking: "verified", "there, not verified yet", "not there" or "damaged: ..." for a place on
            this machine; "not asked yet" or "offline" for one in the network.
    """

    kind: str
    location: str
    state: str = "not asked yet"

    def __str__(self) -> str:
        return f"{self.kind} {transfer.shown(self.location) if _is_remote(self.location) else self.location}"


# folders and switches


def cache_root(cache_dir: str | os.PathLike | None = None) -> Path:
    """The folder that holds all that the library keeps: `cache_dir`, `$UPERNET_ZOO_CACHE`, `$XDG_CACHE_HOME/upernet_zoo` or
    `~/.cache/upernet_zoo`. It need not exist."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser().absolute()
    if named := os.environ.get(CACHE_ENVIRONMENT):
        return Path(named).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "upernet_zoo"


def torch_hub_folder() -> Path:
    """Where torch.hub and tools built on it leave checkpoints: the rule of `torch.hub.get_dir`, without importing torch."""
    home = os.environ.get("TORCH_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "torch")
    return Path(home).expanduser().absolute() / "hub" / "checkpoints"


def _offline_reason(local_files_only: bool) -> str | None:
    if local_files_only:
        return "local_files_only=True"
    return next((f"{name}={os.environ[name]}" for name in OFFLINE_ENVIRONMENT if os.environ.get(name, "").upper() in _TRUE), None)


def offline(local_files_only: bool = False) -> bool:
    """Whether the network is left alone: by argument, `UPERNET_ZOO_OFFLINE` or `HF_HUB_OFFLINE` (1, on, yes, true; any case)."""
    return _offline_reason(local_files_only) is not None


# files that appear whole or not at all


@contextlib.contextmanager
def _cache_errors(folder: Path) -> Iterator[None]:
    """Turn what the operating system says about a folder into a CacheError that names the way out."""
    try:
        yield
    except UPerNetZooError:
        raise
    except OSError as error:
        if full := transfer.no_space(error, folder):
            raise full from None
        raise CacheError(f"{folder}: cannot be written ({error.strerror or error}); {transfer.ELSEWHERE}.") from None


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where the system can (not on Windows)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _sweep(path: Path) -> None:
    """Remove what killed processes left of earlier attempts at a file. Age tells, for the process may be of another node."""
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - temporary.stat().st_mtime > _STALE:
                temporary.unlink()


def write_atomically(path: str | os.PathLike, writer: Callable[[Path], None]) -> None:
    """Have `writer` write a file under a temporary name in the same folder, then give it its name: whole, or not at all.

    Args:
        path: the final name. Its folder is made if it is missing.
        writer: called with the temporary path, which does not exist yet.

    Raises:
        CacheError: the folder cannot be written, or the disk is full. Errors of `writer` other than OSError pass through.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with _cache_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            _sweep(path)
            writer(temporary)
            with open(temporary, "r+b") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def lock(path: str | os.PathLike, *, cache_dir: str | os.PathLike | None = None) -> Iterator[None]:
    """Hold the lock of a file, across processes and, where the file system has flock, across nodes.

    Args:
        path: the file that is about to be written; the lock goes by its plain name, in `<cache root>/locks`.

    Raises:
        CacheError: the lock cannot be made, because the cache cannot be written.
    """
    import filelock

    path = Path(path)
    folder = cache_root(cache_dir) / "locks"
    with _cache_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        held = filelock.FileLock(str(folder / f"{path.name}.lock"))
        try:
            held.acquire(timeout=_LOCK_NOTICE)
        except filelock.Timeout:
            _logger.warning("Waiting for another process that has %s in work (lock %s).", path.name, held.lock_file)
            held.acquire()
    try:
        yield
    finally:
        held.release()


# digests and receipts


def check_digest(sha256: str) -> str:
    """A SHA-256 as given by the user: 8 to 64 hex digits, returned in lower case.

    Raises:
        ArgumentError: something else.
    """
    if not isinstance(sha256, str) or not re.fullmatch("[0-9a-fA-F]{8,64}", sha256):
        raise ArgumentError(f"sha256={sha256!r} is no SHA-256: give all 64 hex digits, or the first 8 or more, as text.")
    return sha256.lower()


def file_digest(path: Path) -> tuple[str, int]:
    """Full SHA-256 in hex and size of a file, read once in constant memory."""
    hasher = hashlib.sha256()
    size = transfer.hash_into(hasher, path)
    return hasher.hexdigest(), size


def verify_file(path: str | os.PathLike, digest: str, *, what: str) -> str:
    """Compare a file with a digest.

    Args:
        path: the file.
        digest: the expected SHA-256, its first 8 hex digits or more.
        what: what the message calls the file, such as the model's name.

    Returns:
        All 64 hex digits of the file's SHA-256.

    Raises:
        IntegrityError: another digest. The file stays as it is.
        MissingFileError: no such file.
    """
    path, digest = Path(path), check_digest(digest)
    try:
        found, size = file_digest(path)
    except FileNotFoundError:
        raise MissingFileError(f"{what} ({path}): no such file.") from None
    except OSError as error:
        raise MissingFileError(f"{what} ({path}): cannot be read ({error.strerror or error}).") from None
    if not found.startswith(digest):
        raise IntegrityError(f"{what} ({path}): {_mismatch(path, digest, found, size)}. {_ACCEPT}")
    return found


_ACCEPT = (
    "Such a file is damaged, or was replaced by another of the same name. If somebody you trust gives you another full digest than "
    "the one expected here, pass it as sha256='<64 hex digits>', or put it into an index of your own (UPERNET_ZOO_INDEX)."
)


def _mismatch(path: Path, expected: str, found: str, size: int) -> str:
    with open(path, "rb") as file:
        what = transfer.not_a_checkpoint(file.read(512))
    nature = f", and is {what}" if what else ""
    return f"its SHA-256 is not the expected one: expected {expected}, found {found} ({transfer.size_text(size)}{nature})"


def receipt_path(path: Path) -> Path:
    """The receipt that stands beside a file."""
    return path.with_name(path.name + ".json")


def read_receipt(path: Path) -> Receipt | None:
    """The receipt of a file, which may itself be gone by now; None if there is none or it cannot be read."""
    try:
        data = json.loads(receipt_path(path).read_text(encoding="utf-8"))
        receipt = Receipt(**data)
        valid = re.fullmatch("[0-9a-f]{64}", receipt.sha256) and isinstance(receipt.size, int) and isinstance(receipt.source, str)
        return receipt if valid and isinstance(receipt.mtime_ns, int) else None
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def write_receipt(path: Path, sha256: str, source: str) -> Receipt:
    """Record a file that has just been verified; in a cache that cannot be written the record is left out.

    Args:
        path: the file, in its place.
        sha256: all 64 hex digits, as computed from its bytes.
        source: where it came from.
    """
    stat = path.stat()
    receipt = Receipt(sha256, stat.st_size, stat.st_mtime_ns, source)
    text = json.dumps(asdict(receipt), indent=1) + "\n"
    try:
        write_atomically(receipt_path(path), lambda temporary: temporary.write_text(text, encoding="utf-8") and None)
    except CacheError as error:
        _logger.info("No receipt written: %s", error)
    return receipt


def trusted(path: Path) -> Receipt | None:
    """The receipt of a file, if the file is still the one that it describes.

    Size and mtime are compared; where only the mtime differs, the digest is (and a receipt with the new mtime written).
    """
    receipt = read_receipt(path)
    try:
        stat = path.stat()
        if receipt is None or stat.st_size != receipt.size:
            return None
        if stat.st_mtime_ns == receipt.mtime_ns:
            return receipt
        return write_receipt(path, receipt.sha256, receipt.source) if file_digest(path)[0] == receipt.sha256 else None
    except OSError:
        return None


def expected_digest(entry: ModelEntry, sha256: str | None = None, cache_dir: str | os.PathLike | None = None) -> str:
    """What a file of that model must match: `sha256`, else the index's digits; in full where a pin in the cache agrees."""
    wanted = entry.sha256 if sha256 is None else check_digest(sha256)
    pin = read_receipt(cached_path(entry, cache_dir))
    return pin.sha256 if pin is not None and pin.sha256.startswith(wanted) else wanted


# sources


def cached_path(entry: ModelEntry, cache_dir: str | os.PathLike | None = None) -> Path:
    """Where the cache has, or would have, a model's checkpoint file."""
    return cache_root(cache_dir) / "checkpoints" / entry.file_name


def _is_remote(location: str) -> bool:
    return location.lower().startswith(("http://", "https://"))


def _mirrors(mirrors: Sequence[str | os.PathLike]) -> list[str]:
    """The mirrors of the call, then of the environment; URLs and folders as text, each checked for its kind."""
    if isinstance(mirrors, (str, os.PathLike)):
        raise ArgumentError(f"mirrors={mirrors!r}: give a list of URLs and folders, such as mirrors=[{str(mirrors)!r}].")
    named = [(os.fspath(m) if isinstance(m, os.PathLike) else m, "mirrors=") for m in mirrors]
    named += [(m, MIRRORS_ENVIRONMENT) for m in re.split(r"[\s;]+", os.environ.get(MIRRORS_ENVIRONMENT, "")) if m]
    for mirror, origin in named:
        if not isinstance(mirror, str):
            raise ArgumentError(f"{origin} has {mirror!r}: a mirror is a URL or a path, as text.")
        scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]+):", mirror)  # a single letter is a Windows drive
        try:
            urlsplit(mirror)
            valid = mirror and "\0" not in mirror and (not scheme or scheme[1].lower() in ("http", "https", "file"))
        except ValueError:  # such as "http://["
            valid = False
        if not valid:
            raise ArgumentError(f"{origin} has {mirror!r}: a mirror is a http, https or file URL, or a folder.")
    return [mirror for mirror, _ in named]


def _in_mirror(mirror: str, entry: ModelEntry) -> list[str]:
    """Where a mirror may have the file: by its name, by the original path; or the mirror itself, if it is the file's own URL."""
    original = [p for p in re.split(r"[/\\\0]", unquote(urlsplit(entry.weights).path)) if p not in ("", ".", "..")]
    if not mirror.lower().startswith(("http://", "https://", "file:")):
        return [str(Path(mirror).expanduser().absolute().joinpath(*parts)) for parts in ([entry.file_name], original)]
    base = urlsplit(mirror)
    if unquote(base.path).rsplit("/", 1)[-1] == entry.file_name:
        return [mirror]
    folder = base.path.rstrip("/")
    return [urlunsplit(base._replace(path=f"{folder}/{quote('/'.join(parts))}")) for parts in ([entry.file_name], original)]


def _further(entry: ModelEntry, mirrors: Sequence[str | os.PathLike]) -> list[Source]:
    """The sources that a file is brought from, in order, none twice."""
    found = [Source("mirror", location) for mirror in _mirrors(mirrors) for location in _in_mirror(mirror, entry)]
    if org := os.environ.get(HUB_ENVIRONMENT) or entry.hub_org:
        found.append(Source("Hugging Face Hub", f"{org}/{entry.name}"))
    found += [Source("origin", entry.weights), *(Source("further home", url) for url in entry.mirrors)]
    first: dict[str, Source] = {}
    for source in found:
        first.setdefault(source.location, source)
    return list(first.values())


def _on_network(source: Source) -> bool:
    return source.kind == "Hugging Face Hub" or _is_remote(source.location)


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


def _state(path: Path, expected: str) -> str:
    try:
        size = path.stat().st_size
    except OSError as error:
        return "not there" if isinstance(error, (FileNotFoundError, NotADirectoryError)) else f"cannot be read ({error.strerror})"
    receipt = read_receipt(path)
    if receipt is None or not receipt.sha256.startswith(expected):
        return f"there, not verified yet ({transfer.size_text(size)})"
    if receipt.size != size:
        return f"damaged: {size} bytes instead of {receipt.size}"
    return f"verified ({transfer.size_text(size)})" if trusted(path) else "damaged: changed since it was verified"


def plan(
    entry: ModelEntry,
    *,
    checkpoint: str | os.PathLike | None = None,
    sha256: str | None = None,
    mirrors: Sequence[str | os.PathLike] = (),
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
) -> list[Source]:
    """What `fetch` would try, in order, without asking the network. Arguments as there.

    Raises:
        ArgumentError: `sha256` or a mirror that is none.
    """
    expected = expected_digest(entry, sha256, cache_dir)
    if checkpoint is not None:
        path = Path(checkpoint).expanduser()
        return [Source("file", str(path), _state(path, expected))]
    local = [("cache", cached_path(entry, cache_dir)), ("torch hub cache", torch_hub_folder() / entry.file_name)]
    found = [Source(kind, str(path), _state(path, expected)) for kind, path in local]
    reason = _offline_reason(local_files_only)
    for source in _further(entry, mirrors):
        if _on_network(source):
            state = f"offline ({reason})" if reason else "not asked yet"
        else:
            try:
                state = _state(_local_path(source.location), expected)
            except DownloadError as error:
                state = str(error)
        found.append(Source(source.kind, source.location, state))
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
        path = Path(checkpoint).expanduser()
        found = verify_file(path, expected, what=entry.name)
        return Found(path, found, path.stat().st_size, "file")
    sources = _further(entry, mirrors)
    target = cached_path(entry, cache_dir)
    failures = _Failures(entry, target)
    if found := _from_cache(target, expected, failures) or _from_torch_hub(entry, expected, failures):
        return found
    reason = _offline_reason(local_files_only)
    if reason and all(_on_network(source) for source in sources):
        raise failures.error(reason)
    with _cache_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
    with lock(target, cache_dir=cache_dir):
        # another process may have brought it while this one waited
        expected = expected_digest(entry, sha256, cache_dir)
        if found := _from_cache(target, expected, None):
            return found
        unreachable = set()
        for source in sources:
            host = urlsplit(source.location).netloc if _is_remote(source.location) else None
            if reason and _on_network(source):
                continue
            if host and host in unreachable:
                failures.add(source, "not asked: the same server could not be reached")
                continue
            try:
                return _bring(source, entry, target, expected, progress)
            except (DownloadError, IntegrityError) as error:
                failures.add(source, error)
                if isinstance(error, transfer.Unreachable):
                    unreachable.add(host)
    raise failures.error(reason)


class _Failures:
    """What each source said, until one has the file; then the one error with all of it."""

    def __init__(self, entry: ModelEntry, target: Path):
        self.entry, self.target = entry, target
        self.lines: list[str] = []
        self.wrong_digest = False

    def add(self, source: Source | str, error: Exception | str) -> None:
        self.wrong_digest |= isinstance(error, IntegrityError)
        self.lines.append(f"  - {source}: {error}")

    def error(self, offline_reason: str | None) -> Exception:
        name, file = self.entry.name, self.entry.file_name
        lines = "\n".join(self.lines)
        by_hand = f"copy the file into {self.target.parent} or {torch_hub_folder()}, or give its path as checkpoint=..."
        elsewhere = f"name a mirror or a folder that has it (mirrors=[...] or {MIRRORS_ENVIRONMENT})"
        if offline_reason:
            return OfflineError(
                f"{name}: {file} is not on this machine, and the network is not used ({offline_reason}):\n{lines}\n"
                f"Next: fetch it once with the network allowed, or {elsewhere}, or {by_hand}."
            )
        if self.wrong_digest:
            return IntegrityError(f"{name}: no source has the right {file}:\n{lines}\n{_ACCEPT} Or {elsewhere}, or {by_hand}.")
        return DownloadError(f"{name}: no source has {file}:\n{lines}\nNext: try again later, or {elsewhere}, or {by_hand}.")


def _from_cache(target: Path, expected: str, failures: _Failures | None) -> Found | None:
    """The project's own copy, if it is there and right; a wrong one stays until a verified one takes its place."""
    source = Source("cache", str(target))
    try:
        receipt = trusted(target)
        if receipt is not None and receipt.sha256.startswith(expected):
            return Found(target, receipt.sha256, receipt.size, "cache")
        found, size = file_digest(target)
        if found.startswith(expected):
            receipt = write_receipt(target, found, "found in the cache")
            return Found(target, found, size, "cache")
        problem: Exception | str = IntegrityError(_mismatch(target, expected, found, size))
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
        found, size = file_digest(path)
        if found.startswith(expected):
            return Found(path, found, size, "torch hub cache")
        problem: Exception | str = IntegrityError(_mismatch(path, expected, found, size))
        warnings.warn(f"{path}: {problem}. It is left as it is, and another source is asked.", stacklevel=3)
    except (FileNotFoundError, NotADirectoryError):
        problem = "not there"
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error})"
    failures.add(Source("torch hub cache", str(path)), problem)
    return None


def _bring(source: Source, entry: ModelEntry, target: Path, expected: str, progress: bool) -> Found:
    """Bring the file from one source into the cache. The lock is held, the folder exists.

    Raises:
        DownloadError: the source does not have it; the message is the cause alone.
        IntegrityError: it has another one.
        CacheError: it cannot be written.
    """
    _logger.info("%s: asking %s", entry.name, source)
    if source.kind == "Hugging Face Hub":
        return _from_hub(source, entry, target, expected, progress)
    if _is_remote(source.location):
        return _from_url(source.location, target, expected, progress)
    return _from_folder(_local_path(source.location), target, expected)


def _from_url(url: str, target: Path, expected: str, progress: bool) -> Found:
    partial = target.with_name(target.name + ".partial")
    got = transfer.download(url, partial, name=target.name, progress=progress)
    if got.resumed and not got.sha256.startswith(expected):
        # what was on disk may be damaged or of another file of that name: once more from the first byte
        transfer.discard(partial)
        got = transfer.download(url, partial, name=target.name, progress=progress)
    return _settle(partial, target, expected, got.sha256, got.size, transfer.shown(url))


def _from_folder(path: Path, target: Path, expected: str) -> Found:
    try:
        found, size = file_digest(path)
        problem = None if found.startswith(expected) else _mismatch(path, expected, found, size)
    except (FileNotFoundError, NotADirectoryError):
        raise DownloadError("not there") from None
    except OSError as error:
        raise DownloadError(f"cannot be read ({error.strerror or error})") from None
    if problem:
        raise IntegrityError(problem)
    incoming = target.with_name(target.name + ".incoming")
    with _cache_errors(target.parent):
        transfer.require_space(target.parent, size, transfer.SETTINGS)
        try:
            copied, size = transfer.copy(path, incoming)
        except BaseException:
            incoming.unlink(missing_ok=True)
            raise
    return _settle(incoming, target, expected, copied, size, str(path))


def _from_hub(source: Source, entry: ModelEntry, target: Path, expected: str, progress: bool) -> Found:
    """The original file from a repository on the Hugging Face Hub, by its own client: tokens, endpoint and resuming are its."""
    import huggingface_hub
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    silence = not progress and not are_progress_bars_disabled()
    folder = target.parent / ".hub" / source.location.replace("/", "--")
    if silence:
        disable_progress_bars()
    try:
        path = Path(huggingface_hub.hf_hub_download(source.location, entry.file_name, local_dir=folder))
        found, size = file_digest(path)
    except Exception as error:  # the client's own errors, those of its HTTP library, and the system's
        if isinstance(error, OSError) and (full := transfer.no_space(error, folder)):
            raise full from None
        raise DownloadError(f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no reason given')}") from None
    finally:
        if silence:
            enable_progress_bars()
    try:
        return _settle(path, target, expected, found, size, f"hf-hub:{source.location}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # the client's own notes on the file


def _settle(arrived: Path, target: Path, expected: str, sha256: str, size: int, source: str) -> Found:
    """Give a file that has arrived its name, if its digest is right; keep it aside, if not.

    `arrived` is complete, on disk, in the same file system as `target`. What stood in the target's place is kept aside as well.

    Raises:
        IntegrityError: the digest is wrong.
    """
    with _cache_errors(target.parent):
        if not sha256.startswith(expected):
            problem = _mismatch(arrived, expected, sha256, size)
            aside = _aside(target, sha256)
            os.replace(arrived, aside)
            transfer.discard(arrived)
            raise IntegrityError(f"{problem}; kept aside as {aside}")
        if target.exists():
            os.replace(target, _aside(target, file_digest(target)[0]))
        os.replace(arrived, target)
        _sync_folder(target.parent)
        transfer.discard(arrived)
        write_receipt(target, sha256, source)
    return Found(target, sha256, size, source)


def _aside(target: Path, sha256: str) -> Path:
    """Where a file that is not the right one is kept: the digest in the name, so that the same one is not kept twice."""
    return target.with_name(f"{target.name}.bad-{sha256[:8]}")
