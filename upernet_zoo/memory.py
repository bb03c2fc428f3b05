"""How much memory there still is."""

from __future__ import annotations

from pathlib import Path

import torch

_OWN_CGROUPS, _CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def available(device: torch.device) -> int | None:
    """Bytes that this process can still take on a device; None where that cannot be known (not Linux, not CUDA)."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    found = [_machine(), *_containers()]
    return min((free for free in found if free is not None), default=None)


def _machine() -> int | None:
    """What the kernel says can be taken without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return None


def _containers() -> list[int]:
    """What is left below the limit of each control group around this process (containers, job schedulers), version 2 and 1."""
    try:
        groups = [line.split(":", 2) for line in _OWN_CGROUPS.read_text().splitlines()]
    except OSError:
        return []
    found = []
    for _, controllers, path in groups:
        if controllers in ("", "memory"):
            root = _CGROUPS / controllers
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
            inner = root / path.lstrip("/")
            for folder in (inner, *inner.parents):
                if not folder.is_relative_to(root):
                    break
                try:
                    limit, used = (int((folder / name).read_text()) for name in names)  # "max" is no number: no limit
                    statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                    found.append(limit - used + int(statistics.get("inactive_file", 0)))  # the page cache gives way
                except (OSError, ValueError):
                    continue
    return found
