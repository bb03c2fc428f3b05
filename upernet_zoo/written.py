"""What the library wrote, told by the marks that it leaves in it; nothing else is replaced unasked. No torch here."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from . import files
from .errors import ArgumentError

__all__ = [
    "CONFIG_LINE",
    "MARK",
    "MODEL_FILES",
    "PROGRAM_FILE",
    "VERSION_KEY",
    "is_own",
    "require_replaceable",
    "require_replaceable_folder",
]

MARK = "upernet_zoo"
PROGRAM_FILE = "upernet_zoo.json"  # in a program of torch.export
VERSION_KEY = "upernet_zoo_version"  # in the meta of a checkpoint for mmsegmentation
CONFIG_LINE = "# Written by upernet_zoo"  # the begin of a config for mmsegmentation
MODEL_FILES = ("config.json", "model.safetensors")  # of a model in a folder
_HEAD = 1 << 16  # bytes; the marks of ONNX and safetensors files are near their start
_PRODUCER = 2  # number of `producer_name` in ONNX's ModelProto; the graph, which is all the rest, comes after it as number 7
_VARINT, _BYTES = 0, 2  # protobuf's wire types; the others have a fixed length
_FIXED = {1: 8, 5: 4}  # in bytes


def _in_head(path: Path, mark: str) -> bool:
    with path.open("rb") as file:
        return mark.encode() in file.read(_HEAD)


def _produced_here(path: Path) -> bool:
    """Whether an ONNX file's `producer_name` is the library's. Names in the graph are not looked at: they may be of our classes."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    at = 0
    while at < len(head):
        tag, at = _varint(head, at)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            _, at = _varint(head, at)
            continue
        length, at = _varint(head, at) if wire == _BYTES else (_FIXED.get(wire, len(head)), at)
        if number == _PRODUCER:
            return head[at : at + length] == MARK.encode()
        at += length
    return False


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number that begins there in protobuf's encoding, and where it ends.

    Raises:
        ValueError: none does.
    """
    value = 0
    for i, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, at + i + 1
    raise ValueError("no number")


def _in_zip(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if any(name.endswith(f"/{PROGRAM_FILE}") for name in names):
            return True
        pickles = [name for name in names if name.endswith("/data.pkl")]
        return any(VERSION_KEY.encode() in archive.read(name) for name in pickles if archive.getinfo(name).file_size < 1 << 24)


def _config(path: Path) -> bool:
    data = json.loads(path.read_text(encoding="utf-8"))
    return isinstance(data, dict) and data.get("library_name") == MARK  # a model of transformers may have been trained on since


def is_own(path: Path) -> bool:
    """Whether the library wrote a file: an exported model, weights, a config, a checkpoint for mmsegmentation."""
    checks = {
        ".onnx": lambda: _produced_here(path),
        ".safetensors": lambda: _in_head(path, f'"{MARK}"'),
        ".pt2": lambda: _in_zip(path),
        ".pth": lambda: _in_zip(path),
        ".py": lambda: _in_head(path, CONFIG_LINE),
        ".json": lambda: _config(path),
    }
    try:
        return checks[path.suffix.lower()]()
    except (KeyError, OSError, ValueError, RecursionError, zipfile.BadZipFile):
        return False


def require_replaceable(path: Path, overwrite: bool) -> None:
    """Refuse to replace a file that is there and that the library did not write, unasked; and a folder, which cannot be replaced.

    Raises:
        ArgumentError: a folder in place of a file.
        ExistingFileError: names it.
    """
    if path.is_dir():
        raise ArgumentError(f"{path} is a folder. Give the name of a file in it.")
    files.require_replaceable(path, is_own, overwrite)


def require_replaceable_folder(folder: Path, overwrite: bool | None) -> None:
    """The same of the files of a model in a folder, whose `config.json` says whose they are.

    Raises:
        ExistingFileError: names the first that is in the way.
    """
    own = is_own(folder / "config.json")
    for name in MODEL_FILES:
        files.require_replaceable(folder / name, lambda _: own, overwrite)
