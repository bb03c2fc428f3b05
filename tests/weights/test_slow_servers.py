"""Servers that keep a transfer waiting for ever, each in its own way: every one is given up, and the next source is asked."""

import shutil
import threading
import time

import pytest
from support.endless import endless
from support.servers import Fault, Server, certificate
from support.stand_in import DATA, FILE, PATH, clear_environment, lose_patience, make_entry
from support.waiting import until

from upernet_zoo import errors
from upernet_zoo.weights import connect, download, sources
from upernet_zoo.weights import partial as partials

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
LIMIT = 60.0  # seconds; these servers never end, and are given up after 2 attempts of 2 s here; the machine may be busy

# what is sent first, and then again and again with a wait between (number -> bytes)
SLOW = {
    "status line": (b"HTTP/1.1 ", lambda n: b"2", 0.1),
    "header": (OK + b"X: ", lambda n: b"a", 0.1),
    "distinct headers": (OK, lambda n: b"X-%d: y\r\n" % n, 0.1),
    "100 Continue": (b"", lambda n: b"HTTP/1.1 100 Continue\r\n\r\n", 0.1),
    "100 Continue at full speed": (b"", lambda n: b"HTTP/1.1 100 Continue\r\n\r\n" * 100, 0.0),
    "chunk size": (CHUNKED + b"4;", lambda n: b"x", 0.1),
    "chunk extensions": (CHUNKED + b"400;", lambda n: b"name%d=value;" % n, 0.1),
    "trailers": (CHUNKED + b"40000\r\n" + DATA + b"\r\n0\r\n", lambda n: b"X: y\r\n", 0.1),
    "body under the floor": (OK + b"Content-Length: 262144\r\n\r\n", lambda n: DATA[n * 300 : n * 300 + 300], 0.1),
    "body in chunks under the floor": (CHUNKED, lambda n: b"12c\r\n" + DATA[:300] + b"\r\n", 0.1),
    "body of a redirect to it": (b"HTTP/1.1 302 Found\r\nX: ", lambda n: b"a", 0.1),
}


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    clear_environment(monkeypatch, tmp_path)
    lose_patience(monkeypatch, attempts=2, stall_bytes=16384)
    connect.forget()


@pytest.mark.parametrize("kind", SLOW)
def test_is_given_up_and_the_next_source_asked(kind, tmp_path):
    with endless(*SLOW[kind]) as (slow, taken), Server({PATH: DATA}) as good:
        started = time.monotonic()
        found = sources.fetch(make_entry("http://zoo.invalid" + PATH), mirrors=[f"{slow}/{FILE}", good.url + PATH], progress=False)
        assert time.monotonic() - started < LIMIT
    assert found.source == good.url + PATH and found.path.read_bytes() == DATA
    assert taken


@pytest.mark.parametrize("kind", ["header", "trailers"])
def test_through_tls_too(kind, tmp_path, monkeypatch):
    if not shutil.which("openssl"):
        pytest.skip("needs the openssl command")
    pair = certificate(tmp_path / "tls")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(pair[0]))
    with endless(*SLOW[kind], tls=pair) as (slow, taken):
        started = time.monotonic()
        with pytest.raises(errors.DownloadError, match="no answer from|stalled"):
            download.download(f"{slow}/{FILE}", tmp_path / "partial", progress=False)
        assert time.monotonic() - started < LIMIT
    assert taken


def test_through_a_proxy_that_never_ends_its_answer(tmp_path, monkeypatch):
    with endless(b"HTTP/1.1 200 Connection established\r\nX: ", lambda n: b"a", 0.1) as (proxy, taken):
        monkeypatch.setenv("https_proxy", proxy)
        started = time.monotonic()
        with pytest.raises(errors.DownloadError):
            download.download("https://zoo.invalid" + PATH, tmp_path / "partial", progress=False)
        assert time.monotonic() - started < LIMIT
    assert taken


def test_the_lock_is_let_go(tmp_path):
    """What waits for the same file gets its turn when the first has given up."""
    with endless(*SLOW["header"]) as (slow, taken), Server({PATH: DATA}) as good:

        def refused():
            with pytest.raises(errors.DownloadError):
                sources.fetch(make_entry(f"{slow}/{FILE}"), progress=False)

        first = threading.Thread(target=refused)
        first.start()
        until(lambda: taken)  # it holds the lock then
        started = time.monotonic()
        assert sources.fetch(make_entry(good.url + PATH), progress=False).path.read_bytes() == DATA
        assert 1.0 < time.monotonic() - started < LIMIT
        first.join()


def test_a_slow_and_steady_server_is_not_given_up(tmp_path, monkeypatch):
    """Above the floor all the way, and longer than the stall limit, which is longer than a busy machine stands still."""
    lose_patience(monkeypatch, read_timeout=6.0, stall_seconds=6.0, stall_bytes=16384)
    with Server({PATH: DATA}) as steady:
        steady.always[PATH] = Fault(trickle=(8192, 0.4))
        started = time.monotonic()
        got = download.download(steady.url + PATH, tmp_path / "partial", progress=False)
    assert got == partials.Transfer(got.sha256, len(DATA), resumed=False)
    assert time.monotonic() - started > 2 * download.SETTINGS.stall_seconds


def test_headers_for_one_host_do_not_follow_a_redirect(tmp_path):
    """A token goes to the Hub, and not to the storage that it sends one to."""
    with Server({PATH: DATA}) as storage, Server() as hub:
        hub.always["/file"] = Fault(status=302, headers={"Location": storage.url + PATH})
        with partials.Partial(tmp_path / "partial") as part:
            got = download.bring(hub.url + "/file", part, progress=False, headers={"Authorization": "Bearer secret"})
        assert got.size == len(DATA)
        assert hub.requests[0].headers["Authorization"] == "Bearer secret"
        assert "Authorization" not in storage.requests[0].headers
