"""Every fault of docs/faults.md against real servers and real full, limited and read-only folders; the table is what is asserted."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
import warnings
from pathlib import Path

import pytest
from support.servers import Fault, File, Server, certificate, nobody
from support.stand_in import (
    DATA,
    DIGEST,
    FILE,
    OTHER,
    PATH,
    ROOT,
    clear_environment,
    command,
    listing,
    lose_patience,
    make_entry,
    process_environment,
    rewrite,
)

from upernet_zoo import errors
from upernet_zoo.weights import cache, sources

SIZE = len(DATA)
BYSTANDER = {"upernet_other-01234567.pth": b"another model's file", "upernet_other-01234567.pth.json": b"{}"}
ENDINGS = {"nothing": [], "file": ["", ".json"], "receipt": [".json"], "partial": [".partial", ".partial.state"], "aside": []}
FAULTS = {}


def fault(name):
    def register(function):
        FAULTS[name] = function
        return function

    return register


def table():
    """Rows of docs/faults.md: fault -> (outcome, message, what is left)."""
    lines = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][1:]
    return {name: (outcome, message.strip("`"), left) for name, outcome, message, left in rows}


class Case:
    """One test's machine: a server that has the file, a model whose origin it is, and a cache with a bystander's file in it."""

    def __init__(self, server, tmp_path, monkeypatch):
        self.server, self.tmp_path, self.environment = server, tmp_path, monkeypatch
        self.model = make_entry(server.url + PATH)
        self.left = None
        self.use_cache(tmp_path / "cache")

    def use_cache(self, root):
        self.root, self.folder = root, root / "checkpoints"
        self.folder.mkdir(parents=True)
        for name, content in BYSTANDER.items():
            (self.folder / name).write_bytes(content)

    def once(self, *faults):
        self.server.faults[PATH] = list(faults)

    def always(self, **what):
        self.server.always[PATH] = Fault(**what)

    def fetch(self, **options):
        found = sources.fetch(self.model, cache_dir=self.root, progress=False, **options)
        assert found.path.read_bytes() == DATA and found.sha256 == DIGEST and found.size == SIZE
        return found

    def statuses(self):
        return [request.status for request in self.server.requests]

    def elsewhere(self, *before, **order):
        """`fetch` in a process of its own, started by the command `before`; its error is raised here."""
        order = {"url": self.model.weights, "sha256": self.model.sha256, "cache_dir": self.root} | order
        done = subprocess.run([*before, *command(**order)], env=process_environment(), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        self.left = [name for name in answer["left"] if name not in BYSTANDER]
        if answer["error"]:
            raise getattr(errors, answer["error"])(answer["message"])
        assert Path(answer["message"]).read_bytes() == DATA

    def on_tmpfs(self, size, **order):
        """The same with a real file system of that size for the cache."""
        shutil.rmtree(self.root)
        self.root.mkdir()
        unshare = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--map-root-user"])]
        mount = f"mount -t tmpfs -o size={size} tmpfs {self.root}"
        if subprocess.run([*unshare, "sh", "-c", mount], capture_output=True).returncode:
            pytest.skip("this machine does not let the test mount a small file system")
        try:
            self.elsewhere(*unshare, "sh", "-c", f'{mount} && exec "$@"', "sh", **order)
        finally:
            shutil.rmtree(self.root)
            self.use_cache(self.root)


@pytest.fixture
def case(tmp_path, monkeypatch):
    clear_environment(monkeypatch, tmp_path)
    with Server({PATH: DATA}) as server:
        yield Case(server, tmp_path, monkeypatch)


def pattern(message):
    return ".*".join(re.escape(part) for part in message.split("…"))


def test_table_is_complete():
    assert list(table()) == list(FAULTS)


@pytest.mark.parametrize("name", FAULTS)
def test_fault(name, case):
    outcome, message, left = table()[name]
    expected = [FILE + ending for what in left.split(", ") for ending in ENDINGS[what]]
    if outcome.endswith("Error"):
        with warnings.catch_warnings(), pytest.raises(errors.UPerNetZooError) as caught:
            warnings.simplefilter("ignore")
            FAULTS[name](case)
        assert type(caught.value).__name__ == outcome
        assert re.search(pattern(message), str(caught.value)), str(caught.value)
        if outcome != "CacheError":
            assert caught.value.args[0].startswith(case.model.name) and FILE in str(caught.value)
    else:
        assert outcome.split(",")[0].startswith(("fetched", "taken"))
        FAULTS[name](case)
    found = case.left if case.left is not None else [n for n in listing(case.folder) if n not in BYSTANDER]
    aside = [n for n in found if re.fullmatch(re.escape(FILE) + r"\.bad-[0-9a-f]{8}", n)]
    assert len(aside) == ("aside" in left.split(", "))
    assert sorted(set(found) - set(aside)) == sorted(expected)
    if case.folder.exists():
        assert {n: (case.folder / n).read_bytes() for n in BYSTANDER} == BYSTANDER


@fault("connection refused")
def _(case):
    with nobody() as url:
        case.model = make_entry(url + PATH)
        case.fetch()


@fault("DNS failure")
def _(case):
    case.model = make_entry("http://zoo.invalid" + PATH)  # RFC 2606: a name that never exists
    case.fetch()


@fault("no answer to the request")
def _(case):
    lose_patience(case.environment)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        case.model = make_entry(f"http://127.0.0.1:{silent.getsockname()[1]}{PATH}")
        case.fetch()


@contextlib.contextmanager
def https(case, **dates):
    if not shutil.which("openssl"):
        pytest.skip("needs the openssl command")
    pair = certificate(case.tmp_path / "tls", **dates)
    with Server({PATH: DATA}, tls=pair) as server:
        case.model = make_entry(server.url + PATH)
        yield server, pair[0]
        assert len(server.requests) <= 1


@fault("TLS: unknown certificate")
def _(case):
    with https(case):
        case.fetch()


@fault("TLS: expired certificate")
def _(case):
    with https(case, start="20240801000000Z", end="20250801000000Z") as (_, authority):
        case.environment.setenv("REQUESTS_CA_BUNDLE", str(authority))
        case.fetch()


@fault("proxy does not answer")
def _(case):
    with nobody() as url:
        case.environment.setenv("http_proxy", url)
        case.fetch()


@fault("redirect from https to http")
def _(case):
    with https(case) as (server, authority):
        case.environment.setenv("REQUESTS_CA_BUNDLE", str(authority))
        server.always[PATH] = Fault(status=302, headers={"Location": case.server.url + PATH})
        try:
            case.fetch()
        finally:
            assert not case.server.requests


@fault("redirects without end")
def _(case):
    case.always(status=302, headers={"Location": PATH})
    case.fetch()


@fault("403")
def _(case):
    case.always(status=403)
    try:
        case.fetch()
    finally:
        assert len(case.server.requests) == 1


@fault("404")
def _(case):
    del case.server.files[PATH]
    case.fetch()


@fault("429 with Retry-After")
def _(case):
    case.once(Fault(status=429, headers={"Retry-After": "1"}))
    started = time.monotonic()
    case.fetch()
    assert 1.0 <= time.monotonic() - started < 60.0
    assert case.statuses() == [429, 200]


@fault("429 with a Retry-After of an hour")
def _(case):
    case.always(status=429, headers={"Retry-After": "3600"})
    case.fetch()


@fault("500 then 200")
def _(case):
    case.once(Fault(status=500))
    case.fetch()
    assert case.statuses() == [500, 200]


@fault("503 for good")
def _(case):
    case.always(status=503)
    case.fetch()


@fault("cut at every tenth of the file")
def _(case):
    case.once(*(Fault(cut=SIZE // 10) for _ in range(10)))
    case.fetch()
    assert case.server.sent == SIZE
    assert case.statuses() == [200] + 10 * [206]
    starts = [r.headers.get("Range") for r in case.server.requests]
    assert starts == [None, *(f"bytes={n * (SIZE // 10)}-" for n in range(1, 11))]


@fault("cut at every tenth, server ignores Range")
def _(case):
    case.always(cut=SIZE // 10, ignore_range=True)
    case.fetch()


@fault("cut, then another source")
def _(case):
    case.once(Fault(cut=100_000), Fault(status=403))
    with Server({PATH: File(DATA, etag='"of its own"', modified=None)}) as second:
        case.model = make_entry(case.server.url + PATH, mirrors=[second.url + PATH])
        assert case.fetch().source == second.url + PATH
        assert (case.server.sent, second.sent) == (100_000, SIZE - 100_000)


@fault("cut without Content-Length")
def _(case):
    case.always(cut=100_000, ignore_range=True, chunked=True)
    case.fetch()


@fault("stall")
def _(case):
    lose_patience(case.environment)
    case.always(pause=(100_000, 30.0), ignore_range=True)
    case.fetch()


@fault("trickle")
def _(case):
    lose_patience(case.environment, read_timeout=60.0)  # that no byte comes for a while is another fault
    case.always(trickle=(100, 0.1))
    case.fetch()


@fault("stall, then a second call")
def _(case):
    lose_patience(case.environment)
    case.once(Fault(pause=(100_000, 30.0)), Fault(status=403))
    with pytest.raises(errors.DownloadError):
        case.fetch()
    assert (case.folder / (FILE + ".partial")).read_bytes() == DATA[:100_000]
    case.fetch()
    assert case.server.requests[-1].headers["Range"] == "bytes=100000-"
    assert case.server.requests[-1].headers["If-Range"] == case.server.files[PATH].etag


@fault("Content-Length too large")
def _(case):
    case.always(longer=1000)
    case.fetch()
    assert case.statuses() == [200, 416]


@fault("Content-Length too large, server ignores Range")
def _(case):
    case.always(longer=1000, ignore_range=True)
    case.fetch()


@fault("Content-Length too small")
def _(case):
    case.always(longer=-100_000)
    case.fetch()


@fault("Content-Length beyond all measure")
def _(case):
    case.always(longer=10**15 - SIZE)
    case.fetch()


@fault("file changed between ranges")
def _(case):
    case.server.put(PATH, OTHER)
    case.once(Fault(cut=100_000, after=lambda: case.server.put(PATH, DATA)))
    case.fetch()
    assert case.statuses() == [200, 200]


@fault("file changed, ETag unchanged")
def _(case):
    case.server.put(PATH, File(OTHER, etag='"same"'))
    case.once(Fault(cut=100_000, after=lambda: case.server.put(PATH, File(DATA, etag='"same"'))))
    case.fetch()
    assert case.statuses() == [200, 206, 200]


@fault("server ignores Range")
def _(case):
    case.once(Fault(cut=100_000), Fault(ignore_range=True))
    case.fetch()
    assert case.statuses() == [200, 200]


@fault("answer begins at another byte than asked")
def _(case):
    case.once(Fault(cut=100_000), Fault(wrong_range=True))
    case.fetch()
    assert case.statuses() == [200, 206, 200]


def partial(case, content, **state):
    (case.folder / (FILE + ".partial")).write_bytes(content)
    known = {"url": case.model.weights, "etag": case.server.files[PATH].etag, "modified": None, "size": None}
    (case.folder / (FILE + ".partial.state")).write_text(json.dumps(known | state))


@fault("partial is longer than the file")
def _(case):
    partial(case, DATA + DATA)
    case.fetch()
    assert case.statuses() == [416, 200]


@fault("partial is damaged")
def _(case):
    partial(case, bytes(100_000))
    case.fetch()
    assert case.statuses() == [206, 200]


@fault("HTML page with status 200")
def _(case):
    case.server.put(PATH, b"\n<!DOCTYPE html><html><title>This domain is for sale</title></html>" + b" " * 10_000)
    case.fetch()


@fault("Git LFS pointer with status 200")
def _(case):
    case.server.put(PATH, f"version https://git-lfs.github.com/spec/v1\noid sha256:{DIGEST}\nsize {SIZE}\n".encode())
    case.fetch()


@fault("empty file")
def _(case):
    case.server.put(PATH, b"")
    case.fetch()


@fault("wrong digest")
def _(case):
    case.server.put(PATH, OTHER)
    case.fetch()


@fault("wrong digest, then a right source")
def _(case):
    case.server.put(PATH, OTHER)
    with Server({PATH: DATA}) as second:
        case.model = make_entry(case.server.url + PATH, mirrors=[second.url + PATH])
        assert case.fetch().source == second.url + PATH


@fault("another file than the pinned one")
def _(case):
    receipt = cache.Receipt(DIGEST[:8] + 56 * "0", SIZE, 0, "the first download")
    (case.folder / (FILE + ".json")).write_text(json.dumps(vars(receipt)))
    case.fetch()


@fault("cached file damaged")
def _(case):
    path = case.fetch().path
    rewrite(path, OTHER)
    with pytest.warns(UserWarning, match="SHA-256 is not the expected one"):
        assert case.fetch().source == case.model.weights
    assert len(case.server.requests) == 2


@fault("cached file damaged, no source")
def _(case):
    path = case.fetch().path
    rewrite(path, OTHER)
    case.always(status=404)
    try:
        case.fetch()
    finally:
        assert path.read_bytes() == OTHER


@fault("disk full before the first byte")
def _(case):
    case.on_tmpfs("128k")


@fault("disk full on the way")
def _(case):
    case.always(chunked=True)
    case.on_tmpfs("128k")


@fault("quota on the file size")
def _(case):
    case.elsewhere(limit=100_000)


@contextlib.contextmanager
def read_only(case):
    """A cache that its user cannot write: root may write everywhere, so there the process becomes another user."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        case.use_cache(Path(folder) / "cache")
        try:
            yield
        finally:
            case.root.chmod(0o755)
            case.folder.chmod(0o755)
            case.left = [n for n in listing(case.folder) if n not in BYSTANDER]
            assert {n: (case.folder / n).read_bytes() for n in BYSTANDER} == BYSTANDER


@fault("read-only cache")
def _(case):
    with read_only(case):
        case.folder.chmod(0o555)
        case.root.chmod(0o555)
        case.elsewhere(nobody=True)


@fault("read-only cache that has the file")
def _(case):
    with read_only(case):
        case.fetch()
        shutil.rmtree(case.root / "locks")
        case.folder.chmod(0o555)
        case.root.chmod(0o555)
        case.elsewhere(nobody=True)
        assert not (case.root / "locks").exists()


@fault("cache is a file")
def _(case):
    shutil.rmtree(case.root)
    case.root.write_text("not a folder")
    case.fetch()


@fault("offline")
def _(case):
    case.environment.setenv("UPERNET_ZOO_OFFLINE", "1")
    try:
        case.fetch()
    finally:
        assert not case.server.requests
