"""Progress bars, on stderr: the one place that makes them. `options` are tqdm's own, such as total, unit and desc."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["bar", "counter", "on_terminal"]

T = TypeVar("T")


def bar(items: Iterable[T], *, show: bool, **options: Any) -> tqdm[T]:
    """The items, under a bar that counts them."""
    from tqdm import tqdm

    return tqdm(items, disable=not show, **options)


def counter(*, show: bool, **options: Any) -> tqdm[Any]:
    """A bar that is told of what is done."""
    from tqdm import tqdm

    return tqdm(disable=not show, **options)


def on_terminal() -> bool:
    """Whether somebody watches: for bars that would only fill a log."""
    return sys.stderr is not None and sys.stderr.isatty()
