"""Real HTTP servers on 127.0.0.1 for the tests, with faults to order."""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MODIFIED = "Tue, 05 May 2020 10:00:00 GMT"


@dataclass
class File:
    """What is behind a path. `etag` "auto" is made from the content; None leaves the header out."""

    data: bytes
    etag: str | None = "auto"
    modified: str | None = MODIFIED

    def __post_init__(self):
        if self.etag == "auto":
            self.etag = f'"{hashlib.sha256(self.data).hexdigest()[:16]}"'


@dataclass
class Fault:
    """What goes wrong with one answer. Without any field set, the answer is the right one."""

    status: int | None = None  # this status and `body` in place of the file
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None  # close the connection after so many bytes of the body
    pause: tuple[int, float] | None = None  # (bytes, seconds): silent for so long after so many bytes
    trickle: tuple[int, float] | None = None  # (bytes, seconds): send the body in such pieces with such waits
    longer: int = 0  # Content-Length says so many bytes more (or less)
    ignore_range: bool = False
    chunked: bool = False  # no Content-Length
    wrong_range: bool = False  # Content-Range begins elsewhere than asked for
    after: Callable[[], None] | None = None  # called when the answer has gone


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    status: int


class Running(ThreadingHTTPServer):
    """A server in a thread of its own, as a context manager."""

    daemon_threads = True
    request_queue_size = 64

    def __enter__(self):
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()
        self.thread.join()


class Server(Running):
    """Serves `files`; the faults of a path are used up one a request (`faults`), or stay (`always`). A context manager.

    Args:
        files: path, with the leading slash, to content.
        rate: bytes per second of each answer, None for as fast as it goes.
        tls: (certificate, key) files for https.
    """

    def __init__(self, files=None, *, rate=None, tls=None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, File] = {}
        for path, content in (files or {}).items():
            self.put(path, content)
        self.faults: dict[str, list[Fault]] = {}
        self.always: dict[str, Fault] = {}
        self.requests: list[Request] = []
        self.sent = 0  # bytes of bodies, with the piece in which a client went away
        self.rate = rate
        self.heed_if_range = True
        self.guard = threading.Lock()
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.server_port}"
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*map(str, tls))
            self.socket = context.wrap_socket(self.socket, server_side=True)

    def put(self, path, content):
        self.files[path] = content if isinstance(content, File) else File(content)

    def handle_error(self, request, client_address):
        """A client that goes away, or does not like the certificate, is what these tests are about."""

    def paths(self, method="GET"):
        return [r.path for r in self.requests if r.method == method]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        path = self.path.split("?")[0]
        with self.server.guard:
            orders = self.server.faults.get(path)
            fault = orders.pop(0) if orders else self.server.always.get(path, Fault())
        file = self.server.files.get(path)
        if fault.status is not None:
            return self._answer(fault.status, fault.headers, fault.body, fault, body)
        if file is None:
            return self._answer(404, {"Content-Type": "text/html"}, b"<html>no such file</html>", fault, body)
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
        headers |= {k: v for k, v in (("ETag", file.etag), ("Last-Modified", file.modified)) if v} | fault.headers
        size, data, status = len(file.data), file.data, 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        unchanged = condition is None or condition in (file.etag, file.modified) or not self.server.heed_if_range
        if asked and not fault.ignore_range and unchanged:
            start = int(asked[1])
            if start >= size:
                return self._answer(416, headers | {"Content-Range": f"bytes */{size}"}, b"", fault, body)
            shown = start + 1 if fault.wrong_range else start
            end = min(int(asked[2]) + 1, size) if asked[2] else size
            status, data = 206, file.data[start:end]
            headers["Content-Range"] = f"bytes {shown}-{end - 1}/{size}"
        self._answer(status, headers, data, fault, body)

    def _answer(self, status, headers, data, fault, body):
        with self.server.guard:
            self.server.requests.append(Request(self.command, self.path, dict(self.headers), status))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if fault.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(data) + fault.longer))
        self.end_headers()
        if body:
            self._send(data[: max(0, len(data) + fault.longer)], fault)
        if fault.after:
            fault.after()
        if fault.cut is not None or fault.longer:
            self.close_connection = True

    def _send(self, data, fault):
        if fault.cut is not None:
            data = data[: fault.cut]
        step = fault.trickle[0] if fault.trickle else 1 << 16
        position, started = 0, time.monotonic()
        while position < len(data):
            end = position + step
            if fault.pause and position < fault.pause[0] <= end:
                end = fault.pause[0]
            piece = data[position:end]
            with self.server.guard:  # before the client has it, who may look at once
                self.server.sent += len(piece)
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if fault.chunked else piece)
            position += len(piece)
            if fault.pause and position == fault.pause[0]:
                time.sleep(fault.pause[1])
            if fault.trickle:
                time.sleep(fault.trickle[1])
            if self.server.rate:
                time.sleep(max(0.0, position / self.server.rate - (time.monotonic() - started)))
        if fault.chunked and fault.cut is None:
            self.wfile.write(b"0\r\n\r\n")


@contextlib.contextmanager
def nobody():
    """URL of a port on which nobody listens, nor will: it is taken."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


_OPENSSL = """
[ca]
default_ca = only
[only]
database = {folder}/database
new_certs_dir = {folder}
rand_serial = yes
default_md = sha256
policy = names
[names]
commonName = supplied
[extensions]
subjectAltName = IP:127.0.0.1
"""


def certificate(folder: Path, *, start="20200101000000Z", end="20600101000000Z") -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key; made by the `openssl` command."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / name for name in ("certificate.pem", "key.pem", "request.pem", "configuration", "database")}
    paths["configuration"].write_text(_OPENSSL.format(folder=folder))
    paths["database"].touch()
    key, request = str(paths["key.pem"]), str(paths["request.pem"])
    subject = ["-subj", "/CN=127.0.0.1", "-keyout", key, "-out", request]
    configuration = ["-config", str(paths["configuration"]), "-extensions", "extensions"]
    dates = ["-startdate", start, "-enddate", end, "-out", str(paths["certificate.pem"])]
    for command in (
        ["openssl", "req", "-new", "-newkey", "rsa:2048", "-nodes", *subject],
        ["openssl", "ca", "-batch", "-selfsign", "-notext", *configuration, "-keyfile", key, "-in", request, *dates],
    ):
        subprocess.run(command, check=True, capture_output=True)
    return paths["certificate.pem"], paths["key.pem"]


@contextlib.contextmanager
def swallower():
    """Address of a listener that lets no connection come about: its queue is full, and the kernel drops what else arrives."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for _ in range(8):  # the kernel's queue is a little longer than asked for
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(address)
        yield address


@contextlib.contextmanager
def answering(answer: bytes):
    """Address of a listener that sends the same few bytes to every connection, and closes it; the connections are counted."""
    listener, seen = socket.create_server(("127.0.0.1", 0)), []

    def serve():
        with contextlib.suppress(OSError):
            while True:
                connection, address = listener.accept()
                with connection:
                    seen.append(address)
                    connection.recv(1 << 16)
                    connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname(), seen
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
