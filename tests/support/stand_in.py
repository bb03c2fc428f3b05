"""A stand-in model with a file of no known format, a transfer engine of few attempts, and `fetch` in a process of its own.

As a script, `stand_in.py '{"url": ..., "sha256": ..., "cache_dir": ...}'` fetches the file and prints, as JSON, the error's class and
message (or null and the path) and what is in the cache. More keys: see `_main`.
"""

import dataclasses
import functools
import hashlib
import json
import os
import sys
from pathlib import Path

from upernet_zoo import errors, index
from upernet_zoo.weights import download, sources

DATA = bytes(range(256)) * 1024
DIGEST = hashlib.sha256(DATA).hexdigest()
OTHER = DATA[::-1]
FILE = f"upernet_test_20200101_000000-{DIGEST[:8]}.pth"
PATH = f"/models/v0.5/{FILE}"
# Few attempts with short waits between them. With a server that lives it is as patient as the library: the machine may be busy.
QUICK = dict(attempts=3, backoff=0.01, longest_wait=2.0, stall_bytes=4096, spare=0)
SILENCE = 2.0  # seconds after which a server that says nothing is given up, in a test of one
ROOT = Path(index.__file__).resolve().parent.parent


@functools.cache
def _real_entry():
    return index.load(ROOT / "model_index.yml").info("upernet_r50_512x512_160k_ade20k")


def make_entry(url, sha256=DIGEST[:8], mirrors=(), hub_org=None):
    """An entry of the real index with other mirrors and another digest."""
    return dataclasses.replace(_real_entry(), weights=url, sha256=sha256, mirrors=tuple(mirrors), hub_org=hub_org)


def clear_environment(monkeypatch, tmp_path):
    """A machine of its own: no variable of the user's, an empty home, few attempts with short waits."""
    for name in list(os.environ):
        if name.upper().endswith("_PROXY") or name.startswith(("UPERNET_ZOO_", "HF_", "TORCH_HOME", "XDG_CACHE_HOME")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("UPERNET_ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "SETTINGS", dataclasses.replace(download.SETTINGS, **QUICK))


def lose_patience(monkeypatch, **more):
    """For a test of a server that falls silent, or nearly so; also other fields of the transfer engine's settings."""
    changes = {"read_timeout": SILENCE, "stall_seconds": SILENCE} | more
    monkeypatch.setattr(download, "SETTINGS", dataclasses.replace(download.SETTINGS, **changes))


def rewrite(path, content):
    """Write other content, a second later: a file system may stamp what is written in one moment alike."""
    later = path.stat().st_mtime_ns + 10**9
    path.write_bytes(content)
    os.utime(path, ns=(later, later))


def listing(folder):
    return sorted(p.name for p in Path(folder).iterdir()) if Path(folder).is_dir() else []


def command(**order):
    """Command line that fetches in a process of its own."""
    return [sys.executable, str(Path(__file__).resolve()), json.dumps(order, default=str)]


def process_environment():
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def _main(url, sha256, cache_dir, limit=None, nobody=False, quick=True, progress=False, hub_org=None):
    model = make_entry(url, sha256, hub_org=hub_org)
    if quick:
        download.SETTINGS = dataclasses.replace(download.SETTINGS, **QUICK)
    if limit:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if nobody and os.getuid() == 0:
        # root may write everywhere; what is imported lazily is imported before the new user cannot read it
        import encodings.idna  # noqa: F401
        import netrc  # noqa: F401

        import requests  # noqa: F401
        import tqdm  # noqa: F401

        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    try:
        outcome, message = None, str(sources.fetch(model, cache_dir=cache_dir, progress=progress).path)
    except errors.UPerNetZooError as error:
        outcome, message = type(error).__name__, str(error)
    print(json.dumps({"error": outcome, "message": message, "left": listing(Path(cache_dir) / "checkpoints")}))


if __name__ == "__main__":
    _main(**json.loads(sys.argv[1]))
