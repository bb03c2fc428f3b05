"""Messages in the words of the door that the user came through: Python or the command line. One message serves both."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator
from contextvars import ContextVar

__all__ = ["command_line", "did_you_mean", "option", "same_name", "worded"]

_ON_COMMAND_LINE: ContextVar[bool] = ContextVar("upernet_zoo_on_command_line", default=False)
_FLAGS = {"mirrors": "--mirror"}  # where the option is not the argument's name with dashes


@contextlib.contextmanager
def command_line() -> Iterator[None]:
    """Word messages for the command line."""
    token = _ON_COMMAND_LINE.set(True)
    try:
        yield
    finally:
        _ON_COMMAND_LINE.reset(token)


def worded(python: str, command: str) -> str:
    """The one of two wordings that fits the door."""
    return command if _ON_COMMAND_LINE.get() else python


def option(name: str, value: str | int | None = None) -> str:
    """An argument and, if given, its value: `sha256='...'` in Python, `--sha256 ...` on the command line."""
    flag = _FLAGS.get(name, f"--{name.replace('_', '-')}")
    if value is None or value is True:
        return worded(f"{name}={value or ''}", flag)
    return worded(f"{name}={value!r}", f"{flag} {value}")


def did_you_mean(value: str, choices: Iterable[str]) -> str:
    """A question, with a space before it: the choices nearest to a value, whatever its case and dashes; empty where none is."""
    plain = {choice: _plain(choice) for choice in choices}
    wanted = _plain(value)
    near = [choice for choice, text in plain.items() if wanted and (text == wanted or text.startswith(wanted))]
    if not near:
        close = difflib.get_close_matches(wanted, plain.values(), n=3, cutoff=0.6)
        near = [choice for choice, text in plain.items() if text in close]
    return f" Did you mean {' or '.join(map(repr, near[:3]))}?" if near else ""


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def same_name(value: str, choices: Iterable[str]) -> str | None:
    """The one choice that a value is, but for case and dashes; None where it is none, or several."""
    found = [choice for choice in dict.fromkeys(choices) if choice == value] or [
        choice for choice in dict.fromkeys(choices) if _plain(choice) == _plain(value)
    ]
    return found[0] if len(found) == 1 else None
