"""The command line, upernet-zoo. Each kind of command has a module beside this one."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import UPerNetZooError, shown
from ..version import __version__
from ..wording import command_line
from . import benchmark, evaluate, listing, page, portable, segment, train, web, weights
from .common import Commands, Parser

__all__ = ["all_commands", "main"]


def all_commands() -> Parser:
    """The parser of every command."""
    parser = Parser(prog="upernet-zoo", description="Pretrained UPerNet segmentation models in plain PyTorch.")
    parser.add_argument("--version", action="version", version=f"upernet-zoo {__version__}")
    commands = Commands(parser)
    for module in (listing, page, weights, segment, web, evaluate, train, portable, benchmark):
        module.register(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 for an error, 2 for wrong usage, 130 when interrupted."""
    _meet_any_console()
    args, unknown = all_commands().parse_known_args(argv)
    if unknown:
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    run: Callable[[argparse.Namespace], int] = args.run
    try:
        with command_line(), _plain_warnings():
            return run(args)
    except UPerNetZooError as error:
        print(f"upernet-zoo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("upernet-zoo: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `upernet-zoo list | head`: the reader has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _meet_any_console() -> None:
    r"""Where a console's encoding lacks a character, write \xdf and the like: classes and files have names in all languages."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print the library's own warnings as its errors are, without a line of Python; those of other libraries stay as they are."""
    form = warnings.formatwarning

    def plain(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
        own = category is UserWarning and Path(__file__).parents[1] in Path(filename).parents
        return f"upernet-zoo: {shown(str(message), 'message')}\n" if own else form(message, category, filename, lineno, line)

    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = form


if __name__ == "__main__":
    sys.exit(main())
