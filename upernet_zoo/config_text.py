"""Values in the text of an mmsegmentation config, read without running it.

A checkpoint carries its training config as Python source. Here the source is parsed to a syntax tree and only assignments of plain
values are read: literals, lists, tuples, dicts, `dict(...)` calls, negative numbers, and names assigned before. All else is skipped;
in a dict, the item alone.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .errors import ConfigError, MissingFileError

MAX_CHARACTERS = 1 << 20
_MAX_FILES = 100
_DELETE = "_delete_"  # in a dict of a config file: it replaces the base's and is not merged into it


class _NotPlain(Exception):
    """An expression that is no plain value."""


def _value(node: ast.expr, names: dict[str, Any]) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, (ast.List, ast.Tuple)):
        items = [_value(item, names) for item in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    if isinstance(node, ast.Dict):
        if any(key is None for key in node.keys):
            raise _NotPlain
        keys = [_value(key, names) for key in node.keys]
        if not all(isinstance(key, (str, int, float, bool, type(None))) for key in keys):
            raise _NotPlain
        return _items(zip(keys, node.values), names)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        operand = _value(node.operand, names)
        if isinstance(operand, (int, float)):
            return -operand
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        if all(keyword.arg for keyword in node.keywords):
            return _items(((keyword.arg, keyword.value) for keyword in node.keywords), names)
    raise _NotPlain


def _items(items: Iterable[tuple[Any, ast.expr]], names: dict[str, Any]) -> dict[Any, Any]:
    """The items whose values are plain."""
    values = {}
    for key, node in items:
        try:
            values[key] = _value(node, names)
        except _NotPlain:
            continue
    return values


def _assignments(tree: ast.Module) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1 and isinstance(statement.targets[0], ast.Name):
            try:
                names[statement.targets[0].id] = _value(statement.value, names)
            except (_NotPlain, RecursionError):
                continue
    return names


def parse(text: Any) -> dict[str, Any]:
    """Name -> value of every top-level assignment of a plain value in `text`; {} if it is not Python source at all."""
    if not isinstance(text, str) or len(text) > MAX_CHARACTERS:
        return {}
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    return _assignments(tree)


def read_file(path: str | os.PathLike) -> dict[str, Any]:
    """The values of a config file with those of its `_base_` files beneath them, merged as mmcv's and mmengine's `Config` do.

    Base files are looked for beside the file that names them, and must be there; nothing is looked for elsewhere.

    Raises:
        MissingFileError: the file, or a base file, is not there.
        ConfigError: not Python source, bases that are no relative paths or name each other in a circle, or no `model` in it all.
    """
    try:
        found = _read_file(Path(path).expanduser(), (), [])
    except RecursionError:
        raise ConfigError(f"{path}: dicts nested too deep to be a config.") from None
    if not isinstance(found.get("model"), dict):
        raise ConfigError(
            f"{path}: assigns no dict to 'model', so it is no config of a model that can be read without running it. Pass the full config "
            "that training wrote into its work_dir."
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
        names = _assignments(ast.parse(text))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"{path}: not a config in Python: {error}.") from None
    bases = names.pop("_base_", [])
    merged: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases if isinstance(bases, (list, tuple)) else [bases]:
        if not isinstance(base, str) or Path(base).is_absolute() or ":" in base or "\\" in base:
            raise ConfigError(f"{path}: _base_ {base!r} is no relative path of a file beside it.")
        merged = _merge(merged, _read_file(path.parent / base, (*above, real), seen))
    return _merge(merged, names)


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
