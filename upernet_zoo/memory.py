"""How much memory there still is, and what to say where it was not enough. torch is imported for a GPU alone."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import NotEnoughMemoryError

if TYPE_CHECKING:
    import torch

__all__ = ["available", "refused"]

_OWN_CGROUPS, _CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
_STATUS = Path("/proc/self/status")
_NOT_ALLOCATED = ("allocate memory", "out of memory", "not enough memory")  # what torch's many allocators say


def available(device: torch.device | None) -> int | None:
    """Bytes that this process can still take on a device, or in main memory (None); None where that cannot be known.

    Of main memory the least of: what the machine has, what the control groups around the process leave (containers, job schedulers),
    and what its own limits leave (`ulimit -v`, `ulimit -d`). Known on Linux and on CUDA.
    """
    kind = "cpu" if device is None else device.type
    if kind == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if kind != "cpu":
        return None
    found = [_machine(), *_containers(), *_limits()]
    return min((free for free in found if free is not None), default=None)


def ran_out_in_onnxruntime(error: Exception) -> bool:
    """Whether an error of ONNX Runtime, whose errors have one class for everything, says that no memory was left."""
    return any(words in str(error) for words in ("allocate memory", "bad_alloc"))


@contextlib.contextmanager
def refused(what: str) -> Iterator[None]:
    """Turn an allocation that failed, of Python, NumPy or torch, into a NotEnoughMemoryError about `what`.

    Raises:
        NotEnoughMemoryError: with the way out.
    """
    try:
        yield
    except NotEnoughMemoryError:
        raise
    except (MemoryError, RuntimeError, OSError) as error:
        text = str(error).lower()
        system = isinstance(error, OSError) and error.errno == errno.ENOMEM
        torchs = isinstance(error, RuntimeError) and any(words in text for words in _NOT_ALLOCATED)
        if not (isinstance(error, MemoryError) or system or torchs):
            raise
        raise NotEnoughMemoryError(
            f"{what}: the memory of this process ran out ({str(error).splitlines()[0] if text else 'MemoryError'}). Give it more "
            "(ulimit -v, the container's or the job's limit), or take a smaller picture."
        ) from None


def _machine() -> int | None:
    """What the kernel says can be taken without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return None


def _limits() -> list[int]:
    """What is left below each limit that was set for this process."""
    try:
        import resource

        status = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
        found = []
        for limit, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
            most = resource.getrlimit(limit)[0]
            if most != resource.RLIM_INFINITY:
                found.append(max(0, most - int(status[name].split()[0]) * 1024))
        return found
    except (ImportError, OSError, ValueError, KeyError):  # not Linux
        return []


def _containers() -> list[int]:
    """What is left below the limit of each control group around this process, version 2 and 1."""
    try:
        groups = [line.split(":", 2) for line in _OWN_CGROUPS.read_text().splitlines()]
    except OSError:
        return []
    found = []
    for _, controllers, path in groups:
        if not controllers or "memory" in controllers.split(","):
            root = _CGROUPS / "memory" if controllers else _CGROUPS
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
            # the page cache of the group and those within, which can be taken back
            caches = [("total_" if controllers else "") + kind for kind in ("active_file", "inactive_file")]
            inner = root / path.lstrip("/")
            for folder in (inner, *inner.parents):
                if not folder.is_relative_to(root):
                    break
                try:
                    limit, used = (int((folder / name).read_text()) for name in names)  # "max" is no number: no limit
                    statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                    found.append(limit - used + sum(int(statistics.get(name, 0)) for name in caches))
                except (OSError, ValueError):
                    continue
    return found
