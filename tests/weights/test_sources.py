"""Sources in order, verification, receipts and pins, atomic files, the lock, offline. Faults: test_faults.py."""

import ast
import dataclasses
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.servers import Fault, Server, nobody
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
    make_entry,
    process_environment,
    rewrite,
)
from support.waiting import until

from upernet_zoo import errors, files, index
from upernet_zoo.weights import cache, download, locks, sources

OTHER_DIGEST = hashlib.sha256(OTHER).hexdigest()


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    clear_environment(monkeypatch, tmp_path)


@pytest.fixture
def kept(tmp_path):
    return tmp_path / "cache" / "checkpoints"


def fetch(model, **options):
    return sources.fetch(model, progress=False, **options)


# sources in order


def test_origin_then_cache(server, kept):
    model = make_entry(server.url + PATH)
    found = fetch(model)
    assert found == cache.Found(kept / FILE, DIGEST, len(DATA), server.url + PATH)
    assert found.path.read_bytes() == DATA
    assert listing(kept) == [FILE, FILE + ".json"]
    receipt = json.loads((kept / (FILE + ".json")).read_text())
    assert (receipt["sha256"], receipt["size"], receipt["source"]) == (DIGEST, len(DATA), server.url + PATH)
    assert fetch(model).source == "cache"
    assert len(server.requests) == 1


def test_explicit_file(server, tmp_path):
    model = make_entry(server.url + PATH)
    path = tmp_path / "mine.pth"
    path.write_bytes(DATA)
    assert fetch(model, checkpoint=path) == cache.Found(path, DIGEST, len(DATA), "file")
    path.write_bytes(OTHER)
    with pytest.raises(errors.IntegrityError) as caught:
        fetch(model, checkpoint=path)
    for part in (str(path), model.name, DIGEST[:8], OTHER_DIGEST, "sha256="):
        assert part in str(caught.value)
    assert fetch(model, checkpoint=path, sha256=OTHER_DIGEST).sha256 == OTHER_DIGEST
    with pytest.raises(errors.MissingFileError, match="no such file"):
        fetch(model, checkpoint=tmp_path / "nothing.pth")
    with pytest.raises(errors.MissingFileError, match="cannot be read"):
        fetch(model, checkpoint=tmp_path)
    assert not server.requests


def test_explicit_file_that_is_a_page(tmp_path):
    path = tmp_path / "page.pth"
    path.write_bytes(b"<!doctype html><html>sign in</html>")
    with pytest.raises(errors.IntegrityError, match="an HTML page"):
        fetch(make_entry("http://zoo.invalid" + PATH), checkpoint=path)


def test_torch_hub_directory_is_where_torch_says(tmp_path, monkeypatch):
    import torch

    folders = []
    for name, value in (("HOME", str(tmp_path)), ("XDG_CACHE_HOME", "/x"), ("TORCH_HOME", "~/t")):
        monkeypatch.setenv(name, value)
        folders.append(cache.torch_hub_folder())
        assert folders[-1] == Path(torch.hub.get_dir()) / "checkpoints"
    assert len(set(folders)) == 3


def test_torch_hub_directory(server, kept):
    path = cache.torch_hub_folder() / FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA)
    assert fetch(make_entry(server.url + PATH)) == cache.Found(path, DIGEST, len(DATA), "torch hub cache")
    assert not kept.exists() and not server.requests


def test_wrong_file_of_another_tool_is_left_alone(server, monkeypatch, kept):
    path = cache.torch_hub_folder() / FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(OTHER)
    with pytest.warns(UserWarning, match="left as it is"):
        assert fetch(make_entry(server.url + PATH)).path == kept / FILE
    assert path.read_bytes() == OTHER and listing(path.parent) == [FILE]


@pytest.mark.parametrize("by", ["argument", "environment"])
@pytest.mark.parametrize("kind", ["url", "file url", "folder", "the file's own url"])
@pytest.mark.parametrize("place", [FILE, PATH[1:]], ids=["by name", "by path"])
def test_mirrors(server, tmp_path, monkeypatch, kept, by, kind, place):
    folder = tmp_path / "a mirror"
    (folder / place).parent.mkdir(parents=True)
    (folder / place).write_bytes(DATA)
    if by == "environment" and kind == "folder":
        folder = folder.rename(tmp_path / "mirror")  # a blank would end it
    with Server({f"/sub/{place}": DATA}) as second:
        urls = {"url": second.url + "/sub/", "the file's own url": f"{second.url}/sub/{place}"}
        mirror = {"file url": folder.as_uri(), "folder": str(folder), **urls}[kind]
        if by == "environment":
            monkeypatch.setenv("UPERNET_ZOO_MIRRORS", f"{tmp_path / 'empty'};{mirror}\n")
        found = fetch(make_entry(server.url + PATH), mirrors=[mirror] if by == "argument" else ())
        if kind == "the file's own url":
            assert second.paths() == [f"/sub/{place}"]
    assert found.path == kept / FILE and found.path.read_bytes() == DATA
    assert found.source.endswith(place) and not server.requests


def test_mirror_folder_is_copied_and_a_wrong_file_in_it_left(server, tmp_path, kept):
    for name, content in (("wrong", OTHER), ("right", DATA)):
        (tmp_path / name).mkdir()
        (tmp_path / name / FILE).write_bytes(content)
    found = fetch(make_entry(server.url + PATH), mirrors=[tmp_path / "wrong", tmp_path / "right"])
    assert found.source == str(tmp_path / "right" / FILE) and listing(kept) == [FILE, FILE + ".json"]
    assert listing(tmp_path / "wrong") == listing(tmp_path / "right") == [FILE]


@given(st.text())
@example("../%2e%2e/..%2f..%5c..\\%00")
def test_original_path_stays_inside_the_mirror(path):
    path = quote(path, safe="/%\\")
    model = make_entry(f"https://a/{path}/{FILE}")
    for location in sources._in_mirror("/srv/mirror", model):
        assert ".." not in PurePosixPath(location).parts and not set("\\\0") & set(location)
        assert location.startswith("/srv/mirror/") and location.endswith("/" + FILE)


@pytest.mark.parametrize("mirrors", ["https://a", ["ftp://a"], ["s3://bucket"], [""], [None], [3], ["a\0b"], ["http://["]])
def test_mirrors_that_are_none(server, mirrors):
    with pytest.raises(errors.ArgumentError, match="mirror"):
        fetch(make_entry(server.url + PATH), mirrors=mirrors)


def test_mirrors_that_cannot_be_read(server, tmp_path):
    mirrors = ["file://host/share", "file:///a%00b", tmp_path / ("x" * 300), "http://a..b", "https://" + "x" * 70 + ".invalid"]
    with pytest.raises(errors.DownloadError) as caught:
        fetch(make_entry(server.url + "/gone/" + FILE), mirrors=mirrors)
    assert str(caught.value).count("  - mirror ") == 2 * len(mirrors)


def test_mirror_variable_that_is_none(server, monkeypatch):
    monkeypatch.setenv("UPERNET_ZOO_MIRRORS", "https://a ftp://b")
    with pytest.raises(errors.ArgumentError, match=r"UPERNET_ZOO_MIRRORS has 'ftp://b'"):
        sources.plan(make_entry(server.url + PATH))


def test_mirrors_of_the_index_come_after_a_living_origin(server):
    with Server({"/a/" + FILE: DATA}) as second:
        model = make_entry(server.url + "/gone/" + FILE, mirrors=[second.url + "/a/" + FILE])
        assert fetch(model).source == second.url + "/a/" + FILE
    assert server.paths() == ["/gone/" + FILE]


def test_unreachable_server_is_asked_once(kept):
    with nobody() as url:
        model = make_entry(url + PATH, mirrors=[url + "/elsewhere/" + FILE])
        with pytest.raises(errors.DownloadError) as caught:
            fetch(model, mirrors=[url])
    assert str(caught.value).count("connection refused") == 1
    assert str(caught.value).count("not asked: the same server could not be reached") == 2


def test_every_failure_in_one_message(server, tmp_path, kept):
    model = make_entry(server.url + "/gone/" + FILE)
    with pytest.raises(errors.DownloadError) as caught:
        fetch(model, mirrors=[tmp_path / "nowhere"])
    lines = str(caught.value).splitlines()
    assert [line.split()[1] for line in lines[1:-1]] == ["cache", "torch", "mirror", "mirror", "origin"]
    assert "HTTP 404" in lines[-2] and lines[-1].startswith("Next: ")
    assert listing(kept) == []


def test_credentials_of_a_url_are_not_shown(server, kept):
    mirror = server.url.replace("http://", "http://user:password@") + "/private?token=secret"
    with pytest.raises(errors.DownloadError) as caught:
        fetch(make_entry(server.url + "/gone/" + FILE), mirrors=[mirror])
    assert server.requests[0].headers["Authorization"].startswith("Basic") and "token=secret" in server.requests[0].path
    server.put("/private/" + FILE, DATA)
    found = fetch(make_entry(server.url + "/gone/" + FILE), mirrors=[mirror])
    shown = str(caught.value) + found.source + (kept / (FILE + ".json")).read_text()
    assert "/private/" + FILE in shown and not re.search("password|secret|user", shown)


@pytest.mark.parametrize("right", [True, False])
def test_hub_organisation(tmp_path, monkeypatch, right):
    """The real huggingface_hub client, against the two requests that it makes."""
    name = make_entry("http://zoo.invalid").name
    path = f"/zoo-org/{name}/resolve/main/{FILE}"
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with Server({path: DATA if right else OTHER}) as hub, nobody() as gone:
        hub.always[path] = Fault(headers={"X-Repo-Commit": "0" * 40})
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        order = dict(url=gone + PATH, sha256=DIGEST[:8], cache_dir=tmp_path / "cache", hub_org="zoo-org")
        done = subprocess.run(command(**order), env=process_environment(), capture_output=True, text=True)
        answer = json.loads(done.stdout)
        assert path in hub.paths()
    if right:
        assert answer["error"] is None and Path(answer["message"]).read_bytes() == DATA
        assert cache.read_receipt(Path(answer["message"])).source == f"hf-hub:zoo-org/{name}"
    else:
        assert answer["error"] == "IntegrityError" and f"Hugging Face Hub zoo-org/{name}" in answer["message"]
    assert answer["left"] == ([FILE, FILE + ".json"] if right else [f"{FILE}.bad-{OTHER_DIGEST[:8]}"])


def test_plan(server, tmp_path, monkeypatch, kept):
    monkeypatch.setenv("UPERNET_ZOO_HUB_ORG", "zoo-org")
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / FILE).write_bytes(DATA)
    model = make_entry(server.url + PATH, mirrors=["https://b/" + FILE, server.url + PATH])
    planned = sources.plan(model, mirrors=["https://a/x", tmp_path / "mirror"])
    assert [(s.kind.value, s.location, s.state_text) for s in planned] == [
        ("cache", str(kept / FILE), "not there"),
        ("torch hub cache", str(tmp_path / "home/.cache/torch/hub/checkpoints" / FILE), "not there"),
        ("mirror", "https://a/x/" + FILE, "not asked yet"),
        ("mirror", "https://a/x" + PATH, "not asked yet"),
        ("mirror", str(tmp_path / "mirror" / FILE), "there, not verified yet (262 kB)"),
        ("mirror", str(tmp_path / "mirror") + PATH, "not there"),
        ("Hugging Face Hub", f"zoo-org/{model.name}", "not asked yet"),
        ("origin", server.url + PATH, "not asked yet"),
        ("mirror of the index", "https://b/" + FILE, "not asked yet"),
    ]
    assert not server.requests and not kept.exists()
    path = fetch(model, mirrors=[tmp_path / "mirror"]).path
    assert sources.plan(model)[0].state_text == "verified (262 kB)"
    rewrite(path, OTHER)
    assert sources.plan(model)[0].state_text == "damaged (changed since it was verified)"
    path.write_bytes(DATA[:1000])
    assert sources.plan(model)[0].state_text == f"damaged (1000 bytes instead of {len(DATA)})"
    assert {s.state_text for s in sources.plan(model, local_files_only=True)[3:]} == {"offline (local_files_only=True)"}
    assert [(s.kind, s.state) for s in sources.plan(model, checkpoint=path)] == [(sources.Kind.FILE, sources.State.DAMAGED)]


HOSTS = ("mmassets.onedl.ai", "download.openmmlab.com", "openmmlab.oss-cn-hangzhou.aliyuncs.com", "openmmlab.oss-accelerate.aliyuncs.com")


@pytest.mark.parametrize("digits", [8, 63, 64])
def test_hosts_in_the_order_in_which_they_are_likely_to_answer(digits):
    """Of the real index; the lapsed domain is asked only where its new owner could not forge the digest."""
    entry = index.model_info("upernet_r50_512x512_160k_ade20k")
    found = sources.plan(entry, sha256=(entry.sha256 + 56 * "0")[:digits])[2:]
    assert [urlsplit(source.location).netloc for source in found] == list(HOSTS)
    asked = sources.State.NOT_ASKED if digits == 64 else sources.State.FORGEABLE
    assert [source.state for source in found] == [sources.State.NOT_ASKED, asked, *2 * [sources.State.NOT_ASKED]]
    assert "a lapsed domain" in found[1].state_text
    assert [source.promising for source in found] == [True, False, False, False]


LAPSED = "http://download.openmmlab.com" + PATH


@pytest.fixture
def asked(monkeypatch):
    """Every URL that is asked for; none has anything."""
    urls = []

    def ask(url, *_, **__):
        urls.append(url)
        raise errors.DownloadError("HTTP 404")

    monkeypatch.setattr(download, "bring", ask)
    return urls


def test_a_lapsed_domain_is_not_asked_for_what_could_be_forged(asked, tmp_path):
    model = make_entry(LAPSED)
    with pytest.raises(errors.DownloadError) as caught:
        fetch(model)
    assert not asked
    for part in ("has lapsed", "could forge the 8 digits", "mirrors=[", "http://download.openmmlab.com is named", "no living source"):
        assert part in str(caught.value)
    for options in ({"sha256": DIGEST}, {"mirrors": ["http://download.openmmlab.com"]}):
        asked.clear()
        with pytest.raises(errors.DownloadError):
            fetch(model, **options)
        assert LAPSED in asked
    with pytest.raises(errors.DownloadError):
        fetch(dataclasses.replace(model, sha256=DIGEST))
    assert asked[-1] == LAPSED


def test_a_pinned_digest_is_enough_for_a_lapsed_domain(asked, tmp_path, kept):
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / FILE).write_bytes(DATA)
    fetch(make_entry(LAPSED), mirrors=[tmp_path / "mirror"]).path.unlink()
    with pytest.raises(errors.DownloadError):
        fetch(make_entry(LAPSED))
    assert asked == [LAPSED]


def test_an_origin_that_has_lapsed_comes_after_a_living_mirror(server):
    assert fetch(make_entry(LAPSED, mirrors=[server.url + PATH])).source == server.url + PATH


def test_a_redirect_to_a_lapsed_domain_is_not_followed_for_what_could_be_forged(server):
    server.always["/moved/" + FILE] = Fault(status=302, headers={"Location": LAPSED})
    model = make_entry(server.url + "/moved/" + FILE)
    with pytest.raises(errors.DownloadError, match="redirected to http://download.openmmlab.com.*has lapsed"):
        fetch(model)
    with pytest.raises(errors.DownloadError, match="download.openmmlab.com cannot be resolved|no connection to download.openmmlab.com"):
        fetch(model, sha256=DIGEST)


# digests, receipts and pins


@pytest.mark.parametrize("sha256", ["", "0123456", "x" * 64, "0" * 65, 12345678, None, b"01234567"])
def test_sha256_that_is_none(server, tmp_path, sha256):
    with pytest.raises(errors.ArgumentError, match="is no SHA-256"):
        cache.verify_file(tmp_path, sha256, what="it")
    if sha256 is not None:
        with pytest.raises(errors.ArgumentError, match="is no SHA-256"):
            fetch(make_entry(server.url + PATH), sha256=sha256)


@given(st.binary(max_size=3000), st.integers(8, 64))
def test_verify_file_agrees_with_sha256sum(tmp_path_factory, content, digits):
    path = tmp_path_factory.getbasetemp() / "content"
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    assert cache.verify_file(path, digest[:digits].upper(), what="it") == digest
    with pytest.raises(errors.IntegrityError, match=f"it.*{digest}"):
        cache.verify_file(path, format(int(digest[0], 16) ^ 1, "x") + digest[1:digits], what="it")


def test_verify_file_in_constant_memory(tmp_path):
    import tracemalloc

    path = tmp_path / "big"
    with Path(path).open("wb") as file:
        file.truncate(256 << 20)
    tracemalloc.start()
    found = cache.verify_file(path, "a6d72ac7690f53be6ae46ba88506bd97302a093f7108472bd9efc3cefda06484", what="zeros")
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    assert found.startswith("a6d72ac7")  # from: head -c 256M /dev/zero | sha256sum


def test_first_download_pins_the_digest(server, kept):
    model = make_entry(server.url + PATH)
    assert cache.expected_digest(model) == DIGEST[:8]
    path = fetch(model).path
    assert cache.expected_digest(model) == DIGEST
    path.unlink()  # pruned; the receipt stays
    assert cache.expected_digest(model) == DIGEST
    assert fetch(model).sha256 == DIGEST
    # an index that knows better counts more than the pin
    assert cache.expected_digest(dataclasses.replace(model, sha256=OTHER_DIGEST[:8])) == OTHER_DIGEST[:8]


def test_a_replaced_file_is_accepted_by_its_full_digest_only(server, kept):
    """The origin has another file than the index says: refused; taken with sha256=; the old one is not lost."""
    model = make_entry(server.url + PATH)
    fetch(model)
    server.put(PATH, OTHER)
    with pytest.warns(UserWarning, match="SHA-256 is not the expected one"):
        found = fetch(model, sha256=OTHER_DIGEST)
    assert found.path.read_bytes() == OTHER
    assert (kept / f"{FILE}.bad-{DIGEST[:8]}").read_bytes() == DATA
    assert fetch(model, sha256=OTHER_DIGEST[:12]).source == "cache"
    with pytest.warns(UserWarning), pytest.raises(errors.IntegrityError):
        fetch(model)
    assert found.path.read_bytes() == OTHER


def test_a_wrong_sha256_argument_moves_nothing(server, kept):
    model = make_entry(server.url + PATH)
    fetch(model)
    for _ in range(2):
        with pytest.warns(UserWarning), pytest.raises(errors.IntegrityError):
            fetch(model, sha256="0" * 64)
    assert (kept / FILE).read_bytes() == DATA
    assert listing(kept) == [FILE, f"{FILE}.bad-{DIGEST[:8]}", FILE + ".json"]  # the same wrong file is kept once
    assert fetch(model).source == "cache"


def test_file_copied_into_the_cache_by_hand(kept):
    kept.mkdir(parents=True)
    (kept / FILE).write_bytes(DATA)
    assert fetch(make_entry("http://zoo.invalid" + PATH), local_files_only=True).sha256 == DIGEST
    assert cache.read_receipt(kept / FILE).sha256 == DIGEST


def test_trusted(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(DATA)
    assert cache.trusted(path) is None
    receipt = cache.write_receipt(path, files.hash_file(path), "somewhere")
    read = []
    real = files.hash_file
    monkeypatch.setattr(files, "hash_file", lambda p: read.append(p) or real(p))
    assert cache.trusted(path) == receipt == cache.read_receipt(path) and not read
    os.utime(path, ns=(1, 1))
    assert cache.trusted(path) == dataclasses.replace(receipt, mtime_ns=1) and read == [path]
    assert cache.trusted(path) and read == [path]
    path.write_bytes(OTHER)
    assert cache.trusted(path) is None
    path.write_bytes(DATA + b"x")
    assert cache.trusted(path) is None
    path.unlink()
    assert cache.trusted(path) is None and cache.read_receipt(path).sha256 == DIGEST


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", "\x00", '{"sha256": "00", "size": 1, "mtime_ns": 1, "source": ""}', '{"sha256": 3}', "[" * 10_000]
)
def test_receipt_that_is_none(tmp_path, text):
    (tmp_path / "file.json").write_text(text)
    assert cache.read_receipt(tmp_path / "file") is None


# files that appear whole or not at all


def test_write_atomically(tmp_path):
    path = tmp_path / "new" / "file"

    def fail(temporary):
        temporary.write_text("half")
        raise ValueError("in the middle")

    files.write_atomically(path, lambda temporary: temporary.write_text("one"))
    with pytest.raises(ValueError, match="in the middle"):
        files.write_atomically(path, fail)
    assert path.read_text() == "one" and listing(path.parent) == ["file"]
    seen = []
    files.write_atomically(path, lambda temporary: (seen.append(temporary.parent), temporary.write_text("two")))
    assert path.read_text() == "two" and seen == [path.parent]
    with pytest.raises(errors.WriteError, match="cannot be written"):
        files.write_atomically(path / "below a file", lambda temporary: temporary.write_text(""))


def test_leftovers_of_killed_writers_are_removed(tmp_path):
    old, fresh = tmp_path / ".file.1-a.tmp", tmp_path / ".file.2-b.tmp"
    others = [tmp_path / ".file2.1-a.tmp", tmp_path / "file.tmp"]
    for path in (old, fresh, *others):
        path.write_text("half")
    for path in (old, *others):
        os.utime(path, (time.time() - 7200,) * 2)
    files.write_atomically(tmp_path / "file", lambda temporary: temporary.write_text("whole"))
    assert listing(tmp_path) == sorted(p.name for p in [fresh, *others, tmp_path / "file"])


def test_new_files_follow_the_umask(server, kept):
    before = os.umask(0o027)
    try:
        path = fetch(make_entry(server.url + PATH)).path
    finally:
        os.umask(before)
    assert {oct(p.stat().st_mode & 0o777) for p in (path, cache.receipt_path(path))} == {"0o640"}


def test_lock_keeps_others_out(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(locks, "NOTICE", 0.05)
    order = []

    def second():
        with cache.lock(tmp_path / "file"):
            order.append("second")

    with cache.lock(tmp_path / "file"):
        thread = threading.Thread(target=second)
        thread.start()
        until(lambda: "Waiting for another process that has file in work" in caplog.text)
        with cache.lock(tmp_path / "another file"):
            order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert listing(tmp_path / "cache" / "locks") == ["another file.lock", "file.lock"]


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_many_at_once_download_once(server, tmp_path, kind):
    server.rate = 1_000_000
    model, count = make_entry(server.url + PATH), 4
    if kind == "threads":
        with ThreadPoolExecutor(count) as pool:
            found = [f.path for f in pool.map(lambda _: fetch(model), range(count))]
    else:
        line = command(url=model.weights, sha256=model.sha256, cache_dir=tmp_path / "cache")
        running = [subprocess.Popen(line, env=process_environment(), stdout=subprocess.PIPE, text=True) for _ in range(count)]
        found = [json.loads(process.communicate()[0])["message"] for process in running]
    assert all(Path(path).read_bytes() == DATA for path in found)
    assert [r.status for r in server.requests] == [200] and server.sent == len(DATA)


def test_kill_at_random_moments(tmp_path):
    """A file under its name is whole, whatever killed the process; in the end it is there, and much of it was resumed."""
    content = random.Random(1).randbytes(4 << 20)
    digest = hashlib.sha256(content).hexdigest()
    path = f"/{digest[:8]}.pth"
    target = tmp_path / "cache" / "checkpoints" / path[1:]
    with Server({path: content}, rate=8_000_000) as server:
        line = command(url=server.url + path, sha256=digest[:8], cache_dir=tmp_path / "cache", quick=False)
        moments = random.Random(2)

        def kill_later(process, seconds, came):
            asked, partial = len(server.requests), target.with_name(target.name + ".partial")
            until(lambda: len(server.requests) > asked or process.poll() is not None or target.exists())
            if came:  # on a machine of any speed the next has something to go on from
                until(lambda: process.poll() is not None or target.exists() or (partial.exists() and partial.stat().st_size))
            time.sleep(seconds)
            process.kill()
            process.wait()

        for number in range(8):
            process = subprocess.Popen(line, env=process_environment(), stdout=subprocess.DEVNULL)
            kill_later(process, moments.uniform(0, 0.25), number == 0)
            assert not target.exists() or target.read_bytes() == content
        subprocess.run(line, env=process_environment(), check=True, stdout=subprocess.DEVNULL)
        assert target.read_bytes() == content and cache.read_receipt(target).sha256 == digest
        # a kill may leave a note or a temporary receipt of a few hundred bytes; never a part of the file beside the whole
        others = [p for p in target.parent.iterdir() if p not in (target, cache.receipt_path(target))]
        assert all(p.suffix in (".state", ".tmp") and p.stat().st_size < 1000 for p in others)
        assert any(request.status == 206 for request in server.requests)


# offline


@pytest.mark.parametrize("value", ["1", "on", "YES", "True"])
@pytest.mark.parametrize("variable", ["UPERNET_ZOO_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_variables(monkeypatch, variable, value):
    assert not cache.offline() and cache.offline(local_files_only=True)
    monkeypatch.setenv(variable, value)
    assert cache.offline()
    code = "import huggingface_hub.constants as c; print(c.HF_HUB_OFFLINE)"
    theirs = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) if value == "YES" else None
    assert theirs is None or theirs.stdout.strip() == str(variable == "HF_HUB_OFFLINE")


@pytest.mark.parametrize("value", ["0", "", "off", "no", "false"])
def test_offline_variables_that_say_no(monkeypatch, value):
    monkeypatch.setenv("UPERNET_ZOO_OFFLINE", value)
    assert not cache.offline()


WATCHED = """
import json, sys
sys.path.insert(0, {tests!r})
from support.stand_in import make_entry, DIGEST
from upernet_zoo import errors
from upernet_zoo.weights import sources
events = []
sys.addaudithook(lambda event, args: events.append(event) if event.startswith("socket.") else None)
try:
    answer = str(sources.fetch(make_entry({url!r}, hub_org={org!r}), **{options!r}).path)
except errors.OfflineError as error:
    answer = str(error)
print(json.dumps([answer, events]))
"""


def watched(url, org=None, **options):
    code = WATCHED.format(tests=str(ROOT / "tests"), url=url, org=org, options=options)
    done = subprocess.run([sys.executable, "-c", code], env=process_environment(), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("by", ["UPERNET_ZOO_OFFLINE", "HF_HUB_OFFLINE", "local_files_only"])
def test_offline_opens_no_socket(server, tmp_path, monkeypatch, kept, by):
    options = {"progress": False}
    if by == "local_files_only":
        options[by] = True
    else:
        monkeypatch.setenv(by, "1")
    answer, events = watched(server.url + PATH, org="zoo-org", **options)
    assert "the network is not used" in answer and by in answer and events == []
    assert not (tmp_path / "cache").exists()
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / FILE).write_bytes(DATA)
    for mirrors in ([str(tmp_path / "mirror")], []):
        assert watched(server.url + PATH, mirrors=mirrors, **options) == [str(kept / FILE), []]
    assert not server.requests


def test_the_watch_sees_sockets(server):
    answer, events = watched(server.url + PATH, progress=False)
    assert Path(answer).name == FILE and "socket.connect" in events


# imports


def test_cached_file_needs_no_heavy_import(kept):
    kept.mkdir(parents=True)
    (kept / FILE).write_bytes(DATA)
    code = "import sys; from support.stand_in import *; sources.fetch(make_entry('http://zoo.invalid' + PATH)); print(sorted(sys.modules))"
    environment = process_environment() | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert not {"torch", "requests", "huggingface_hub", "tqdm", "filelock", "numpy"} & set(ast.literal_eval(done.stdout))


def test_folders(tmp_path, monkeypatch):
    monkeypatch.delenv("UPERNET_ZOO_CACHE")
    assert cache.cache_root() == tmp_path / "home" / ".cache" / "upernet_zoo"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_root() == tmp_path / "xdg" / "upernet_zoo"
    monkeypatch.setenv("UPERNET_ZOO_CACHE", "~/zoo")
    assert cache.cache_root() == tmp_path / "home" / "zoo"
    assert cache.cache_root("~/mine") == tmp_path / "home" / "mine"
