"""A dead host costs a few seconds in all, whatever it is that is dead about it, and is not asked again for a while."""

import contextlib
import dataclasses
import shutil
import socket
import threading
import time

import pytest
from support.servers import Fault, Server, answering, certificate, nobody, swallower
from support.stand_in import DATA, DIGEST, FILE, PATH, clear_environment, make_entry
from support.waiting import until

from upernet_zoo import errors
from upernet_zoo.weights import connect, download, sources

LIMIT = 2.0  # seconds, in place of 5
BUSY = 30.0  # more, as the machine may be busy; 50 attempts that shared no limit would take far longer


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    clear_environment(monkeypatch, tmp_path)
    many = {"attempts": 50, "connect_attempts": 50, "backoff": 0.05}
    impatient = dataclasses.replace(download.SETTINGS, connect_timeout=LIMIT, **many)
    monkeypatch.setattr(download, "SETTINGS", impatient)


@pytest.fixture
def names(monkeypatch):
    """What names resolve to: a list of addresses, or an error. Others are asked for as ever."""
    known, real = {}, socket.getaddrinfo

    def resolve(host, port, *more):
        if host not in known:
            return real(host, port, *more)
        if isinstance(known[host], Exception):
            raise known[host]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in known[host]]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return known


@contextlib.contextmanager
def within(seconds):
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


def unreachable(url, tmp_path):
    """What is said of a URL whose host is dead, within the limit."""
    with within(LIMIT + BUSY), pytest.raises(download.UnreachableError) as caught:
        download.download(url, tmp_path / "partial", progress=False)
    return str(caught.value)


def test_the_limit_is_below_five_seconds():
    assert download.Settings().connect_timeout < 5.0 and connect.REMEMBERED == 300.0


def test_a_living_address_after_dead_ones_is_reached(names):
    with swallower() as dead, nobody() as gone, socket.create_server(("127.0.0.1", 0)) as living:
        refusing = ("127.0.0.1", int(gone.rsplit(":", 1)[1]))
        names["zoo.test"] = [dead, refusing, dead, living.getsockname()]
        with within(15.0), connect.connect("zoo.test", 80, time.monotonic() + 20) as connected:
            assert connected.getpeername() == living.getsockname() and 1 < connected.gettimeout() < 20


def test_what_the_last_address_said(names):
    with nobody() as gone:
        names["zoo.test"] = [("127.0.0.1", int(gone.rsplit(":", 1)[1]))] * 3
        with within(15.0), pytest.raises(ConnectionRefusedError):
            connect.connect("zoo.test", 80, time.monotonic() + 20)
    names["zoo.test"] = []
    with pytest.raises(OSError, match="no address"):
        connect.connect("zoo.test", 80, time.monotonic() + 30)


def test_many_addresses_that_swallow(names, tmp_path):
    with swallower() as dead:
        names["zoo.test"] = [dead] * 9
        assert "no connection to zoo.test within 2 s" in unreachable("http://zoo.test/x", tmp_path)


def test_a_resolver_that_does_not_answer(tmp_path, monkeypatch):
    over = threading.Event()
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a: real(*a) if a[-1] == socket.AI_NUMERICHOST else over.wait(60))
    assert "no connection to zoo.test within 2 s" in unreachable("http://zoo.test/x", tmp_path)
    over.set()


@pytest.mark.parametrize("name", ["x" * 64 + ".test", "a..b"])
def test_a_name_that_can_be_none(name):
    with pytest.raises(socket.gaierror):
        connect.connect(name, 80, time.monotonic() + 30)


def test_refused_again_and_again(tmp_path):
    with nobody() as url:
        assert "connection refused" in unreachable(url, tmp_path)


def test_an_attempt_that_had_a_moment_left_does_not_hide_the_cause(names, tmp_path, monkeypatch):
    over, asked = threading.Event(), []
    with nobody() as gone:
        names["zoo.test"] = [("127.0.0.1", int(gone.rsplit(":", 1)[1]))]
        resolve = socket.getaddrinfo

        def once(host, *more):
            if more[-1] == socket.AI_NUMERICHOST:
                raise socket.gaierror(socket.EAI_NONAME, "no address")
            asked.append(host)
            return resolve(host, *more) if len(asked) == 1 else over.wait(60)

        monkeypatch.setattr(socket, "getaddrinfo", once)
        assert unreachable("http://zoo.test/x", tmp_path) == "connection refused by zoo.test (given up after 2 attempts)"
    over.set()


def test_a_host_that_dies_after_an_answer_is_called_dead(names, tmp_path):
    """Its own time to connect begins after the answer, so that the last attempt says what is wrong."""
    with answering(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n") as (living, seen), swallower() as dead:
        names["zoo.test"] = [living]
        done = threading.Event()

        def die():
            until(lambda: seen)
            names["zoo.test"] = [dead]
            done.set()

        threading.Thread(target=die, daemon=True).start()
        assert "no connection to zoo.test within 2 s" in unreachable("http://zoo.test/x", tmp_path) and done.is_set()


def test_an_address_is_not_asked_of_a_resolver(monkeypatch):
    real = socket.getaddrinfo

    def none(host, port, *more):
        if more[-1] != socket.AI_NUMERICHOST:
            raise AssertionError(host)
        return real(host, port, *more)

    monkeypatch.setattr(socket, "getaddrinfo", none)
    with socket.create_server(("127.0.0.1", 0)) as living, connect.connect(*living.getsockname(), time.monotonic() + 30) as connected:
        assert connected.getpeername() == living.getsockname()


def test_a_host_that_never_shakes_hands(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert "no connection" in unreachable(f"https://127.0.0.1:{silent.getsockname()[1]}/x", tmp_path)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\n\r\n"], ids=["closes", "no TLS"])
def test_a_host_that_ends_the_handshake(answer, tmp_path):
    with answering(answer) as ((_, port), seen):
        assert "no connection" in unreachable(f"https://127.0.0.1:{port}/x", tmp_path)
        assert len(seen) > 1  # it might have been an accident


def test_each_attempt_after_a_connection_has_the_whole_time_to_connect(tmp_path, monkeypatch):
    """The time for a connection is no time for an answer: a server that is silent for longer is not taken for a dead one."""
    monkeypatch.setattr(download, "SETTINGS", dataclasses.replace(download.SETTINGS, attempts=4, read_timeout=1.0, stall_seconds=1.0))
    given, real = [], connect.connect

    def noted(host, port, deadline, options=()):
        given.append(deadline - time.monotonic())
        return real(host, port, deadline, options)

    monkeypatch.setattr("upernet_zoo.weights.session.connect", noted)
    told = pytest.raises(errors.DownloadError, match=r"no answer from 127.0.0.1 within 1 s \(given up after 4 attempts\)")
    with socket.create_server(("127.0.0.1", 0)) as silent, told:
        download.download(f"http://127.0.0.1:{silent.getsockname()[1]}/x", tmp_path / "partial", progress=False)
    assert len(given) == 4 and min(given) > LIMIT / 2


def test_a_dead_host_is_remembered_for_all_its_files_and_for_five_minutes(tmp_path, monkeypatch):
    with Server({PATH: DATA}) as living:
        with swallower() as (_, port):
            dead = f"http://127.0.0.1:{port}"
            model = make_entry(dead + PATH, mirrors=[dead + "/again/" + FILE])
            with within(LIMIT + BUSY), pytest.raises(errors.DownloadError) as caught:
                sources.fetch(model, mirrors=[dead], progress=False)
            assert str(caught.value).count("no connection") == 1 and str(caught.value).count("could not be reached") == 2
            with pytest.raises(errors.DownloadError, match=r"not asked: the same server .* in (300|2\d\d) s"):
                sources.fetch(model, progress=False)
        assert sources.fetch(make_entry(dead + PATH, mirrors=[living.url + PATH]), progress=False).source == living.url + PATH
        monkeypatch.setattr(connect, "REMEMBERED", 0.0)
        with pytest.raises(download.UnreachableError, match="refused"):  # asked again: the swallower has gone
            download.download(dead + PATH, tmp_path / "partial", progress=False)


def test_a_dead_host_behind_a_redirect_is_remembered_by_its_own_name(tmp_path):
    with Server() as server, nobody() as dead:
        server.always["/moved"] = Fault(status=302, headers={"Location": dead + "/x"})
        assert "connection refused" in unreachable(server.url + "/moved", tmp_path)
        assert "not asked" in unreachable(dead + "/y", tmp_path)
        with pytest.raises(errors.DownloadError, match="HTTP 404"):
            download.download(server.url + "/z", tmp_path / "partial", progress=False)


@contextlib.contextmanager
def tunnel():
    """Port of a proxy that knows CONNECT alone, and the hosts that it was asked for."""
    listener, asked = socket.create_server(("127.0.0.1", 0)), []

    def pipe(source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def serve():
        with contextlib.suppress(OSError):
            client, _ = listener.accept()
            asked.append(client.recv(1 << 16).split()[1].decode())
            host, _, port = asked[-1].rpartition(":")
            with client, socket.create_connection((host, int(port))) as server:
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                back = threading.Thread(target=pipe, args=(server, client), daemon=True)
                back.start()
                pipe(client, server)
                back.join()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1], asked
    listener.close()


def test_tls_through_a_proxy(tmp_path, monkeypatch):
    if not shutil.which("openssl"):
        pytest.skip("needs the openssl command")
    pair = certificate(tmp_path / "tls")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(pair[0]))
    with Server({PATH: DATA}, tls=pair) as server, tunnel() as (port, asked):
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        got = download.download(server.url + PATH, tmp_path / "partial", progress=False)
    assert (got.sha256, asked) == (DIGEST, [server.url.removeprefix("https://")])


def test_a_dead_proxy_is_one_dead_host(tmp_path, monkeypatch):
    with swallower() as (_, port):
        monkeypatch.setenv("https_proxy", f"127.0.0.1:{port}")
        assert "the proxy does not answer" in unreachable("https://a.test/x", tmp_path)
        assert "not asked" in unreachable("https://b.test/x", tmp_path)


def test_a_host_that_a_living_proxy_cannot_reach(tmp_path, monkeypatch):
    with answering(b"HTTP/1.1 502 Bad Gateway\r\n\r\n") as ((_, port), seen):
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        assert "502" in unreachable("https://a.test/x", tmp_path)
        asked = len(seen)
        assert "not asked" in unreachable("https://a.test/y", tmp_path) and len(seen) == asked
        assert "502" in unreachable("https://b.test/x", tmp_path)


def test_a_host_that_is_found_dead_for_one_file_is_not_asked_for_another(tmp_path):
    with nobody() as url:
        assert "connection refused by 127.0.0.1" in unreachable(url + "/a", tmp_path)
        assert "not asked: the same server could not be reached" in unreachable(url + "/b", tmp_path)
