"""upernet-zoo app: a page to segment pictures on."""

from __future__ import annotations

import argparse

from ..reference import DEMO_NAME
from ..web import app_server
from .common import Commands, add_model, loading, require_model

__all__ = ["register"]


def _app(args: argparse.Namespace) -> int:
    require_model(args)
    app_server.serve(args.model, host=args.host, port=args.port, **loading(args))
    return 0


def register(commands: Commands) -> None:
    """Add the commands of this module."""
    sub = commands.add(
        "app",
        _app,
        "a page to segment pictures on, in the browser: overlay, classes, areas, downloads (needs the extra 'app'). Visitors can choose "
        "every model of the list; nothing is sent elsewhere, and pictures and results are removed at the end or after an hour",
    )
    add_model(sub, nargs="?", default=DEMO_NAME)
    host, port = app_server.DEFAULT_HOST, app_server.DEFAULT_PORT
    open_to_all = "0.0.0.0 lets everyone use it who reaches this machine"
    sub.add_argument(
        "--host", default=host, metavar="ADDRESS", help=f"where to listen (default: {host}, this machine alone); {open_to_all}"
    )
    sub.add_argument("--port", type=int, default=port, metavar="N", help=f"0 is one that is free (default: {port})")
