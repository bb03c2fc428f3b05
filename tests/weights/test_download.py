"""The transfer engine: resuming, waiting, redirects, proxies, limits. What `fetch` makes of its failures: test_faults.py."""

import dataclasses
import email.utils
import hashlib
import os
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.servers import Fault, File, Server
from support.stand_in import DATA, DIGEST, FILE, OTHER, PATH, clear_environment, command, listing, process_environment

from upernet_zoo import errors, files
from upernet_zoo.weights import download
from upernet_zoo.weights import partial as partials

SIZE = len(DATA)


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    clear_environment(monkeypatch, tmp_path)


@pytest.fixture
def partial(tmp_path):
    return tmp_path / "file.partial"


def bring(server, partial, path=PATH, **options):
    return download.download(server.url + path, partial, progress=False, **options)


def patient(**changes):
    return dataclasses.replace(download.SETTINGS, **changes)


def cut_once(server, partial, at=100_000):
    """A first call that leaves `at` bytes of the file."""
    server.faults[PATH] = [Fault(cut=at), Fault(status=403)]
    with pytest.raises(errors.DownloadError, match="HTTP 403"):
        bring(server, partial)
    assert partial.stat().st_size == at
    server.requests.clear()


def test_whole(server, partial):
    assert bring(server, partial) == partials.Transfer(DIGEST, SIZE, resumed=False)
    assert partial.read_bytes() == DATA
    (request,) = server.requests
    assert request.headers["Accept-Encoding"] == "identity" and request.headers["User-Agent"].startswith("upernet_zoo/")


@pytest.mark.parametrize("tenth", range(1, 10))
def test_resumed_at_every_tenth_by_a_later_call(server, partial, tenth):
    cut_once(server, partial, at=tenth * SIZE // 10)
    assert bring(server, partial) == partials.Transfer(DIGEST, SIZE, resumed=True)
    assert partial.read_bytes() == DATA
    (request,) = server.requests
    assert request.status == 206 and request.headers["Range"] == f"bytes={tenth * SIZE // 10}-"


@pytest.mark.parametrize(
    "etag, modified, condition",
    [
        ('"strong"', "Tue, 05 May 2020 10:00:00 GMT", '"strong"'),
        ('W/"weak"', "Tue, 05 May 2020 10:00:00 GMT", "Tue, 05 May 2020 10:00:00 GMT"),
        ('W/"weak"', None, None),
        (None, None, None),
    ],
)
def test_condition_of_a_range_request(server, partial, etag, modified, condition):
    """If-Range takes a strong ETag or a date: RFC 9110, 13.1.5."""
    server.put(PATH, File(DATA, etag, modified))
    cut_once(server, partial)
    assert bring(server, partial).sha256 == DIGEST
    assert [(r.status, r.headers.get("If-Range")) for r in server.requests] == [(206, condition)]


@pytest.mark.parametrize("what", [{"etag": '"other"'}, {"etag": 'W/"b"'}, {"modified": "Wed, 06 May 2020 10:00:00 GMT"}])
def test_changed_file_is_seen_without_a_condition(server, partial, what):
    """A server that heeds Range and not If-Range: its headers tell that the file is another one."""
    server.put(PATH, File(OTHER))
    cut_once(server, partial)
    server.put(PATH, File(DATA, **{"etag": server.files[PATH].etag} | what))
    server.heed_if_range = False
    assert bring(server, partial).sha256 == DIGEST
    assert [r.status for r in server.requests] == [206, 200]


def test_shorter_file_behind_the_url(server, partial):
    cut_once(server, partial)
    server.put(PATH, DATA[:50_000])
    assert bring(server, partial).size == 50_000
    server.requests.clear()
    assert bring(server, partial, path="/gone").size == 50_000 and not server.requests  # it was all here


def test_complete_partial_needs_no_request(server, partial):
    bring(server, partial)
    server.requests.clear()
    assert bring(server, partial) == partials.Transfer(DIGEST, SIZE, resumed=True)
    assert not server.requests


@pytest.mark.parametrize("state", [None, "", "{}", "[]", '{"url": 3}', '{"url": "x", "etag": null, "modified": null, "size": 10}'])
def test_partial_with_a_bad_state_is_not_used(server, partial, state):
    partial.write_bytes(DATA[:100])
    if state is not None:
        partials.state_path(partial).write_text(state)
    assert bring(server, partial) == partials.Transfer(DIGEST, SIZE, resumed=False)
    assert "Range" not in server.requests[0].headers


@pytest.mark.parametrize("page", [b"<html>moved</html>", b"<!DOCTYPE HTML>\n<p>sign in"])
def test_a_page_does_not_cost_the_partial(server, partial, page):
    cut_once(server, partial)
    server.faults[PATH] = [Fault(status=200, body=page)]
    with pytest.raises(errors.DownloadError, match="an HTML page"):
        bring(server, partial)
    assert partial.read_bytes() == DATA[:100_000]
    assert bring(server, partial).resumed


def test_a_page_by_its_type_alone(server, partial):
    server.faults[PATH] = [Fault(status=200, body=b"You are not signed in", headers={"Content-Type": "text/html; charset=utf-8"})]
    with pytest.raises(errors.DownloadError, match="an HTML page"):
        bring(server, partial)


def test_chunked(server, partial):
    server.always[PATH] = Fault(chunked=True)
    assert bring(server, partial) == partials.Transfer(DIGEST, SIZE, resumed=False)


def test_endless_answer(server, partial):
    server.always[PATH] = Fault(chunked=True)
    with pytest.raises(errors.DownloadError, match="goes on after its announced size, or after the 200 kB that are taken"):
        bring(server, partial, settings=patient(largest=200_000))
    assert listing(partial.parent) == []


def test_compressed_answer(server, partial):
    server.always[PATH] = Fault(headers={"Content-Encoding": "gzip"})
    with pytest.raises(errors.DownloadError, match="compressed"):
        bring(server, partial)


# waiting


def noted_waits(monkeypatch, sleep):
    """The seconds that this thread sleeps, and not the server's; `sleep` is done in place of it."""
    waits, own = [], threading.get_ident()

    def noted(seconds):
        if threading.get_ident() == own:
            waits.append(seconds)
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", noted)
    return waits


def test_retry_after_as_a_date(server, partial, monkeypatch):
    waits = noted_waits(monkeypatch, time.sleep)
    when = email.utils.formatdate(time.time() + 2, usegmt=True)
    server.faults[PATH] = [Fault(status=503, headers={"Retry-After": when})]
    assert bring(server, partial).sha256 == DIGEST
    assert email.utils.parsedate_to_datetime(when).timestamp() - 0.05 <= time.time()
    assert [request.status for request in server.requests] == [503, 200] and len(waits) == 1 and waits[0] <= 2


@given(st.integers(0, 10**9))
def test_retry_after_in_seconds(seconds):
    assert download._retry_after(f" {seconds} ") in (float(seconds), None) and download._retry_after(str(seconds % 1000)) == seconds % 1000


@given(st.text())
def test_retry_after_that_is_none(value):
    wait = download._retry_after(value)
    assert wait is None or wait >= 0


def test_waits_double_up_to_the_longest(server, partial, monkeypatch):
    waits = noted_waits(monkeypatch, lambda seconds: None)
    server.always[PATH] = Fault(status=500, body=b"x")
    with pytest.raises(errors.DownloadError, match="after 6 attempts"):
        bring(server, partial, settings=patient(attempts=6, backoff=1.0, longest_wait=5.0))
    assert waits == [1, 2, 4, 5, 5]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 418, 451, 501, 204, 304])
def test_status_that_is_not_asked_again(server, partial, status):
    server.always[PATH] = Fault(status=status)
    with pytest.raises(errors.DownloadError, match=f"HTTP {status}"):
        bring(server, partial)
    assert len(server.requests) == 1


# redirects, credentials, proxies


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("location", [PATH, "final", "//{host}" + PATH, "{url}" + PATH])
def test_redirects(server, partial, status, location):
    server.put("/a/final", DATA)
    location = location.format(host=server.url.split("//")[1], url=server.url)
    server.always["/a/old"] = Fault(status=status, headers={"Location": location})
    assert bring(server, partial, path="/a/old").sha256 == DIGEST
    assert len(server.requests) == 2


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "javascript:alert(1)"])
def test_redirects_to_other_schemes(server, partial, location):
    server.always[PATH] = Fault(status=302, headers={"Location": location})
    with pytest.raises(errors.DownloadError, match="which is not followed"):
        bring(server, partial)


def test_redirect_to_no_url(server, partial):
    server.always[PATH] = Fault(status=302, headers={"Location": "http://["})
    with pytest.raises(errors.DownloadError, match="redirected to what is no URL"):
        bring(server, partial)


def test_endless_redirect(server, partial):
    """The body of a redirect is not read."""
    server.put("/final", DATA)
    server.faults[PATH] = [Fault(status=302, headers={"Location": "/final"}, body=bytes(64 << 20))]
    assert bring(server, partial).sha256 == DIGEST
    assert server.sent < 32 << 20


def test_range_goes_along_with_a_redirect(server, partial):
    server.always["/old"] = Fault(status=302, headers={"Location": PATH})
    server.faults[PATH] = [Fault(cut=100_000)]
    assert bring(server, partial, path="/old") == partials.Transfer(DIGEST, SIZE, resumed=True)
    assert [r.status for r in server.requests] == [302, 200, 302, 206]
    assert server.sent == SIZE


def test_credentials_stay_with_their_host(server, partial):
    with Server({"/old": b""}) as first:
        other = server.url.replace("127.0.0.1", "localhost") + PATH
        first.always["/old"] = Fault(status=302, headers={"Location": other, "Set-Cookie": "session=1"})
        url = first.url.replace("http://", "http://user:password@") + "/old"
        assert download.download(url, partial, progress=False).sha256 == DIGEST
        assert first.requests[0].headers["Authorization"].startswith("Basic ")
    assert not {"Authorization", "Cookie"} & set(server.requests[0].headers)
    assert "password" not in partials.state_path(partial).read_text()


def test_proxy(server, partial, monkeypatch):
    url = "http://zoo.invalid" + PATH
    server.put(url, DATA)
    monkeypatch.setenv("http_proxy", server.url)
    assert download.download(url, partial, progress=False).sha256 == DIGEST
    assert server.paths() == [url]


# limits of the machine


def test_disk_space_is_asked_for_before_the_first_byte(server, partial):
    with pytest.raises(errors.CacheError, match="are free, 262 kB are to come and"):
        bring(server, partial, settings=patient(spare=1 << 60))
    assert listing(partial.parent) == []


def test_folder_that_is_not_there(server, partial):
    with pytest.raises(errors.CacheError, match="cannot be written"):
        bring(server, partial / "below")
    assert not server.requests


def test_memory_stays_small(tmp_path):
    import tracemalloc

    content = os.urandom(1 << 20) * 48
    with Server({"/big": content}) as server:
        tracemalloc.start()
        got = bring(server, tmp_path / "big", path="/big")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert got.sha256 == hashlib.sha256(content).hexdigest()
    assert peak < 24 << 20


# what people see


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
@pytest.mark.parametrize("progress", [True, False])
def test_progress_bar_on_a_terminal_only(server, tmp_path, progress):
    import fcntl
    import pty
    import struct
    import termios

    line = command(url=server.url + PATH, sha256=DIGEST[:8], cache_dir=tmp_path / "a", progress=progress)
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("4H", 24, 160, 0, 0))
    server.rate = 400_000
    subprocess.run(line, env=process_environment(), stderr=end, stdout=subprocess.DEVNULL, check=True)
    os.close(end)
    shown = b""
    try:
        while data := os.read(terminal, 65536):
            shown += data
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(terminal)
    assert (FILE.encode() in shown and b"262k/262k" in shown and b"B/s" in shown) if progress else shown == b""
    line = command(url=server.url + PATH, sha256=DIGEST[:8], cache_dir=tmp_path / "b", progress=progress)
    assert subprocess.run(line, env=process_environment(), capture_output=True, check=True).stderr == b""


@pytest.mark.parametrize(
    "size, text", [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (265_700_000, "266 MB"), (1_500_000_000, "1.5 GB")]
)
def test_size_text(size, text):
    assert files.size_text(size) == text


@given(st.binary(max_size=64))
def test_checkpoints_are_taken_for_checkpoints(content):
    for magic in (b"PK\x03\x04", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19", b"\x80\x02}q\x00"):
        assert download.not_a_checkpoint(magic + content, "text/html") is None


@given(st.text(max_size=40))
def test_content_range_never_fails(value):
    first, total = download._content_range(value)
    assert (first is None or first >= 0) and (total is None or total >= 0)


@given(st.integers(0, 10**12), st.integers(0, 10**12), st.integers(0, 10**12))
def test_content_range(first, last, total):
    assert download._content_range(f"bytes {first}-{last}/{total}") == (first, total)
    assert download._content_range(f"bytes */{total}") == (None, total)
    assert download._content_range(f"items {first}-{last}/{total}") == (None, None)


def test_importing_it_imports_nothing_heavy():
    code = "import sys, upernet_zoo.weights.download; sys.exit(any(m in sys.modules for m in ('torch', 'requests', 'tqdm', 'urllib3')))"
    assert subprocess.run([sys.executable, "-c", code], env=process_environment()).returncode == 0
