"""What every record in results/ carries: date, command, versions and machine."""

import contextlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent.parent / "results"


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _shown(argument: str) -> str:
    """An argument without the folders that only this machine has."""
    name, _, path = argument.rpartition("=")
    if not Path(path).is_absolute():
        return argument
    path = os.path.relpath(path)
    return f"{name}{'=' if name else ''}{Path('...', Path(path).name) if path.startswith('..') else path}"


def status(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


@contextlib.contextmanager
def memory_and_time(pixels: int) -> Iterator[dict[str, float]]:
    """What segmenting so many pixels takes: the dict is filled at the end.

    `loaded_MB` is the process before, `peak_above_MB` the kernel's high-water mark of resident memory (VmHWM), reset before, above it.
    """
    found: dict[str, float] = {}
    Path("/proc/self/clear_refs").write_text("5")  # peak := now
    before, start = status("VmRSS"), time.perf_counter()
    yield found
    seconds = time.perf_counter() - start
    found |= {"loaded_MB": round(before / 1e6), "peak_above_MB": round((status("VmHWM") - before) / 1e6)}
    found |= {"seconds": round(seconds, 1), "seconds_per_megapixel": round(seconds / pixels * 1e6, 3)}


def conditions(packages: tuple[str, ...] = ("torch", "numpy", "pillow", "safetensors")) -> dict[str, Any]:
    """Date, command line, versions and machine of this process."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join(["python", *map(_shown, sys.argv)]),
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}},
        "machine": {"cpu": cpu_model(), "cores": os.cpu_count(), "system": f"{platform.system()} {platform.machine()}"},
    }


def record(name: str, results: dict[str, Any], **settings: Any) -> Path:
    """Write results/<name>.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**conditions(), "settings": settings, "results": results}, indent=2) + "\n", encoding="utf-8")
    return path
