"""A batch that survives its worst member: what went wrong with each picture, told at the end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from . import files, memory
from .errors import UPerNetZooError, WriteError

__all__ = ["Failures"]


class Failures:
    """The members of a batch that failed, in order, and why.

    Attributes:
        found: name -> what went wrong with it.
    """

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.found)

    @contextlib.contextmanager
    def survived(self, name: str | os.PathLike[str]) -> Iterator[None]:
        """Note an error of the library inside the block, or memory that ran out, as that of `name`; the batch goes on after it.

        Raises:
            WriteError: the disk is full, which no other member would survive either.
        """
        try:
            with memory.refused(str(name)):
                yield
        except UPerNetZooError as error:
            if isinstance(error, WriteError) and files.is_full(error):
                raise
            self.found[str(name)] = str(error)

    def report(self, of: int) -> str:
        """How many of a batch of `of` failed, and a line for each with its name."""
        lines = [f"  {message}" if name in message else f"  {name}: {message}" for name, message in self.found.items()]
        return "\n".join([f"{len(self)} of {of} {'pictures' if of != 1 else 'picture'} failed:", *lines])
