"""Reading checkpoint files without running anything that they hold.

Every pickle of a file is walked by `pickle_scan` before torch sees a byte of it, and the file's layout is checked against its size.
Only a file that passes is given to `torch.load(weights_only=True)`. Formats: torch.save before 1.6 (a magic number, four more
pickles, then the raw storages), torch.save since 1.6 (a zip file whose members are stored uncompressed), and safetensors. The
layouts are those of torch/serialization.py.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import mmap
import os
import pickle
import stat
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .. import files
from ..errors import CheckpointError, MissingFileError, UnsafeCheckpointError, UPerNetZooError
from .pickle_scan import FACTORIES, HISTORY_BUFFER, MAX_PICKLE_BYTES, BlockedError, DamagedError, Dict, Machine, UnsafeError, globals_named

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["MAX_HEADER_BYTES", "MAX_MEMBERS", "MAX_TENSORS", "Bytes", "HistoryBuffer", "read", "read_content", "read_safetensors"]

Bytes = bytes | mmap.mmap
MAX_MEMBERS = 100_000
MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 20_000  # of a safetensors file, whose reader takes 20 microseconds for each

_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")  # of torch.save before 1.6: the pickled number 0x1950a86a20f9469cfc6c
_PROTOCOL = 1001

# first bytes of other kinds of file
_KINDS = (
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"%PDF", "a PDF document"),
    (b"\x89HDF", "an HDF5 file (Keras, MATLAB)"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a Windows program"),
    (b"GGUF", "a GGUF model"),
    (b"PK\x05\x06", "an empty zip archive"),
)


# ---- the containers of pickles


@contextlib.contextmanager
def _opened(source: str | os.PathLike | files.Content) -> Iterator[tuple[Path, Bytes]]:
    """A regular file and its bytes, mapped for reading; or those that have been read already."""
    if isinstance(source, files.Content):
        yield source.path, source.data
        return
    path = _path(source)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise CheckpointError(f"{path} is a folder; a checkpoint is a file inside one.")
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path} is not a regular file, so it cannot be checked before it is read. Copy it to one.")
        if not status.st_size:
            raise CheckpointError(f"{path} is empty: a download or a copy that did not happen. Delete it and get the file again.")
        with files.open_regular(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield path, data
    except UPerNetZooError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFileError(f"No checkpoint file at {path}. Check the path.") from None
    except (OSError, ValueError) as error:  # ValueError: emptied before it could be mapped
        raise CheckpointError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}. Check its permissions and its disk."
        ) from None


def _check_legacy(data: Bytes) -> set[str]:
    """The format of torch.save before 1.6: magic number, protocol, system, object, storage keys, then the storages' raw bytes."""
    machine = Machine(len(data))
    _, end = machine.run(data, 0, len(data))
    protocol, end = machine.run(data, end, len(data))
    if type(protocol) is not int or protocol != _PROTOCOL:
        raise DamagedError("its second number is not the one of torch.save")
    _, end = machine.run(data, end, len(data))
    if machine.storages or machine.globals:
        raise UnsafeError("it has tensors where torch.save describes the machine")
    root, end = machine.run(data, end, len(data), legacy=True)
    _check_root(root)
    storages, names = dict(machine.storages), set(machine.globals)
    keys, end = machine.run(data, end, len(data))
    if machine.globals != names or type(keys) is not list or not all(type(key) is str for key in keys):
        raise UnsafeError("its list of storages is not one")
    if len(keys) != len(storages) or set(keys) != set(storages):
        raise UnsafeError("its list of storages differs from those that its tensors use")
    declared = sum(size * count for size, count in storages.values())
    if declared > len(data) - end:
        kind = UnsafeError if declared > 1000 * len(data) else DamagedError
        raise kind(f"it declares {declared} bytes of tensors and has {len(data) - end}: it is cut short, or a trap for your memory")
    for key in keys:
        size, count = storages[key]
        if end + 8 > len(data) or struct.unpack_from("<Q", data, end)[0] != count:
            raise DamagedError(f"storage {key[:20]!r} does not have the length that its tensors declare")
        end += 8 + size * count
    if end > len(data):
        raise DamagedError(f"it ends {end - len(data)} bytes too early: it is cut short")
    return machine.globals


def _zip_members(data: Bytes) -> dict[bytes, tuple[int, int, int]]:
    """Name -> (offset, size, CRC-32) of every member, without the folder that torch.save puts them in.

    Stricter than zipfile, so that there is one way to read the file: nothing before, between or after what the directory
    describes that another reader could take for it (the format: APPNOTE.TXT 6.3.10, 4.3).
    """
    end = len(data) - 22
    if end < 0 or data[end : end + 4] != b"PK\x05\x06":
        raise DamagedError("it has no directory at its end: it is cut short")
    *disks, here, count, length, offset, comment = struct.unpack_from("<HHHHIIH", data, end + 4)
    if data[end - 20 : end - 16] == b"PK\x06\x07":  # a zip64 locator
        _, end64, _ = struct.unpack_from("<IQI", data, end - 16)
        end -= 76
        if end != end64 or data[end : end + 4] != b"PK\x06\x06":
            raise DamagedError("its zip64 directory is not where it should be")
        *disks, here, count, length, offset = struct.unpack_from("<IIQQQQ", data, end + 16)
    if any(disks) or comment or here != count or offset + length != end or not 0 < count <= MAX_MEMBERS:
        raise DamagedError("its directory is not one that torch.save writes")
    names: dict[bytes, tuple[int, int, int]] = {}
    spans = []
    at = offset
    for _ in range(count):
        fields = struct.unpack_from("<4sHHHHHHIIIHHHHHII", data, at)
        signature, flags, method, crc, packed, size = fields[0], fields[3], fields[4], fields[7], fields[8], fields[9]
        name_length, extra_length, comment_length, start = fields[10], fields[11], fields[12], fields[16]
        name = data[at + 46 : at + 46 + name_length]
        extra = data[at + 46 + name_length : at + 46 + name_length + extra_length]
        at += 46 + name_length + extra_length + comment_length
        if signature != b"PK\x01\x02" or at > offset + length:
            raise DamagedError("its directory is damaged")
        size, packed, start = _zip64(extra, size, packed, start)
        label = name[:80].decode("utf-8", "replace")
        if b"/" not in name:
            raise DamagedError(f"it is a zip archive of another kind than torch.save's (with a member {label!r})")
        if method or flags & ~0x0808 or size != packed:
            raise UnsafeError(f"member {label!r} is compressed or encrypted, and torch.save stores plain bytes")
        if b".." in name or b"\\" in name or b"\0" in name or name.startswith(b"/"):
            raise UnsafeError(f"member {label!r} has a path that torch.save never writes")
        if start + 30 > offset or data[start : start + 4] != b"PK\x03\x04":
            raise DamagedError(f"member {label!r} is not where the directory says")
        local_method, local_name, local_extra = struct.unpack_from("<H16xHH", data, start + 8)
        body = start + 30 + local_name + local_extra
        if local_method or data[start + 30 : start + 30 + local_name] != name or body + size > offset:
            raise DamagedError(f"member {label!r} is not what the directory says")
        spans.append((start, body + size))
        if name.lower() in names:  # torch's reader ignores case
            raise UnsafeError(f"member {label!r} is there twice")
        names[name.lower()] = body, size, crc
    if at != end:
        raise DamagedError("its directory is damaged")
    spans.sort()
    if any(stop > start for (_, stop), (start, _) in itertools.pairwise(spans)):
        raise UnsafeError("its members overlap")
    folders = {name.split(b"/", 1)[0] for name in names}
    if len(folders) != 1:
        raise DamagedError("it has more than one folder at its top, and torch.save writes one")
    return {name.split(b"/", 1)[1]: member for name, member in names.items()}


def _zip64(extra: bytes, *values: int) -> tuple[int, ...]:
    """Size, packed size and offset, those of 2**32 - 1 taken from the zip64 extra field (APPNOTE.TXT 4.5.3)."""
    if all(value != 0xFFFFFFFF for value in values):
        return values
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            longs = iter(struct.iter_unpack("<Q", extra[at + 4 : at + 4 + length // 8 * 8]))
            found = tuple(next(longs, (value,))[0] if value == 0xFFFFFFFF else value for value in values)
            if max(found) < 1 << 62:
                return found
            break
        at += 4 + length
    raise DamagedError("its directory is damaged")


def _check_zip(data: Bytes) -> set[str]:
    """The format of torch.save since 1.6."""
    members = _zip_members(data)
    if b"constants.pkl" in members:
        raise UnsafeError("it is a TorchScript archive, which is a program; a checkpoint of weights is needed (torch.save of a state dict)")
    if b"data.pkl" not in members:
        raise DamagedError("it is a zip archive of another kind than torch.save's")
    start, size, crc = members[b"data.pkl"]
    if size > MAX_PICKLE_BYTES:
        raise UnsafeError(f"its pickle has {size} bytes; those of checkpoints have fewer than {MAX_PICKLE_BYTES}")
    written = any(checksum for _, _, checksum in members.values())  # torch.serialization.set_crc32_options(False) leaves all out
    if written and zlib.crc32(data[start : start + size]) != crc:
        raise DamagedError("its pickle does not have the checksum that the directory says")
    machine = Machine(len(data))
    root, _end = machine.run(data, start, start + size)
    _check_root(root)
    for key, (item, count) in machine.storages.items():
        member = members.get(b"data/" + key.encode("utf-8", "replace").lower())
        if member is None:
            raise DamagedError(f"storage {key[:20]!r} is not in the file")
        if member[1] != item * count:
            raise UnsafeError(f"storage {key[:20]!r} is declared with {item * count} bytes and has {member[1]}")
    return machine.globals


def _check_root(root: Any) -> None:
    if not isinstance(root, Dict):
        raise DamagedError("it does not hold a dict of tensors")


# ---- what takes the place of the few globals that torch's unpickler does not know


class HistoryBuffer:
    """In place of mmengine's object of that name in a training checkpoint: what it held is dropped."""

    def __setstate__(self, state: Any) -> None:
        pass


def _no_method(*_: Any) -> None:
    """In place of a method of HistoryBuffer."""


def _no_bytes() -> bytes:
    return b""


def _plain_dict(*_: Any) -> dict:
    """In place of defaultdict."""
    return {}


def _no_factory() -> None:
    """In place of the type that a defaultdict makes its values with."""


# those of `_stand_ins`, which imports NumPy
_STAND_INS = {name for name in Machine.NAMES if name.startswith(("numpy.", "mmengine."))} | FACTORIES
_STAND_INS |= {"builtins.bytes", "builtins.getattr", "collections.defaultdict"}


@functools.cache
def _stand_ins() -> dict[str, Any]:
    """Name in a pickle -> what is called instead. The arguments were checked; NumPy's own unpickling functions are not used."""
    import numpy as np

    class DType:
        def __init__(self, code: str, align: Any, copy: Any) -> None:
            self.code = code
            self.order: Literal["<", ">", "|", "="] = "="

        def __setstate__(self, state: tuple) -> None:
            self.order = state[1]

        def get(self) -> np.dtype:
            return np.dtype(self.code).newbyteorder(self.order)

    class Array(np.ndarray):
        """Takes its shape and values when the state arrives."""

        def __setstate__(self, state: tuple) -> None:
            _, shape, dtype, fortran, data = state
            super().__setstate__((1, shape, dtype.get(), fortran, data))

    def scalar(dtype: DType, data: bytes) -> np.generic:
        value: np.generic = np.frombuffer(data, dtype.get())[0]
        return value

    def reconstruct(*_: Any) -> Array:
        return Array((0,), np.int8)

    return {
        "builtins.bytes": _no_bytes,
        "builtins.getattr": _no_method,
        "numpy.dtype": DType,
        "numpy.ndarray": Array,
        "numpy.core.multiarray.scalar": scalar,
        "numpy._core.multiarray.scalar": scalar,
        "numpy.core.multiarray._reconstruct": reconstruct,
        "numpy._core.multiarray._reconstruct": reconstruct,
        HISTORY_BUFFER: HistoryBuffer,
        "collections.defaultdict": _plain_dict,
        **dict.fromkeys(FACTORIES, _no_factory),
    }


def _registered_name(entry: Any) -> str:
    """The name in pickles of an entry of torch's list of safe globals."""
    return entry[1] if isinstance(entry, tuple) else f"{entry.__module__}.{entry.__qualname__}"


_stand_ins_lock = threading.Lock()


@contextlib.contextmanager
def _allowed(names: set[str]) -> Iterator[None]:
    """Let torch's unpickler find our stand-ins under those names, and not what a program may have registered for itself."""
    from torch import serialization

    if not names:
        yield
        return
    stand_ins = _stand_ins()
    with _stand_ins_lock:
        before = serialization.get_safe_globals()
        others = [g for g in before if _registered_name(g) not in stand_ins]
        serialization.clear_safe_globals()
        serialization.add_safe_globals(others + [(value, name) for name, value in stand_ins.items()])
        try:
            yield
        finally:
            serialization.clear_safe_globals()
            serialization.add_safe_globals(before)


# ---- reading


def _is_safetensors(data: Bytes) -> bool:
    """Eight bytes with the length of a JSON header, then the header."""
    return len(data) > 9 and data[8:9] == b"{" and data[6:8] == b"\0\0"


def _kind(data: Bytes) -> str | None:
    """What a file is that is no checkpoint, and what to do about it."""
    head = data[:512]
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return "is a Git LFS pointer, not the file that it points to. Run `git lfs pull` in its repository, or download the file itself."
    if text.startswith(b"<"):
        return "is an HTML or XML page saved under this name: the server sent a page in place of the file. Delete it and get it again."
    if text.startswith((b"{", b"[")):
        return "is JSON text: perhaps a server's error message in place of the file. Delete it and get it again."
    if head[257:262] == b"ustar":
        return (
            "has the tar format of torch.save of 2017 and before, or is a tar archive. Load it with the torch of its "
            "time and save it again."
        )
    for start, kind in _KINDS:
        if head.startswith(start):
            return f"is {kind}, not a checkpoint. If the checkpoint is inside it, unpack it first."
    if head[:1] == b"\x08" and any(word in head for word in (b"onnx", b"pytorch", b"ONNX")):
        return "is an ONNX model, not a checkpoint. The .pth file that it was made from is needed."
    return None


def _refuse(path: Path, data: Bytes, error: DamagedError | UnsafeError) -> CheckpointError:
    """The exception for a file, with all names that it should not have."""
    blocked = {str(error)} if isinstance(error, BlockedError) else set()
    named: set[str] = set()
    if data[:4] == b"PK\x03\x04":
        with contextlib.suppress(DamagedError, UnsafeError, struct.error):
            start, size, _ = _zip_members(data).get(b"data.pkl", (0, 0, 0))
            named = globals_named(io.BytesIO(data[start : start + min(size, MAX_PICKLE_BYTES)]), 1)
    else:
        named = globals_named(io.BytesIO(data), 5)
    if blocked := blocked | (named - Machine.NAMES):
        blocked |= named & {"torch._tensor._rebuild_from_type_v2"}  # which calls what it is given
        names = sorted(name if name.isprintable() and len(name) < 200 else ascii(name)[:200] for name in blocked)
        shown = ", ".join(names[:50]) + (f" and {len(names) - 50} more" if len(names) > 50 else "")
        return UnsafeCheckpointError(
            f"{path}: refused, and nothing of it was run: it asks for {shown}, which no checkpoint of weights needs. If you know who "
            "made it, ask for a safetensors file, or for one that holds tensors alone: torch.save(model.state_dict(), path)."
        )
    if isinstance(error, UnsafeError):
        return UnsafeCheckpointError(
            f"{path}: refused, and nothing of it was run: {error}. If you know who made it, ask for a safetensors file, or for one "
            "that holds tensors alone: torch.save(model.state_dict(), path)."
        )
    return CheckpointError(f"{path} is damaged or no checkpoint: {error}. Delete it and get it again.")


def _safetensors(path: Path, data: Bytes) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a file that is mapped, by its path, or of bytes in memory, from them."""
    length = struct.unpack_from("<Q", data)[0]
    if length > len(data) - 8:
        raise CheckpointError(f"{path} is damaged: its header ends beyond the file. It is cut short: delete it and get it again.")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(f"{path} has a header of {length} bytes; at most {MAX_HEADER_BYTES} are read. It is no UPerNet.")
    if (count := data[8 : 8 + length].count(b'"dtype"')) > MAX_TENSORS:
        raise CheckpointError(f"{path} has {count} tensors; at most {MAX_TENSORS} are read. It is no UPerNet.")
    from safetensors import safe_open
    from safetensors.torch import load

    try:
        if isinstance(data, bytes):
            return load(data), json.loads(data[8 : 8 + length]).get("__metadata__", {})
        with safe_open(str(path), framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except Exception as error:  # SafetensorError, and what torch makes of a dtype that it does not have
        raise CheckpointError(f"{path} is damaged: {error}. Delete it and get it again.") from None


def read_safetensors(source: str | os.PathLike | files.Content) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a safetensors file by name (CPU), and the metadata of its header; those of a path are mapped into memory.

    Raises:
        MissingFileError: no such file.
        CheckpointError: it is damaged, or is no safetensors file.
    """
    with _opened(source) as (path, data):
        if not _is_safetensors(data):
            raise CheckpointError(f"{path} {_kind(data) or 'is not a safetensors file. Delete it and get it again.'}")
        return _safetensors(path, data)


def read_content(path: str | os.PathLike) -> files.Content:
    """The bytes of a checkpoint file, read once, to be hashed and given to `read`: what is verified is then what is loaded.

    Raises:
        MissingFileError: no such file.
        CheckpointError: it cannot be read, or does not fit into memory.
    """
    with _opened(path) as (path, data):
        try:
            return files.read_content(path)
        except MemoryError:
            raise CheckpointError(f"{path}: its {files.size_text(len(data))} do not fit into the memory of this machine.") from None


def read(source: str | os.PathLike | files.Content) -> dict[str, Any]:
    """The top-level dict of a checkpoint file, its tensors on the CPU; those of a safetensors file by name.

    What is scanned and loaded is one reading of the file, so nothing that happens to the file meanwhile, or later, has an effect.
    NumPy numbers and arrays come back as such; mmengine's history buffers are empty.

    Args:
        source: the path of a file, or what `read_content` read of it.

    Raises:
        MissingFileError: no such file.
        UnsafeCheckpointError: it names a global that is not in the table, or asks for more memory than its size allows.
        CheckpointError: it is damaged, or is no checkpoint at all.
    """
    if not isinstance(source, files.Content):
        with _opened(source) as (path, data):
            if _is_safetensors(data):
                return _safetensors(path, data)[0]
            _check(path, data)  # what would be refused is not read into memory first: it may be a trap that is larger than that
        source = read_content(path)
    path, data = source.path, source.data
    if _is_safetensors(data):
        return _safetensors(path, data)[0]
    used = _check(path, data)
    import torch

    try:
        with _allowed(used & _STAND_INS):
            content: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return content
    except Exception as error:  # whatever torch makes of a file that passed: its message is the cause
        cause = str(error).strip().split("\n")[0][:200] or type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # torch's text advises to load it unsafely
            cause = "its pickle is not one that torch's safe unpickler takes"
        raise CheckpointError(f"{path} is damaged: torch cannot read it ({cause}). Delete it and get it again.") from error


def _check(path: Path, data: Bytes) -> set[str]:
    """The globals that a file of torch.save uses, when it has been found to be safe and whole."""
    if (kind := _kind(data)) is not None:
        raise CheckpointError(f"{path} {kind}")
    try:
        if data[:4] == b"PK\x03\x04":
            return _check_zip(data)
        if data[: len(_MAGIC)] == _MAGIC:
            return _check_legacy(data)
        if data[:1] == b"\x80":  # a pickle, though not one of torch.save: it may have something to hide
            Machine(len(data)).run(data, 0, len(data))
        raise DamagedError("it does not begin as a file of torch.save or safetensors does")
    except struct.error:
        raise _refuse(path, data, DamagedError("its directory is damaged")) from None
    except (DamagedError, UnsafeError) as error:
        raise _refuse(path, data, error) from None


def _path(path: str | os.PathLike) -> Path:
    """The path, if it can be one at all."""
    try:
        found = files.expanded(path)
        found.stat()
    except (TypeError, ValueError) as error:  # no path at all, a NUL in it, no home
        raise MissingFileError(f"No checkpoint file at {path!r}: {error}.") from None
    except OSError:
        pass  # `_opened` says which
    return found
