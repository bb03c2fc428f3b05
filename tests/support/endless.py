"""A server on 127.0.0.1 whose answer never ends."""

import contextlib
import socket
import ssl
import threading


@contextlib.contextmanager
def endless(first, then, wait, tls=None):
    """URL of a server that answers so for ever, and the connections that it has taken."""
    stop, taken = threading.Event(), []
    context = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*map(str, tls))

    def answer(connection):
        with contextlib.suppress(OSError, ssl.SSLError), connection:
            if context:
                connection = context.wrap_socket(connection, server_side=True)
            taken.append(connection)
            connection.recv(65536)
            connection.sendall(first)
            number = 0
            while not stop.wait(wait):
                connection.sendall(then(number))
                number += 1

    def accept(server):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, args=(server,), daemon=True).start()
        try:
            yield f"http{'s' if tls else ''}://127.0.0.1:{server.getsockname()[1]}", taken
        finally:
            stop.set()
            server.shutdown(socket.SHUT_RDWR)
