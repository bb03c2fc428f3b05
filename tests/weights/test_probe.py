"""Which sources answer: servers that live, are dead, slow, without the file, or have one of another size."""

import contextlib
import dataclasses
import socket
import threading
import time

import pytest
from support.servers import Fault, File, Server, answering, nobody, swallower
from support.stand_in import DATA, DIGEST, FILE, OTHER, PATH, clear_environment, lose_patience, make_entry

from upernet_zoo.weights import connect, sources
from upernet_zoo.weights.probe import Answer, probe

SIZE = len(DATA)


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    clear_environment(monkeypatch, tmp_path)


def asked(entry, **options):
    """What came of the sources in the network, in order."""
    return [one for one in probe([entry], **options)[entry.name] if one.source.on_network]


def one(url, **options):
    (found,) = asked(make_entry(url), **options)
    return found


def test_each_kind_of_server_side_by_side(monkeypatch):
    lose_patience(monkeypatch, read_timeout=5.0)  # of those that live, too
    entry = dataclasses.replace(make_entry("http://zoo.invalid" + PATH), size=SIZE)
    with contextlib.ExitStack() as stack:
        alive, without, short = (stack.enter_context(Server({PATH: data} if data else {})) for data in (DATA, None, DATA[:-1]))
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()
        dead = stack.enter_context(swallower())
        refusing = stack.enter_context(nobody())
        hosts = [f"http://127.0.0.1:{port}" for _, port in (silent, dead)]
        mirrors = tuple(url + PATH for url in (alive.url, without.url, short.url, refusing, *hosts))
        started = time.monotonic()
        found = asked(dataclasses.replace(entry, mirrors=mirrors))
        elapsed = time.monotonic() - started
    assert elapsed < sum(each.seconds for each in found if each.seconds)  # they are asked side by side
    assert [(each.answer, each.size) for each in found] == [
        (Answer.DEAD, None),
        (Answer.THERE, SIZE),
        (Answer.ABSENT, None),
        (Answer.WRONG_SIZE, SIZE - 1),
        (Answer.DEAD, None),
        (Answer.SLOW, None),
        (Answer.DEAD, None),
    ]
    assert found[3].text == f"wrong size ({SIZE} bytes are right)" and "404" in found[2].text and "refused" in found[4].text
    assert found[5].text == "slow (no answer from 127.0.0.1 within 5 s)" and found[5].seconds >= 5.0
    assert not alive.sent and alive.paths("HEAD") == [PATH] and not alive.paths("GET")


def test_a_size_that_is_not_known_is_only_told():
    with Server({PATH: OTHER + b"more"}) as server:
        assert (one(server.url + PATH).answer, one(server.url + PATH).size) == (Answer.THERE, SIZE + 4)


def test_the_size_of_the_file_that_was_pinned_counts(tmp_path):
    with Server({PATH: DATA}) as server:
        sources.fetch(make_entry(server.url + PATH), progress=False)
        server.put(PATH, DATA[1:])
        cached, _, origin = probe([make_entry(server.url + PATH)])[make_entry("").name]
        assert (cached.answer, cached.size, cached.seconds) == (Answer.THERE, SIZE, None)
        assert (origin.answer, origin.size) == (Answer.WRONG_SIZE, SIZE - 1)
        cached.source.size and (tmp_path / "cache" / "checkpoints" / FILE).write_bytes(b"x")
        assert probe([make_entry(server.url + PATH)])[make_entry("").name][0].answer is Answer.DAMAGED


@pytest.mark.parametrize("status", [403, 405, 501])
def test_a_server_that_does_not_know_head_is_asked_for_a_byte(status):
    with Server({PATH: DATA}) as server:
        server.faults[PATH] = [Fault(status=status)]
        found = one(server.url + PATH)
        assert (found.answer, found.size) == (Answer.THERE, SIZE) and server.sent <= 1
        assert [r.headers.get("Range") for r in server.requests] == [None, "bytes=0-0"]


@pytest.mark.parametrize(
    "fault, answer, detail",
    [
        (Fault(status=403), Answer.REFUSED, "HTTP 403 (Forbidden)"),
        (Fault(status=503), Answer.REFUSED, "HTTP 503 (Service Unavailable)"),
        (Fault(status=599), Answer.REFUSED, "HTTP 599 (no reason given)"),
        (Fault(headers={"Content-Type": "text/html; charset=utf-8"}), Answer.NO_CHECKPOINT, "an HTML page"),
        (
            Fault(status=302, headers={"Location": "ftp://a.test/x"}),
            Answer.REFUSED,
            "redirected from http to ftp://a.test/x, which is not followed",
        ),
        (Fault(status=302, headers={"Location": PATH}), Answer.REFUSED, "more than 10 redirects"),
        (
            Fault(status=302, headers={"Location": "https://download.openmmlab.com/x"}),
            Answer.REFUSED,
            "its new owner could forge the known digits",
        ),
        (Fault(headers={"Content-Encoding": "gzip"}), Answer.THERE, "compressed on its way"),
    ],
)
def test_what_a_server_may_say(fault, answer, detail):
    with Server({PATH: File(DATA)}) as server:
        server.always[PATH] = fault
        found = one(server.url + PATH)
    assert found.answer is answer and found.detail.endswith(detail)


def test_a_redirect_is_followed():
    with Server({PATH: DATA}) as server:
        server.always["/moved/" + FILE] = Fault(status=302, headers={"Location": PATH})
        assert one(f"{server.url}/moved/{FILE}").size == SIZE


def test_what_a_server_says_steers_no_terminal():
    with answering(b"HTTP/1.1 418 \x1b[2Jteapot\r\nContent-Length: 0\r\n\r\n") as ((_, port), _):
        assert one(f"http://127.0.0.1:{port}{PATH}").text == "refused (HTTP 418 (\\x1b[2Jteapot))"


def test_an_answer_without_end_is_slow(monkeypatch):
    lose_patience(monkeypatch)

    def drip(listener):
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\n")
                while True:
                    connection.sendall(b"X-More: 1\r\n")
                    time.sleep(0.1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=drip, args=(listener,), daemon=True).start()
        found = one(f"http://127.0.0.1:{listener.getsockname()[1]}{PATH}")
    assert found.answer is Answer.SLOW and found.seconds < 60.0


def test_a_connection_that_is_cut():
    with answering(b"") as ((_, port), _):
        found = one(f"http://127.0.0.1:{port}{PATH}")
    assert found.answer is Answer.REFUSED and "no connection to 127.0.0.1" in found.detail


def test_a_lapsed_domain_is_not_asked_for_what_could_be_forged(monkeypatch):
    names = []
    monkeypatch.setattr(connect, "connect", lambda host, *_: names.append(host))
    entry = make_entry("http://download.openmmlab.com" + PATH)
    assert one(entry.weights).answer is Answer.NOT_ASKED and "lapsed" in one(entry.weights).text and not names
    (found,) = asked(dataclasses.replace(entry, sha256=DIGEST))
    assert found.answer is not Answer.NOT_ASKED and found.detail.startswith("a lapsed domain, ")


def test_offline_nobody_is_asked(monkeypatch):
    monkeypatch.setenv("UPERNET_ZOO_OFFLINE", "1")
    with Server({PATH: DATA}) as server:
        assert one(server.url + PATH).text == "not asked (UPERNET_ZOO_OFFLINE=1)" and not server.requests


def test_folders_and_the_hub(tmp_path, monkeypatch):
    from huggingface_hub import constants

    def use(endpoint):  # as HF_ENDPOINT does, which is read once
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")

    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / FILE).write_bytes(DATA)
    entry = dataclasses.replace(make_entry("http://zoo.invalid" + PATH, hub_org="org"), size=SIZE)
    path = f"/org/{entry.name}/resolve/main/{FILE}"
    with Server({path: DATA}) as hub:
        hub.always[path] = Fault(headers={"X-Repo-Commit": "0" * 40})
        use(hub.url)
        found = {each.source.kind: each for each in probe([entry], mirrors=[tmp_path / "mirror"])[entry.name][2:]}
        assert [each.answer for each in probe([entry], mirrors=[tmp_path / "mirror"])[entry.name][2:4]] == [Answer.THERE, Answer.ABSENT]
        assert (found[sources.Kind.HUB].answer, found[sources.Kind.HUB].size) == (Answer.THERE, SIZE)
        hub.files.clear()
        hub.always[path] = Fault(status=404, headers={"X-Error-Code": "EntryNotFound"})
        assert asked(entry)[0].answer is Answer.ABSENT
    with nobody() as gone:
        use(gone)
        assert asked(entry)[0].answer is Answer.DEAD


def test_secrets_of_a_mirror_are_not_shown():
    with Server({PATH: DATA}) as server, nobody() as gone:
        mirrors = [url.replace("http://", "http://user:password@") + "/sub?token=secret" for url in (server.url, gone)]
        for found in asked(make_entry(server.url + PATH), mirrors=mirrors):
            assert not any(secret in f"{found.text} {found.source.shown}" for secret in ("password", "secret"))
