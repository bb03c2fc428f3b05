"""Values in the text of an mmsegmentation config, read without running it, its `_base_` files merged beneath.

A checkpoint carries its training config as Python source. `mmseg_source` follows its statements; what it could not follow is kept, as an
`Unread` in the place of the value, so that it neither passes in silence nor loses to what a base file says.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError, MissingFileError
from ..files import expanded
from .mmseg_source import BASE, Imported, Reader, TooMuchError, Unread, UnreadKey, blemish

__all__ = ["MAX_CHARACTERS", "Values", "find", "parse", "read_file", "type_name", "unread"]

MAX_CHARACTERS = 1 << 20
_MAX_FILES = 100
_MOST_NAMED = 100  # values that `unread` finds
_DELETE = "_delete_"  # in a dict of a config file: it replaces the base's and is not merged into it


class Values(dict[str, Any]):
    """Name -> value of a config; in the values below the names an `Unread` is where one could not be followed.

    Attributes:
        unread: the same of the names themselves; "*" for statements that may have changed any name.
    """

    def __init__(self, names: Mapping[Any, Any]) -> None:
        super().__init__({name: value for name, value in names.items() if not isinstance(value, Unread)})
        self.unread = {"*" if name is UnreadKey else name: value for name, value in names.items() if isinstance(value, Unread)}


def parse(text: Any) -> Values:
    """Every top-level name of `text` whose value could be followed; none if it is not Python source at all."""
    if not isinstance(text, str) or len(text) > MAX_CHARACTERS:
        return Values({})
    try:
        reader = Reader(text)
        reader.follow(ast.parse(text).body)
        return Values(reader.names)
    except TooMuchError:
        return Values({"*": Unread(1, "more is computed than any config does")})
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return Values({})


def read_file(path: str | os.PathLike) -> Values:
    """The values of a config file with those of its `_base_` files beneath them, merged as mmcv's and mmengine's `Config` do.

    Base files are looked for beside the file that names them, and must be there; nothing is looked for elsewhere.

    Raises:
        MissingFileError: the file, or a base file, is not there.
        ConfigError: not Python source, bases that are no relative paths or name each other in a circle, statements that may have changed
            anything and cannot be followed, or no `model` in it all.
    """
    try:
        names = _read_file(expanded(path), (), [])
    except RecursionError:
        raise ConfigError(f"{path}: dicts nested too deep to be a config.") from None
    found = Values(names)
    cause = blemish(found["model"]) if "model" in found else found.unread.get("model", found.unread.get("*"))
    if cause is not None or not isinstance(found.get("model"), dict):
        said = f": line {cause.line}, `{cause.text}`, is not followed" if cause is not None else ""
        raise ConfigError(
            f"{path}: assigns no dict to 'model' that can be read without running it{said}. Pass the full config that training wrote into "
            "its work_dir."
        )
    return found


def _read_file(path: Path, above: tuple[Path, ...], seen: list[Path]) -> dict[str, Any]:
    """`above`: the files that named this one as their base, one another's; `seen`: all files read so far."""
    real = path.resolve()
    if real in above:
        raise ConfigError(f"{path}: names itself as its _base_, by way of {' and '.join(p.name for p in above)}.")
    seen.append(real)
    if len(seen) > _MAX_FILES:
        raise ConfigError(f"{path}: more than {_MAX_FILES} _base_ files.")
    if not path.is_file():
        raise MissingFileError(
            f"No config file at {path}" + (f", which {above[-1]} names as its _base_" if above else "") + ". Check the path."
        )
    try:
        text = path.read_text(encoding="utf-8")
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"more than {MAX_CHARACTERS} characters")
        statements = ast.parse(text).body
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"{path}: not a config in Python: {error}.") from None
    base: dict[str, Any] = {}
    for name in _bases(statements, text, path):
        base = _merge(base, _read_file(path.parent / name, (*above, real), seen))
    reader = Reader(text, base)
    try:
        reader.follow(statements)
    except TooMuchError:
        raise ConfigError(
            f"{path}: computes more than any config does. Pass the full config that training wrote into its work_dir."
        ) from None
    names = reader.names
    names.pop(BASE, None)
    return _merge(base, names)


def _bases(statements: list[ast.stmt], text: str, path: Path) -> list[str]:
    """What a file names as its base files; with them known, its other statements are followed."""
    reader = Reader(text)
    named = [s for s in statements if isinstance(s, ast.Assign) and any(isinstance(t, ast.Name) and t.id == BASE for t in s.targets)]
    reader.follow(named)
    bases = reader.names.get(BASE, [])
    bases = [bases] if isinstance(bases, str) else bases if isinstance(bases, (list, tuple)) else [bases]
    for base in bases:
        if not isinstance(base, str) or Path(base).is_absolute() or ":" in base or "\\" in base:
            raise ConfigError(f"{path}: _base_ {base!r} is no relative path of a file beside it.")
    return list(bases)


def _merge(base: dict[Any, Any], changes: dict[Any, Any]) -> dict[Any, Any]:
    """`changes` over `base`: dicts item by item, all else replaced; a dict with `_delete_=True` replaces too."""
    merged = {} if changes.get(_DELETE) else dict(base)
    for key, value in changes.items():
        if key != _DELETE:
            both = isinstance(value, dict) and isinstance(merged.get(key), dict)
            merged[key] = _merge(merged[key], value) if both else value
    return merged


def find(value: Any, *path: str, kind: type | tuple[type, ...]) -> Any:
    """The value at a path of keys in nested dicts, or None where it is absent or not of `kind`."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, kind) else None


def type_name(value: Any) -> str | None:
    """The class that a `type` names, without its module or scope: "Resize" of "mmcv.transforms.processing.Resize"."""
    name = getattr(value, "name", value)  # of an imported class
    return name.rsplit(".", 1)[-1] if isinstance(name, str) else None


def unread(values: Mapping[str, Any], *path: str) -> dict[str, Unread]:
    """Dotted path -> what could not be followed at a path of keys and below; a path whose beginning is unread is so too."""
    missing = getattr(values, "unread", {})
    held: Any = values
    for position, key in enumerate(path):
        cause = blemish(held)
        if position == 0 and key not in held:
            cause = missing.get(key, missing.get("*"))
        if cause is not None:
            return {".".join(path[: position + 1]): cause}
        held = held.get(key) if isinstance(held, dict) else None
    found: dict[str, Unread] = {}
    for where, cause in _below(held, ".".join(path), set()):
        found[where] = cause
        if len(found) == _MOST_NAMED:
            break
    return found


def _below(value: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Unread]]:
    if isinstance(value, Unread):
        yield path, value
    if not isinstance(value, (dict, list, tuple)) or id(value) in seen:
        return
    seen.add(id(value))
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if key == "type" and isinstance(item, Imported):
            continue  # `type_name` reads it
        inner = f"{path}.{key}" if isinstance(value, dict) else f"{path}[{key}]"
        yield from _below(item, path if key is UnreadKey else inner, seen)
