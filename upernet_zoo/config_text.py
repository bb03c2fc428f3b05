"""Values in the text of an mmsegmentation config, read without running it.

A published checkpoint carries its training config as Python source. Here the source is parsed to a syntax tree and only
assignments of plain values are read: literals, lists, tuples, dicts, `dict(...)` calls, negative numbers, and names assigned
before. All else is skipped.
"""

from __future__ import annotations

import ast
from typing import Any

MAX_CHARACTERS = 1 << 20


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
        return dict(zip(keys, (_value(item, names) for item in node.values)))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        operand = _value(node.operand, names)
        if isinstance(operand, (int, float)):
            return -operand
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        if all(keyword.arg for keyword in node.keywords):
            return {keyword.arg: _value(keyword.value, names) for keyword in node.keywords}
    raise _NotPlain


def parse(text: Any) -> dict[str, Any]:
    """Name -> value of every top-level assignment of a plain value in `text`; {} if it is not Python source at all."""
    if not isinstance(text, str) or len(text) > MAX_CHARACTERS:
        return {}
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    names: dict[str, Any] = {}
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1 and isinstance(statement.targets[0], ast.Name):
            try:
                names[statement.targets[0].id] = _value(statement.value, names)
            except (_NotPlain, RecursionError):
                continue
    return names


def find(value: Any, *path: str, kind: type | tuple[type, ...]) -> Any:
    """The value at a path of keys in nested dicts, or None where it is absent or not of `kind`."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, kind) else None
