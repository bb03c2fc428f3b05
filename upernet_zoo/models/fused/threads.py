"""How many of torch's threads a model should use now: fewer than it has where other programs, or a limit, leave it fewer cores.

A model is thousands of small steps, at the end of each of which all threads wait for the last one. One thread without a core of its own
makes all others wait for the scheduler at every step, so on a busy machine fewer threads are faster.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch

__all__ = ["core_limit", "fewer_if_busy", "free_cores"]

_ROOT = Path("/")  # of the files that Linux tells these things in; another in tests
_LOOKS, _BETWEEN = 3, 0.002  # how often to look before others count, and the seconds between: what runs for a moment does not
_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # of the environment, by which a user has settled the number

_lock = threading.Lock()
_inside = threading.local()
_calls = 0  # that have changed the number, in any thread
_own = 1  # the number before the first of them did


@functools.cache
def core_limit() -> float:
    """How many cores this process may use by the scheduler's affinity and by the quotas of its control groups (versions 1 and 2)."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([float(affinity), *_quotas()])


def _quotas() -> Iterator[float]:
    """Of each control group that this process is in, from the innermost out. In a container the mount's root may be its own group."""
    mounts = _ROOT / "sys/fs/cgroup"
    for line in _read(_ROOT / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        for mount in (mounts / controllers, mounts / "cpu") if controllers else (mounts, mounts / "unified"):
            group = mount / path.strip("/")
            for folder in (group, *group.parents):
                if controllers:
                    values = [_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")]
                else:
                    values = _read(folder / "cpu.max").split()
                with contextlib.suppress(ValueError, ZeroDivisionError):  # "max", a file that is not there
                    quota, period = map(int, values)
                    if quota > 0:
                        yield quota / period
                if folder == mount:
                    break


def free_cores() -> float:
    """How many cores no other program is using at the moment; all where the system does not tell."""
    cores = os.cpu_count() or 1
    fields = _read(_ROOT / "proc/loadavg").split()
    try:
        running = int(fields[3].partition("/")[0])
    except (IndexError, ValueError):
        return cores
    if running <= 1:
        return cores
    states = (_read(task / "stat").rpartition(")")[2].split() for task in _tasks())
    return cores - max(0, running - sum(state[:1] == ["R"] for state in states))


def _tasks() -> list[Path]:
    """A folder of each of this process's threads."""
    try:
        return list((_ROOT / "proc/self/task").iterdir())
    except OSError:
        return []


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _wanted(own: int) -> int:
    """How many of a thread's own number of threads to use now."""
    most = min(own, max(1, math.floor(core_limit() + 0.5)))
    found = 0
    for look in range(_LOOKS):
        if look:
            time.sleep(_BETWEEN)
        found = max(found, min(most, max(1, math.floor(free_cores()))))
        if found == most:
            break
    return found


@contextlib.contextmanager
def fewer_if_busy() -> Iterator[None]:
    """Run torch with fewer threads than it has while there are no cores for them, and give it back its number at the end.

    Never more threads than `torch.get_num_threads()` has. Nothing is changed where OMP_NUM_THREADS or MKL_NUM_THREADS is set, nor by
    a call within another.
    """
    if getattr(_inside, "yes", False) or any(name in os.environ for name in _SETTINGS):
        yield
        return
    _inside.yes = True
    try:
        with _changed():
            yield
    finally:
        _inside.yes = False


@contextlib.contextmanager
def _changed() -> Iterator[None]:
    global _calls, _own
    with _lock:
        own = torch.get_num_threads()  # asked in any case: it also makes torch settle the number for a thread that is new to it
        own = _own if _calls else own
    wanted = _wanted(own) if own > 1 else own
    if wanted == own:
        yield
        return
    with _lock:  # another thread may be here: what it has set is not what is to be given back
        _own, _calls = own, _calls + 1
        torch.set_num_threads(wanted)
    try:
        yield
    finally:
        with _lock:
            _calls -= 1
            torch.set_num_threads(own)
