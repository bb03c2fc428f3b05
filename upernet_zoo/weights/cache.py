"""The cache of checkpoint files: folders, locks, receipts, and digests that are checked."""

from __future__ import annotations

import contextlib
import enum
import json
import logging
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from .. import files, index
from ..errors import ArgumentError, CacheError, IntegrityError, MissingFileError, UPerNetZooError, WriteError
from ..files import Content, Hashed, check_digest
from ..index import ModelEntry
from ..wording import option
from . import locks

__all__ = [
    "CACHE_ENVIRONMENT",
    "NAMELESS",
    "OFFLINE_ENVIRONMENT",
    "Checked",
    "Found",
    "Held",
    "Kind",
    "Receipt",
    "State",
    "aside_path",
    "believed",
    "cache_errors",
    "cache_root",
    "cached_path",
    "distrust",
    "elsewhere",
    "expected_digest",
    "files_of",
    "held",
    "how_to_accept",
    "lock",
    "make_folder",
    "mismatch",
    "offline",
    "offline_reason",
    "prune",
    "read_receipt",
    "read_trusted",
    "receipt_path",
    "settle",
    "torch_hub_folder",
    "trusted",
    "verified",
    "verify",
    "verify_content",
    "verify_file",
    "write_receipt",
]

CACHE_ENVIRONMENT = "UPERNET_ZOO_CACHE"
OFFLINE_ENVIRONMENT = ("UPERNET_ZOO_OFFLINE", "HF_HUB_OFFLINE")
NAMELESS = "nameless"  # in place of a model's name, in that of a file made from one that has none
_TRUE = {"1", "ON", "YES", "TRUE"}  # as in huggingface_hub.constants
_LONGEST_RECEIPT = 1 << 16  # bytes

_logger = logging.getLogger("upernet_zoo")
_Read = TypeVar("_Read")


@dataclass(frozen=True)
class Found:
    """A verified file.

    Attributes:
        path: where it is.
        sha256: all 64 hex digits of its SHA-256.
        size: in bytes.
        source: where it came from, for people: "file", "cache", "torch hub cache" or a URL.
        brought: whether this call brought it to this machine.
    """

    path: Path
    sha256: str
    size: int
    source: str
    brought: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class Receipt:
    """What was known of a file when it was last read whole: full SHA-256, size in bytes, mtime in ns, and where it came from."""

    sha256: str
    size: int
    mtime_ns: int
    source: str


# folders and switches


def cache_root(cache_dir: str | os.PathLike | None = None) -> Path:
    """The folder that holds all that the library keeps. It need not exist.

    It is `cache_dir`, `$UPERNET_ZOO_CACHE`, `$XDG_CACHE_HOME/upernet_zoo` or `~/.cache/upernet_zoo`, the first that is set.

    Raises:
        CacheError: none of them is set, and the user has no home folder.
    """
    named = cache_dir if cache_dir is not None else os.environ.get(CACHE_ENVIRONMENT)
    try:
        if named:
            return files.expanded(named).absolute()
        return files.expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache").absolute() / "upernet_zoo"
    except ArgumentError as error:
        raise CacheError(f"No folder for the cache: {error} Set {CACHE_ENVIRONMENT}, or give {option('cache_dir')}.") from None


def torch_hub_folder() -> Path:
    """Where torch.hub and tools built on it leave checkpoints.

    It is what `torch.hub.get_dir` says where torch is loaded, since a program may have called `torch.hub.set_dir`; else its rule, without
    importing torch.
    """
    if loaded := getattr(sys.modules.get("torch.hub"), "get_dir", None):
        return Path(loaded()).absolute() / "checkpoints"
    home = os.environ.get("TORCH_HOME") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/torch"
    home = os.path.expanduser(home)  # noqa: PTH111 (as torch does, which takes "~" as it is where there is no home)
    return Path(home).absolute() / "hub" / "checkpoints"


def offline_reason(local_files_only: bool) -> str | None:
    """What forbids the network, for messages; None where nothing does."""
    if local_files_only:
        return option("local_files_only", True)
    return next((f"{name}={os.environ[name]}" for name in OFFLINE_ENVIRONMENT if os.environ.get(name, "").upper() in _TRUE), None)


def offline(local_files_only: bool = False) -> bool:
    """Whether the network is left alone: by argument, `UPERNET_ZOO_OFFLINE` or `HF_HUB_OFFLINE` (1, on, yes, true; any case)."""
    return offline_reason(local_files_only) is not None


@contextlib.contextmanager
def cache_errors(folder: Path) -> Iterator[None]:
    """Turn what is said about a folder of the cache that cannot be written into a CacheError that names the way out."""
    try:
        yield
    except WriteError as error:
        if isinstance(error, CacheError) or not isinstance(error.__cause__, OSError):
            raise
        raise CacheError(files.write_problem(error.__cause__, folder, elsewhere())) from error.__cause__
    except UPerNetZooError:
        raise
    except OSError as error:
        raise CacheError(files.write_problem(error, folder, elsewhere())) from error


def make_folder(folder: Path) -> None:
    """Make a folder of the cache that files are to be written to, if it is missing.

    Raises:
        CacheError: it cannot be made, or a stranger's link is in its place.
    """
    with cache_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if folder.is_symlink() and not believed(folder):
            raise CacheError(f"{folder} is a link that another user made, and is not followed. Remove it, or {elsewhere()}.")


def believed(path: Path) -> bool:
    """Whether what is there under a name can be taken for what it says it is.

    Where everybody may write a folder, that is so only for what this user or the administrator put there.

    Raises:
        OSError: nothing is there.
    """
    if not hasattr(os, "geteuid"):
        return True
    return not path.parent.stat().st_mode & stat.S_IWOTH or path.lstat().st_uid in (os.geteuid(), 0)


@contextlib.contextmanager
def lock(path: str | os.PathLike, *, cache_dir: str | os.PathLike | None = None) -> Iterator[None]:
    """Hold the lock of a file, across processes and nodes; see `locks` for what it can and cannot do. A thread may take it again.

    Args:
        path: the file that is about to be written; the lock goes by its plain name, in `<cache root>/locks`.

    Raises:
        CacheError: the lock cannot be made, because the cache cannot be written.
    """
    folder = cache_root(cache_dir) / "locks"
    make_folder(folder)
    file = files.beside(folder / Path(path).name, ".lock")
    with contextlib.ExitStack() as stack:
        with cache_errors(file):
            stack.enter_context(locks.hold(file))
        yield


def verify_file(path: str | os.PathLike, digest: str, *, what: str) -> str:
    """Compare a file with a digest; returns all 64 hex digits of its SHA-256. Arguments and errors as of `verified`."""
    return verified(path, digest, what=what).sha256


def verified(path: str | os.PathLike, digest: str, *, what: str) -> Hashed:
    """Compare a file with a digest.

    Args:
        path: the file.
        digest: the expected SHA-256, its first 8 hex digits or more.
        what: what the message calls the file, such as the model's name.

    Returns:
        What was hashed.

    Raises:
        IntegrityError: another digest. The file stays as it is.
        MissingFileError: no such file, or it cannot be read.
    """
    path, digest = Path(path), check_digest(digest)
    try:
        found = files.hash_file(path)
    except FileNotFoundError:
        raise MissingFileError(f"{what} ({path}): no such file.") from None
    except OSError as error:
        raise MissingFileError(f"{what} ({path}): cannot be read ({error.strerror or error}).") from None
    if not found.sha256.startswith(digest):
        raise IntegrityError(f"{what} ({path}): {mismatch(path, digest, found)}. {how_to_accept()}")
    return found


def verify_content(content: Content, digest: str, *, what: str) -> None:
    """Compare the bytes of a file that have been read already with a digest. Arguments as of `verified`.

    Raises:
        IntegrityError: another digest.
    """
    digest, found = check_digest(digest), content.hashed
    if not found.sha256.startswith(digest):
        raise IntegrityError(f"{what} ({content.path}): {mismatch(content.data, digest, found)}. {how_to_accept()}")


def elsewhere() -> str:
    """The next step where a folder cannot be written."""
    return f"name another folder (for the cache: {option('cache_dir')} or {CACHE_ENVIRONMENT})"


def how_to_accept() -> str:
    """The next step where a file has another digest than the one expected."""
    return (
        "Such a file is damaged, or was replaced by another of the same name. If somebody you trust gives you another full digest than "
        f"the one expected here, pass it as {option('sha256', '<64 hex digits>')}, or put it into an index of your own (UPERNET_ZOO_INDEX)."
    )


def mismatch(file: Path | bytes, expected: str, found: Hashed) -> str:
    """What is wrong with a file, or the bytes of one, that has another digest."""
    head = b""
    if isinstance(file, bytes):
        head = file[:512]
    else:
        with contextlib.suppress(OSError), files.open_regular(file) as opened:
            head = opened.read(512)
    what = files.not_a_checkpoint(head)
    nature = f", and is {what}" if what else ""
    return f"its SHA-256 is not the expected one: expected {expected}, found {found.sha256} ({files.size_text(found.size)}{nature})"


def receipt_path(path: Path) -> Path:
    """The receipt that is kept beside a file."""
    return files.beside(path, ".json")


def read_receipt(path: Path) -> Receipt | None:
    """The receipt of a file, which may itself be gone by now; None if there is none, it cannot be read, or a stranger wrote it."""
    receipt_file = receipt_path(path)
    try:
        if not believed(receipt_file):
            return None
        with files.open_regular(receipt_file) as file:
            data = json.loads(file.read(_LONGEST_RECEIPT).decode("utf-8"))
        receipt = Receipt(**data)
        valid = re.fullmatch("[0-9a-f]{64}", receipt.sha256) and isinstance(receipt.size, int) and isinstance(receipt.source, str)
        return receipt if valid and isinstance(receipt.mtime_ns, int) else None
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def write_receipt(path: Path, hashed: Hashed, source: str) -> Receipt:
    """Record a file that has just been verified; in a cache that cannot be written the record is left out.

    Args:
        path: the file.
        hashed: what was read of it.
        source: where it came from.
    """
    receipt = Receipt(**asdict(hashed), source=source)
    text = json.dumps(asdict(receipt), indent=1) + "\n"
    try:
        files.write_atomically(receipt_path(path), lambda temporary: temporary.write_text(text, encoding="utf-8"))
    except WriteError as error:
        _logger.info("No receipt written: %s", error)
    return receipt


def trusted(path: Path) -> Receipt | None:
    """The receipt of a file, if the file is still the one that it describes.

    Size and mtime are compared; where only the mtime differs, the digest is (and a receipt with the new mtime written).
    """
    receipt = read_receipt(path)
    try:
        status = path.stat()
        if receipt is None or not stat.S_ISREG(status.st_mode) or status.st_size != receipt.size or not believed(path):
            return None
        if status.st_mtime_ns == receipt.mtime_ns:
            return receipt
        hashed = files.hash_file(path)
        return write_receipt(path, hashed, receipt.source) if hashed.sha256 == receipt.sha256 else None
    except OSError:
        return None


def distrust(path: Path) -> None:
    """Have a file read in full before it is used next, whatever its receipt says."""
    if (receipt := read_receipt(path)) is not None:
        write_receipt(path, Hashed(receipt.sha256, receipt.size, 0), receipt.source)


def read_trusted(path: Path, reader: Callable[[Path], _Read]) -> _Read | None:
    """What `reader` makes of a file that its receipt describes; None if there is none, or it changed before or while it was read."""
    try:
        before = _identity(path)
        if trusted(path) is None:
            return None
        found = reader(path)
        return found if _identity(path) == before else None
    except OSError:
        return None


def _identity(path: Path) -> tuple[int, ...]:
    """What no write, rename or link leaves as it was: the time of the last change is the system's to set."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def expected_digest(entry: ModelEntry, sha256: str | None = None, cache_dir: str | os.PathLike | None = None) -> str:
    """What a file of that model must match: `sha256`, else the index's digits; in full where a pin in the cache agrees."""
    wanted = entry.sha256 if sha256 is None else check_digest(sha256)
    pin = read_receipt(cached_path(entry, cache_dir))
    return pin.sha256 if pin is not None and pin.sha256.startswith(wanted) else wanted


# sources


def cached_path(entry: ModelEntry, cache_dir: str | os.PathLike | None = None) -> Path:
    """Where the cache has, or would have, a model's checkpoint file."""
    return cache_root(cache_dir) / "checkpoints" / entry.file_name


def aside_path(target: Path, sha256: str) -> Path:
    """Where a file that is not the right one is kept: the digest in the name, so that the same one is not kept twice."""
    return files.beside(target, f".bad-{sha256[:8]}")


def settle(arrived: Path, target: Path, expected: str, hashed: Hashed, source: str) -> Found:
    """Give a file that has arrived its name, if its digest is right; keep it aside, if not. The lock is held.

    Args:
        arrived: complete, on disk, in the folder of `target`.
        target: the name. What has it now is kept aside.
        expected: the SHA-256, or its first digits.
        hashed: what arrived.
        source: where it came from.

    Raises:
        IntegrityError: the digest is wrong.
        CacheError: the name cannot be given; what had it before still has it.
    """
    with cache_errors(target.parent):
        if not hashed.sha256.startswith(expected):
            problem = mismatch(arrived, expected, hashed)
            aside = aside_path(target, hashed.sha256)
            arrived.replace(aside)
            raise IntegrityError(f"{problem}; kept aside as {aside}")
        before = None
        try:
            before = aside_path(target, files.hash_file(target).sha256)
            target.replace(before)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise CacheError(f"{target}: cannot be kept aside ({error.strerror or error}). Remove it, or {elsewhere()}.") from None
        try:
            arrived.replace(target)
        except OSError:
            if before is not None:
                before.replace(target)
            raise
        files.sync_folder(target.parent)
        write_receipt(target, hashed, source)
    return Found(target, hashed.sha256, hashed.size, source, brought=True)


# what is in it, whether that is right, and what may go


class Kind(enum.Enum):
    """What a file in the cache is. The values are the words for people."""

    CHECKPOINT = "checkpoint"
    CONVERTED = "converted"
    FUSED = "optimized"
    EXPORTED = "exported"
    RECEIPT = "receipt"
    UNFINISHED = "unfinished"
    ASIDE = "kept aside"
    LOCK = "lock"
    OTHER = "other"

    @classmethod
    def of(cls, path: Path) -> Kind:
        """By the name and the folder."""
        if path.parent.name == "locks":
            return cls.LOCK
        if path.name.endswith((".partial", ".partial.state", ".tmp", ".tmp.state")):
            return cls.UNFINISHED
        if ".bad-" in path.name:
            return cls.ASIDE
        if path.name.endswith(".json"):
            return cls.RECEIPT
        if path.name.endswith("-fused.safetensors"):
            return cls.FUSED
        if path.suffix == ".onnx":
            return cls.EXPORTED
        return {"checkpoints": cls.CHECKPOINT, "converted": cls.CONVERTED}.get(path.parent.name, cls.OTHER)

    @property
    def made_here(self) -> bool:
        """Whether such a file can be made again from a checkpoint."""
        return self in (Kind.CONVERTED, Kind.FUSED, Kind.EXPORTED)


class State(enum.Enum):
    """What came of checking a file. The values are the words for people."""

    UNCHANGED = "unchanged since it was verified"
    VERIFIED = "verified"
    UNKNOWN = "unknown: no receipt, and no such file in the index"
    DAMAGED = "DAMAGED"
    UNREADABLE = "cannot be read"
    ABSENT = "not on this machine"


@dataclass(frozen=True)
class Held:
    """A file in the cache; its size in bytes."""

    path: Path
    kind: Kind
    size: int


@dataclass(frozen=True)
class Checked:
    """A file that was checked.

    Attributes:
        path: where it is, or would be.
        state: what came of it.
        digits: hex digits of the digest that it was compared with; 0 where it was not read.
        size: in bytes, None where there is no file.
        error: what is wrong with it.
    """

    path: Path
    state: State
    digits: int = 0
    size: int | None = None
    error: UPerNetZooError | None = None

    @property
    def text(self) -> str:
        """The state for people."""
        by = f" by {self.digits} hex digits" if self.state is State.VERIFIED and self.digits < 64 else ""
        return self.state.value + by


def held(cache_dir: str | os.PathLike | None = None) -> list[Held]:
    """The files in the cache, in the order of their paths; without locks and what is not the library's."""
    paths = (path for path in sorted(cache_root(cache_dir).rglob("*")) if path.is_file())
    return [Held(path, kind, path.stat().st_size) for path in paths if (kind := Kind.of(path)) not in (Kind.LOCK, Kind.OTHER)]


def files_of(entry: ModelEntry, cache_dir: str | os.PathLike | None = None) -> list[Path]:
    """The files on this machine that the library would use for a model."""
    converted = [one.path for one in held(cache_dir) if one.kind.made_here and one.path.name.startswith(f"{entry.name}-")]
    originals = [cached_path(entry, cache_dir), torch_hub_folder() / entry.file_name]
    return [path for path in (*originals, *converted) if path.is_file()]


def verify(entries: Sequence[ModelEntry] | None = None, *, deep: bool = False, cache_dir: str | os.PathLike | None = None) -> list[Checked]:
    """Check files against their digests. One that is damaged is left, and read in full before it is used next.

    Args:
        entries: the models whose files are checked, torch's hub folder included; by default all that is in the cache.
        deep: read every byte, also where size and time have not changed.
        cache_dir: in place of `cache_root()`.

    Returns:
        The files that are there, then those of `entries` that are not.
    """
    by_file = {entry.file_name: entry for entry in (index.default().values() if entries is None else entries)}
    if entries is None:
        paths = [one.path for one in held(cache_dir) if one.kind is Kind.CHECKPOINT or one.kind.made_here]
        absent = []
    else:
        paths = [path for entry in entries for path in files_of(entry, cache_dir)]
        names = {path.name for path in paths}
        absent = [cached_path(entry, cache_dir) for entry in entries if entry.file_name not in names]
    return [_checked(path, by_file.get(path.name), deep, cache_dir) for path in paths] + [Checked(path, State.ABSENT) for path in absent]


def _checked(path: Path, entry: ModelEntry | None, deep: bool, cache_dir: str | os.PathLike | None) -> Checked:
    receipt, size = read_receipt(path), path.stat().st_size
    if receipt is not None and not deep and trusted(path):
        return Checked(path, State.UNCHANGED, size=size)
    expected = receipt.sha256 if receipt is not None else expected_digest(entry, cache_dir=cache_dir) if entry is not None else None
    if expected is None:
        return Checked(path, State.UNKNOWN, size=size)
    try:
        verify_file(path, expected, what=entry.name if entry is not None else path.name)
    except IntegrityError as error:
        distrust(path)
        if not Kind.of(path).made_here:
            return Checked(path, State.DAMAGED, len(expected), size, error)
        remade = IntegrityError(f"{path}: other than it was written ({expected[:16]}...); it is made again when it is needed.")
        return Checked(path, State.DAMAGED, len(expected), size, remade)
    except MissingFileError as error:
        return Checked(path, State.UNREADABLE, size=size, error=error)
    return Checked(path, State.VERIFIED, len(expected), size)


def _is_nameless(one: Held) -> bool:
    return one.kind.made_here and one.path.name.startswith(f"{NAMELESS}-")


def prune(entries: Sequence[ModelEntry] = (), *, cache_dir: str | os.PathLike | None = None) -> list[Held]:
    """Remove what is unfinished, was kept aside or was made from nameless models, and the files of models.

    The receipts of checkpoints, which pin digests, stay.

    A file that a process is at work with is waited for; a temporary one that is younger than an hour is left to its process.

    Args:
        entries: the models whose files go too. Those of torch's hub folder stay.
        cache_dir: in place of `cache_root()`.

    Returns:
        What was removed.

    Raises:
        CacheError: something cannot be removed.
    """
    root, now = cache_root(cache_dir), time.time()
    remove = [one for one in held(cache_dir) if one.kind in (Kind.UNFINISHED, Kind.ASIDE) or _is_nameless(one)]
    remove = [one for one in remove if ".tmp" not in one.path.suffixes or now - one.path.lstat().st_mtime > files.STALE]
    named = [path for entry in entries for path in files_of(entry, cache_dir) if root in path.parents]
    removed = []
    for one in remove + [Held(path, Kind.of(path), path.stat().st_size) for path in named]:
        owner = re.sub(r"\.partial(\.state)?$|\.bad-[0-9a-f]+$", "", one.path.name)
        with lock(one.path.with_name(owner), cache_dir=cache_dir), cache_errors(one.path.parent):
            if not os.path.lexists(one.path):
                continue
            if one.kind.made_here:
                receipt_path(one.path).unlink(missing_ok=True)
            one.path.unlink()
        removed.append(one)
    return removed
