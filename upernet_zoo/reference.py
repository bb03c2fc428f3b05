"""How a model is named, everywhere: one grammar, parsed here. No torch.

    upernet_r50_512x512_160k_ade20k    a name of the index
    demo                               the small model in the package; needs no network
    model.pth, runs/mine.safetensors   a checkpoint file
    runs/best, local-dir:runs/best     a folder that save_pretrained wrote
    hf-hub:org/name[@revision]         a repository on the Hugging Face Hub
    a Path                             a file or a folder, never a name
    a model                            itself

A name of the index and "demo" come before a file or folder of the same spelling: what happens to be in the working directory does not
change what a name means. `./NAME`, a `Path` or "local-dir:NAME" is the file or folder.
"""

from __future__ import annotations

import difflib
import enum
import errno
import functools
import os
import re
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import index
from .errors import ArgumentError, MissingFileError, ModelNotFoundError, shown
from .files import expanded
from .wording import option, worded

__all__ = ["DEMO_FOLDER", "DEMO_NAME", "FOLDER_PREFIX", "HUB_PREFIX", "Kind", "Reference", "Repository", "demo_entry", "saved_place"]

HUB_PREFIX = "hf-hub:"
FOLDER_PREFIX = "local-dir:"
DEMO_NAME = "demo"
DEMO_FOLDER = Path(__file__).resolve().parent / "demo"
_CHECKPOINT_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
_PREFIX = re.compile(r"([A-Za-z][A-Za-z0-9+_-]+):")  # two letters or more: one is a drive of Windows
_EXAMPLE = "upernet_r50_512x512_160k_ade20k"


class Kind(enum.Enum):
    """What a reference names."""

    NAME = "a name of the index"
    DEMO = "the demo model in the package"
    FILE = "a checkpoint file"
    FOLDER = "a folder"
    HUB = "a repository on the Hub"
    MODEL = "a model"


@dataclass(frozen=True)
class Repository:
    """A repository on the Hub: "organization/name", and a branch, tag, `refs/pr/1` or commit (None: the main branch)."""

    id: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str, revision: str | None = None) -> Repository:
        """From "org/name" or "org/name@revision", with or without "hf-hub:".

        Raises:
            ArgumentError: not of that form, or two revisions.
        """
        name, _, named = text.removeprefix(HUB_PREFIX).partition("@")
        if name.count("/") != 1 or not all(name.split("/")) or ("@" in text and not named):
            raise ArgumentError(f"{shown(text)}: expected a Hub repository as '{HUB_PREFIX}organization/name' or '...@revision'.")
        if revision is not None and named and named != revision:
            raise ArgumentError(f"{shown(text)} names revision {named!r}, and revision= is {revision!r}: give one of them.")
        return cls(name, revision or named or None)

    def __str__(self) -> str:
        return HUB_PREFIX + self.id + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class Reference:
    """What a model is named by.

    Attributes:
        kind: what `text` names; it says which of the others is set.
        text: as it was given.
        entry: of a name of the index, and of the demo.
        path: of a file or folder.
        repository: on the Hub.
        model: the object itself, an `nn.Module`.
    """

    kind: Kind
    text: str
    entry: index.ModelEntry | None = None
    path: Path | None = None
    repository: Repository | None = None
    model: Any = None

    @classmethod
    def parse(cls, value: Any) -> Reference:
        """The reference that a value is. The disk is looked at only where neither a prefix nor the index says what it is.

        Raises:
            ArgumentError: something that names no model: another type, an empty text, a URL, an unknown prefix.
            MissingFileError: a path where there is nothing.
            ModelNotFoundError: no such name; the message has the nearest ones.
        """
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(value, torch.nn.Module):
            return cls(Kind.MODEL, f"a {type(value).__name__}", model=value)
        if isinstance(value, os.PathLike) and isinstance(path := os.fspath(value), str):
            return cls._on_disk(path) or _nothing_at(path)
        if not isinstance(value, str) or not value:
            raise ArgumentError(f"expected a name such as {_EXAMPLE!r}, the path of a file or folder, or a UPerNet, found {shown(value)}.")
        if value.startswith(HUB_PREFIX):
            return cls(Kind.HUB, value, repository=Repository.parse(value))
        if value.startswith(FOLDER_PREFIX):
            if not (folder := value.removeprefix(FOLDER_PREFIX)):
                raise ArgumentError(f"{value!r}: expected a folder, as '{FOLDER_PREFIX}FOLDER'.")
            return cls(Kind.FOLDER, value, path=expanded(folder))
        if value == DEMO_NAME:
            return cls(Kind.DEMO, value, entry=demo_entry())
        if (entry := index.default().get(value)) is not None:
            return cls(Kind.NAME, value, entry=entry)
        return cls._on_disk(value) or _unknown(value)

    @classmethod
    def _on_disk(cls, text: str) -> Reference | None:
        path = expanded(text)
        try:
            mode = path.stat().st_mode
        except ValueError:  # a zero byte
            return None
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EINVAL):
                return None
            raise MissingFileError(f"{path}: cannot be read ({error.strerror}). Check its permissions and those of its folder.") from None
        return cls(Kind.FOLDER if stat.S_ISDIR(mode) else Kind.FILE, text, path=path)

    def require_options(
        self, *, checkpoint: Any = None, sha256: Any = None, mirrors: Sequence[Any] | str = (), pretrained: bool = True
    ) -> None:
        """Refuse loading options that cannot be meant for this kind of reference. The others go with every kind.

        Raises:
            ArgumentError: names them.
        """
        given = {"checkpoint": checkpoint is not None, "sha256": sha256 is not None, "mirrors": len(mirrors) > 0}
        fitting = {Kind.NAME: tuple(given), Kind.FILE: ("sha256",)}.get(self.kind, ())
        unfit = [name for name in given if name not in fitting]
        if any(given[name] for name in unfit):
            what = _enumerated([option(name) for name in unfit])
            pin = f" A repository is pinned by its commit: {HUB_PREFIX}organization/name@COMMIT." if self.kind is Kind.HUB else ""
            index_name = worded("a name of the index", "a name of the index (upernet-zoo list)")
            raise ArgumentError(f"{what} go with {index_name}, not with {shown(self.text)}, {self.kind.value}.{pin}")
        if any(given.values()) and not pretrained:
            what = _enumerated([option(name) for name in given])
            raise ArgumentError(f"{what} {worded('go with pretrained=True', 'do not go with --random')}: no checkpoint is read without it.")
        if checkpoint is not None and not isinstance(checkpoint, (str, os.PathLike)):
            raise ArgumentError(f"{option('checkpoint')} takes the path of a file, found {shown(checkpoint)}.")


def saved_place(ref: str | os.PathLike[str], revision: str | None = None) -> Path | Repository:
    """What `UPerNet.from_pretrained` loads: a folder, or a repository, whose prefix may be left out there.

    Raises:
        ArgumentError: two revisions, or one of a folder.
        ModelNotFoundError: neither.
    """
    text = os.fspath(ref)
    if isinstance(ref, str) and ref.startswith(HUB_PREFIX):
        return Repository.parse(text, revision)
    folder = expanded(text.removeprefix(FOLDER_PREFIX) if isinstance(ref, str) else text)
    if folder.is_dir() or text.startswith(FOLDER_PREFIX):
        if revision is not None:
            raise ArgumentError(f"{shown(text)} is a folder, and has no revision {revision!r}. Leave out revision=.")
        return folder
    if not isinstance(ref, str) or text.count("/") != 1:
        raise ModelNotFoundError(
            f"{shown(text)} is neither a folder nor a Hub repository 'organization/name'. A name of the index, or a checkpoint file, is "
            "loaded by create_model."
        )
    return Repository.parse(text, revision)


@functools.cache
def demo_entry() -> index.ModelEntry:
    """The entry of the demo, in an index of its own; its checkpoint is beside it in `DEMO_FOLDER`."""
    return next(iter(index.load(DEMO_FOLDER / "model_index.yml").entries.values()))


def _nothing_at(text: str) -> Reference:
    raise MissingFileError(f"{shown(text)}: no such file or folder. Check the path.")


def _unknown(text: str) -> Reference:
    """Say what a text might have meant that is neither a name of the index nor there on the disk."""
    prefix = _PREFIX.match(text)
    if prefix and text[prefix.end() :].startswith("//"):
        raise ArgumentError(
            f"{shown(text, 'url')} is a URL. Further places to look for the file of a name of the index go with {option('mirrors')}; the "
            "file of any other model is downloaded first, and named by its path."
        )
    if prefix:
        near = difflib.get_close_matches(prefix[0].lower().replace("_", "-"), (HUB_PREFIX, FOLDER_PREFIX), n=1, cutoff=0.5)
        meant = f"Did you mean {near[0] + text[prefix.end() :]!r}?" if near else f"Prefixes are {HUB_PREFIX} and {FOLDER_PREFIX}."
        raise ArgumentError(f"{shown(text)}: no such file, and no known prefix. {meant}")
    if text.lower() == DEMO_NAME:
        raise ModelNotFoundError(f"No model named {text!r}. Did you mean {DEMO_NAME}?")
    is_path = re.search(r"[/\\]", text) or text.startswith(("~", ".")) or text.lower().endswith(_CHECKPOINT_SUFFIXES)
    if not is_path:
        index.default().info(text)  # which names the nearest
    on_hub = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(@.+)?", text) and not text.lower().endswith(_CHECKPOINT_SUFFIXES)
    hint = f"For a repository on the Hugging Face Hub: {HUB_PREFIX}{text}." if on_hub else "Check the path."
    raise MissingFileError(f"{shown(text)}: no such file or folder, and no name of the index. {hint}")


def _enumerated(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
