"""The app's server: an address, a folder of its own, and an end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import ArgumentError
from ..reference import DEMO_NAME
from ..wording import option
from .app_models import Studio

__all__ = ["DEFAULT_HOST", "DEFAULT_PORT", "serve"]

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 7860


def serve(
    model: str = DEMO_NAME, *, host: str = DEFAULT_HOST, port: int = DEFAULT_PORT, say: Callable[[str], None] = print, **loading: Any
) -> None:
    """Serve the app until it is interrupted. Pictures and results are in a folder of its own, which is removed at the end.

    Args:
        model: that is chosen at first; any reference.
        host: the address to listen on. Others than this machine can use the app where it is, for example, "0.0.0.0".
        port: 0 for one that is free.
        say: takes the line that says where the page is.
        loading: as for `Studio`.

    Raises:
        ArgumentError: the address cannot be taken.
        MissingPackageError: Gradio is not installed.
        UPerNetZooError: as `Studio`.
    """
    studio = Studio(model, **loading)
    with _listening(host, port) as listener, tempfile.TemporaryDirectory(prefix="upernet_zoo_app_") as folder, _own_settings(folder):
        from . import app  # which takes seconds: what is wrong with the model's name or the port is told before

        import uvicorn  # isort: skip  # Gradio brings it; without Gradio, `app` says what to install

        served = app.application(studio, Path(folder))
        warming = threading.Thread(target=studio.warm_up, daemon=True)  # torch takes seconds to import, while the visitor looks around
        server = uvicorn.Server(uvicorn.Config(served, log_level="warning", timeout_graceful_shutdown=2))
        with contextlib.suppress(KeyboardInterrupt):
            warming.start()
            say(f"The page is at http://{_shown_host(host)}:{listener.getsockname()[1]} (Ctrl+C ends it)")
            server.run(sockets=[listener])
        while warming.is_alive():  # the interpreter aborts where it ends while another thread imports torch
            with contextlib.suppress(KeyboardInterrupt):
                warming.join()


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise ArgumentError(
            f"{_shown_host(host)}:{port} cannot be listened on ({getattr(error, 'strerror', None) or error}). Give another "
            f"{option('host')} or {option('port')}; port 0 is one that is free."
        ) from None
    with listener:
        yield listener


def _shown_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@contextlib.contextmanager
def _own_settings(folder: str) -> Iterator[None]:
    """Gradio's settings for this process, whatever the user's are; and SIGTERM ends it as Ctrl+C does, so that its files are removed."""

    def end(*_: Any) -> None:
        raise KeyboardInterrupt

    settings = {"GRADIO_TEMP_DIR": folder, "GRADIO_EXAMPLES_CACHE": str(Path(folder) / "examples"), "GRADIO_ANALYTICS_ENABLED": "False"}
    before, handler = {name: os.environ.get(name) for name in settings}, signal.signal(signal.SIGTERM, end)
    os.environ |= settings
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
