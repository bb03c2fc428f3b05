"""A config's Python source followed statement by statement, without running it.

Values are literals, containers, `dict(...)` with what it unpacks, arithmetic, comparisons and names assigned before. Statements that set or
change them (assignments of every form, `if`, `del`, `.update(...)` and their like) are followed as Python would. What is neither is no
error and no silence: an `Unread` takes the value's place, and a statement that cannot be followed leaves one in all that it could change.
"""

from __future__ import annotations

import ast
import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["BASE", "Imported", "Reader", "TooMuchError", "Unread", "UnreadKey", "blemish"]

BASE = "_base_"  # names the base files, and holds their values in the statements below it
_WIDTH = 80  # of a statement that is shown
_MOST = 1 << 16  # items of a container or characters of a text that is computed
_LARGEST = 1 << 63  # number that is computed with
_BUDGET = 1 << 22  # items of all values of all expressions
_COPY = 16  # items that one costs which is copied deep
_SCALARS = (str, int, float, bool, type(None))
_NUMBERS = (int, float)


@dataclass(frozen=True)
class Unread:
    """Where the value of an expression should be that could not be followed.

    Attributes:
        line: of the source, from 1.
        text: its first characters.
        held: containers that the value may be, or be a part of: what changes it may change them.
    """

    line: int
    text: str
    held: tuple[Any, ...] = field(default=(), kw_only=True, compare=False)

    def __repr__(self) -> str:
        return f"<not read, line {self.line}: {self.text}>"


@dataclass(frozen=True, repr=False)
class Imported(Unread):
    """A name from another module, such as a class that a `type` names.

    Attributes:
        name: with its module, such as "mmseg.models.UPerHead".
    """

    name: str


class TooMuchError(Exception):
    """A source that computes more than a config does."""


class UnreadKey:
    """Key, in a dict that a statement which cannot be followed could have changed, of its `Unread`; a class, as copies keep it."""


def blemish(value: Any) -> Unread | None:
    """What could not be followed of a value as a whole (of its items, ask them)."""
    if isinstance(value, Unread):
        return value
    if isinstance(value, dict):
        return value.get(UnreadKey)
    if isinstance(value, (list, tuple)):
        return next((item for item in value if isinstance(item, Unread)), None)
    return None


def _is_small(*values: Any) -> bool:
    return all(abs(v) < _LARGEST if isinstance(v, _NUMBERS) else len(v) <= _MOST for v in values)


def _add(a: Any, b: Any) -> Any:
    if isinstance(a, _NUMBERS) and isinstance(b, _NUMBERS):
        return a + b
    if type(a) is type(b) and isinstance(a, (str, list, tuple)) and len(a) + len(b) <= _MOST:
        return a + b
    raise TypeError


def _multiply(a: Any, b: Any) -> Any:
    sequence, count = (a, b) if isinstance(b, int) else (b, a)
    if isinstance(sequence, (str, list, tuple)) and isinstance(count, int) and len(sequence) * count <= _MOST:
        return sequence * count
    return _numeric(operator.mul)(a, b)


def _numeric(function: Callable[..., Any]) -> Callable[..., Any]:
    def apply(*values: Any) -> Any:
        if not all(isinstance(value, _NUMBERS) for value in values):
            raise TypeError
        return function(*values)

    return apply


def _united(a: Any, b: Any) -> Any:
    if isinstance(a, dict) and isinstance(b, dict):
        return {**a, **b}
    raise TypeError


def _of_scalars(function: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    """Nested values are not compared: aliases may unfold them to billions of items."""

    def apply(a: Any, b: Any) -> bool:
        if not isinstance(a, _SCALARS) or not isinstance(b, _SCALARS):
            raise TypeError
        return function(a, b)

    return apply


def _contains(a: Any, b: Any) -> bool:
    if isinstance(a, _SCALARS) and isinstance(b, (str, list, tuple, dict)) and blemish(b) is None:
        return a in b
    raise TypeError


_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: _add,
    ast.Sub: _numeric(operator.sub),
    ast.Mult: _multiply,
    ast.Div: _numeric(operator.truediv),
    ast.FloorDiv: _numeric(operator.floordiv),
    ast.Mod: _numeric(operator.mod),
    ast.BitOr: _united,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: _numeric(operator.neg),
    ast.UAdd: _numeric(operator.pos),
    ast.Not: operator.not_,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: _of_scalars(operator.eq),
    ast.NotEq: _of_scalars(operator.ne),
    ast.Lt: _numeric(operator.lt),
    ast.LtE: _numeric(operator.le),
    ast.Gt: _numeric(operator.gt),
    ast.GtE: _numeric(operator.ge),
    ast.Is: _of_scalars(operator.is_),
    ast.IsNot: _of_scalars(operator.is_not),
    ast.In: _contains,
    ast.NotIn: lambda a, b: not _contains(a, b),
}
# calls that are followed: builtins, and methods of each kind of container
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{kind.__name__: kind for kind in (dict, list, tuple, int, float, bool, len)},
    "copy.copy": copy.copy,
    "copy.deepcopy": copy.deepcopy,
    "deepcopy": copy.deepcopy,
}
_METHODS: dict[type, tuple[str, ...]] = {
    dict: ("update", "get", "pop", "setdefault", "copy", "clear"),
    list: ("append", "extend", "insert", "pop", "remove", "reverse", "copy", "index"),
    tuple: ("index",),
}
_HOLDING = ("append", "insert", "setdefault")  # of these, those that hold a container as it is, whatever is in it
# calls that change nothing that they are given, followed or not
_PURE = frozenset(
    [
        "print",
        "str",
        "repr",
        "format",
        "isinstance",
        "sorted",
        "sum",
        "min",
        "max",
        "abs",
        "round",
        "range",
        "zip",
        "enumerate",
        "set",
        "any",
        "all",
        "map",
        "filter",
        "reversed",
        "type",
    ]
).union(_FUNCTIONS)
_PURE_METHODS = frozenset(
    [
        "get",
        "copy",
        "index",
        "keys",
        "values",
        "items",
        "strip",
        "lower",
        "upper",
        "replace",
        "split",
        "join",
        "format",
        "startswith",
        "endswith",
    ]
)
# with which a statement may change names that it does not show: bare, imported, and of whatever module or frame
_ANYTHING = frozenset(("exec", "eval", "globals", "locals", "vars", "setattr", "compile", "__builtins__", "builtins"))
_ANYTHING_OF = frozenset(("exec", "eval", "modules", "f_globals", "f_locals", "__dict__", "__globals__"))


class Reader:
    """Follows the statements of one file.

    Args:
        text: its source.
        base: values of its base files, which `_base_` names in it.

    Attributes:
        names: value of each name so far; under "*" an `Unread` once any name at all could have been changed.

    Raises:
        TooMuchError: more is computed than any config needs.
    """

    def __init__(self, text: str, base: dict[str, Any] | None = None) -> None:
        self._lines = text.splitlines()
        self._base = base
        self._left = _BUDGET
        self.names: dict[str, Any] = {}

    def follow(self, statements: Sequence[ast.stmt]) -> None:
        """Follow statements in their order."""
        for statement in statements:
            try:
                step = getattr(self, f"_follow_{type(statement).__name__.lower()}", None)
                followed = step is not None and step(statement)
            except RecursionError:
                followed = False
            if not followed:
                self._spoil(statement)
            if self._may_change_anything(statement.test if isinstance(statement, ast.If) else statement):
                self._spoil_all(self._unread(statement))

    def _may_change_anything(self, node: ast.AST) -> bool:
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and part.id in _ANYTHING and isinstance(part.ctx, ast.Load) and part.id not in self.names:
                return True
            if isinstance(part, ast.Attribute) and part.attr in _ANYTHING_OF:
                return True
            if isinstance(part, ast.alias) and part.name in _ANYTHING:
                return True
        return False

    # statements: each returns whether it was followed

    def _follow_pass(self, _: ast.Pass) -> bool:
        return True

    def _follow_assert(self, statement: ast.Assert) -> bool:
        self.value(statement.test)
        return True

    def _follow_assign(self, statement: ast.Assign) -> bool:
        value = self.value(statement.value)
        return all([self._assign(target, value, statement) for target in statement.targets])

    def _follow_annassign(self, statement: ast.AnnAssign) -> bool:
        return statement.value is None or self._assign(statement.target, self.value(statement.value), statement)

    def _follow_augassign(self, statement: ast.AugAssign) -> bool:
        current, change = self.value(statement.target), self.value(statement.value)
        if isinstance(statement.op, ast.Add) and isinstance(current, list) and isinstance(change, (list, tuple)):
            if len(current) + len(change) > _MOST:
                return False
            current.extend(change)  # in place, as Python does: other names may hold the same list
            return True
        if isinstance(statement.op, ast.BitOr) and isinstance(current, dict) and isinstance(change, dict):
            current.update(change)
            return True
        result = self._apply(_BINARY.get(type(statement.op)), statement, current, change)
        return self._assign(statement.target, result, statement)

    def _follow_delete(self, statement: ast.Delete) -> bool:
        for target in statement.targets:
            if isinstance(target, ast.Name):
                self.names.pop(target.id, None)
                continue
            holder, key = self._place(target)
            if not isinstance(holder, (dict, list)) or blemish(holder):
                return False
            try:
                del holder[key]
            except (LookupError, TypeError):
                return False
        return True

    def _follow_if(self, statement: ast.If) -> bool:
        test = self.value(statement.test)
        if blemish(test):
            return False
        self.follow(statement.body if test else statement.orelse)
        return True

    def _follow_expr(self, statement: ast.Expr) -> bool:
        self.value(statement.value)  # a call that is not followed has left its mark
        return True

    def _follow_import(self, statement: ast.Import) -> bool:
        for alias in statement.names:
            self._bind(alias, self._unread(statement))
        return True

    def _follow_importfrom(self, statement: ast.ImportFrom) -> bool:
        where = self._unread(statement)
        for alias in statement.names:
            self._bind(alias, Imported(where.line, where.text, f"{statement.module or ''}.{alias.name}"))
        return True

    # what statements have in common

    def _assign(self, target: ast.expr, value: Any, statement: ast.stmt) -> bool:
        if isinstance(target, ast.Name):
            self.names[target.id] = value
            return True
        if isinstance(target, (ast.Tuple, ast.List)):
            fits = isinstance(value, (list, tuple)) and len(value) == len(target.elts)
            if not fits or any(isinstance(item, ast.Starred) for item in target.elts):
                return False
            return all([self._assign(part, item, statement) for part, item in zip(target.elts, value)])
        holder, key = self._place(target)
        if blemish(holder) or isinstance(key, Unread):
            return False
        if isinstance(holder, dict) and isinstance(key, _SCALARS):
            holder[key] = value
            return True
        if isinstance(holder, list) and isinstance(key, int) and -len(holder) <= key < len(holder):
            holder[key] = value
            return True
        return False

    def _place(self, target: ast.expr) -> tuple[Any, Any]:
        """The container of a subscript or attribute, and its key."""
        if isinstance(target, ast.Subscript):
            return self.value(target.value), self.value(target.slice)
        if isinstance(target, ast.Attribute):
            return self.value(target.value), target.attr
        return None, None

    def _unread(self, node: ast.AST) -> Unread:
        line = getattr(node, "lineno", 1)
        text = self._lines[line - 1] if line <= len(self._lines) else ""
        if isinstance(node, ast.expr):  # offsets are of bytes
            text = text.encode()[node.col_offset : node.end_col_offset if node.end_lineno == line else None].decode(errors="replace")
        text = text.strip()
        names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        held = tuple(self.names[name] for name in names if isinstance(self.names.get(name), (dict, list, tuple, Unread)))
        held += (self._base,) if BASE in names else ()
        return Unread(line, text if len(text) <= _WIDTH else text[:_WIDTH] + "...", held=held)

    def _spoil(self, statement: ast.stmt) -> None:
        """Leave a mark in all that a statement could change."""
        where = self._unread(statement)
        self._mark_names(statement, where)
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
                self.names[node.id] = where
            elif isinstance(node, ast.alias):
                self._bind(node, where)
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                self.names[node.name] = where

    def _spoil_calls(self, expression: ast.expr) -> None:
        """Leave a mark in all that the calls in an expression could change: any of its names may be what a call is given."""
        for node in ast.walk(expression):
            if isinstance(node, ast.Call) and not self._is_pure(node):
                self._mark_names(expression, self._unread(node))
                break
        for node in ast.walk(expression):
            if isinstance(node, ast.NamedExpr):
                self.names[node.target.id] = self._unread(node)

    def _mark_names(self, node: ast.AST, where: Unread) -> None:
        found = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        seen: set[int] = set()
        for name in found:
            _mark(self._base if name == BASE else self.names.get(name), where, seen)

    def _spoil_all(self, where: Unread) -> None:
        seen: set[int] = set()
        _mark(self._base, where, seen)
        for name, value in self.names.items():
            _mark(value, where, seen)
            self.names[name] = where
        self.names["*"] = where

    def _bind(self, alias: ast.alias, where: Unread) -> None:
        """A name that is imported."""
        if alias.name == "*":
            self._spoil_all(where)
        else:
            self.names[alias.asname or alias.name.split(".")[0]] = where

    def _is_pure(self, call: ast.Call) -> bool:
        if isinstance(call.func, ast.Attribute):
            return call.func.attr in _PURE_METHODS
        return isinstance(call.func, ast.Name) and call.func.id in _PURE and call.func.id not in self.names

    # expressions

    def value(self, node: ast.expr) -> Any:
        """The value of an expression; an `Unread` where it cannot be followed."""
        step = getattr(self, f"_value_{type(node).__name__.lower()}", None)
        found = None if step is None else step(node)
        if step is None or found is NotImplemented:
            self._spoil_calls(node)
            return self._unread(node)
        self._pay(len(found) if isinstance(found, (str, list, tuple, dict)) else 1)
        return found

    def _pay(self, items: int) -> None:
        self._left -= items
        if self._left < 0:
            raise TooMuchError

    def _apply(self, function: Callable[..., Any] | None, node: ast.AST, *values: Any) -> Any:
        """`function(*values)`, or an `Unread`."""
        if function is None or any(blemish(value) is not None for value in values):
            return self._unread(node)
        try:
            result = function(*values)
        except (TypeError, ValueError, ArithmeticError, LookupError):
            return self._unread(node)
        if isinstance(result, (*_NUMBERS, str, list, tuple, dict)) and not _is_small(result):
            return self._unread(node)
        return result

    def _value_constant(self, node: ast.Constant) -> Any:
        return node.value if isinstance(node.value, _SCALARS) else NotImplemented

    def _value_name(self, node: ast.Name) -> Any:
        if node.id == BASE and self._base is not None:
            return self._base
        return self.names.get(node.id, NotImplemented)

    def _value_list(self, node: ast.List) -> Any:
        return self._items(node.elts)

    def _value_tuple(self, node: ast.Tuple) -> Any:
        return tuple(self._items(node.elts))

    def _items(self, nodes: list[ast.expr]) -> list[Any]:
        items: list[Any] = []
        for node in nodes:
            if not isinstance(node, ast.Starred):
                items.append(self.value(node))
                continue
            more = self.value(node.value)
            items.extend(more if isinstance(more, (list, tuple)) else [self._unread(node)])
        return items if len(items) <= _MOST else [self._unread(nodes[0])]

    def _value_dict(self, node: ast.Dict) -> Any:
        return self._pairs(zip(node.keys, node.values), node)

    def _pairs(self, pairs: Any, node: ast.AST) -> Any:
        """A dict of (key, value) expressions; without a key the value is a dict whose items it takes."""
        found: dict[Any, Any] = {}
        for key, item in pairs:
            value = self.value(item)
            if key is None:
                if not isinstance(value, dict):
                    found[UnreadKey] = self._unread(node)
                    continue
                found.update(value)
                continue
            name = key if isinstance(key, str) else self.value(key)
            if isinstance(name, _SCALARS):
                found[name] = value
            else:
                found[UnreadKey] = self._unread(node)
        return found

    def _value_set(self, node: ast.Set) -> Any:
        """`{{_base_.name}}`, which mmcv and mmengine replace by the base's value."""
        inner = node.elts[0] if len(node.elts) == 1 else None
        if isinstance(inner, ast.Set) and len(inner.elts) == 1 and self._base is not None:
            root = inner.elts[0]
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id == BASE:
                return self.value(inner.elts[0])
        return NotImplemented

    def _value_namedexpr(self, node: ast.NamedExpr) -> Any:
        found = self.names[node.target.id] = self.value(node.value)
        return found

    def _value_unaryop(self, node: ast.UnaryOp) -> Any:
        return self._apply(_UNARY.get(type(node.op)), node, self.value(node.operand))

    def _value_binop(self, node: ast.BinOp) -> Any:
        return self._apply(_BINARY.get(type(node.op)), node, self.value(node.left), self.value(node.right))

    def _value_boolop(self, node: ast.BoolOp) -> Any:
        found: Any = None
        for part in node.values:
            found = self.value(part)
            if blemish(found) or bool(found) is isinstance(node.op, ast.Or):
                break
        return found

    def _value_compare(self, node: ast.Compare) -> Any:
        left, found = self.value(node.left), True
        for kind, part in zip(node.ops, node.comparators):
            right = self.value(part)
            found = self._apply(_COMPARE.get(type(kind)), node, left, right)
            if isinstance(found, Unread) or not found:
                break
            left = right
        return found

    def _value_ifexp(self, node: ast.IfExp) -> Any:
        test = self.value(node.test)
        return NotImplemented if blemish(test) else self.value(node.body if test else node.orelse)

    def _value_subscript(self, node: ast.Subscript) -> Any:
        holder = self.value(node.value)
        if isinstance(node.slice, ast.Slice):
            parts = [None if part is None else self.value(part) for part in (node.slice.lower, node.slice.upper, node.slice.step)]
            if isinstance(holder, (list, tuple)) and all(part is None or type(part) is int for part in parts) and parts[2] != 0:
                return holder[slice(*parts)]
            return NotImplemented
        return self._item(holder, self.value(node.slice))

    def _value_attribute(self, node: ast.Attribute) -> Any:
        """Items of a dict by attribute, as `_base_.model.decode_head` and lazily read configs have them."""
        holder = self.value(node.value)
        return self._item(holder, node.attr) if isinstance(holder, dict) else NotImplemented

    def _item(self, holder: Any, key: Any) -> Any:
        usable = (isinstance(holder, dict) and isinstance(key, _SCALARS)) or (isinstance(holder, (list, tuple)) and isinstance(key, int))
        if not usable or blemish(holder):
            return NotImplemented
        try:
            return holder[key]
        except LookupError:
            return NotImplemented

    def _value_call(self, node: ast.Call) -> Any:
        if isinstance(node.func, ast.Name) and node.func.id == "dict" and "dict" not in self.names and not node.args:
            return self._pairs(((keyword.arg, keyword.value) for keyword in node.keywords), node)
        function = node.func
        name = ast.unparse(function) if isinstance(function, (ast.Name, ast.Attribute)) else ""
        known = name in _FUNCTIONS and (name not in self.names or isinstance(self.names[name], Imported))
        if not known and not isinstance(function, ast.Attribute):
            return NotImplemented
        arguments = self._items(node.args)
        options = self._pairs(((keyword.arg, keyword.value) for keyword in node.keywords), node)
        if UnreadKey in options:
            return NotImplemented
        if known or not isinstance(function, ast.Attribute):
            return NotImplemented if options and name != "dict" else self._called(_FUNCTIONS[name], arguments, options)
        holder = self.value(function.value)
        if blemish(holder) or function.attr not in _METHODS.get(type(holder), ()):
            return NotImplemented
        if not all(isinstance(argument, _SCALARS) for argument in arguments) and function.attr in ("remove", "index"):
            return NotImplemented  # compares, as `_of_scalars` does not
        if function.attr == "extend":
            grown = len(holder) + sum(len(more) if isinstance(more, (list, tuple)) else _MOST for more in arguments)
            if grown > _MOST:
                return NotImplemented
        return self._called(getattr(holder, function.attr), arguments, options)

    def _called(self, function: Callable[..., Any], arguments: list[Any], options: Mapping[str, Any]) -> Any:
        name = getattr(function, "__name__", "")
        unread = [isinstance(argument, Unread) if name in _HOLDING else blemish(argument) is not None for argument in arguments]
        if any(unread) and name != "append":
            return NotImplemented
        if function is copy.deepcopy:
            self._pay(_COPY * sum(map(_size, arguments)))
        try:
            return function(*arguments, **options)
        except (TypeError, ValueError, LookupError, ArithmeticError):
            return NotImplemented


def _size(value: Any) -> int:
    """Items of a value and of all containers in it, each container once."""
    seen: set[int] = set()
    waiting, total = [value], 0
    while waiting:
        one = waiting.pop()
        if isinstance(one, (dict, list, tuple)) and id(one) not in seen:
            seen.add(id(one))
            total += 1 + len(one)
            waiting.extend(one.values() if isinstance(one, dict) else one)
    return total


def _mark(value: Any, where: Unread, seen: set[int]) -> None:
    """Leave `where` in a container and in all containers in it; other names may hold them too."""
    if id(value) in seen or not isinstance(value, (dict, list, tuple, Unread)):
        return
    seen.add(id(value))
    if isinstance(value, Unread):
        for item in value.held:
            _mark(item, where, seen)
        return
    for item in list(value.values()) if isinstance(value, dict) else list(value):
        _mark(item, where, seen)
    if isinstance(value, dict):
        value.clear()
        value[UnreadKey] = where
    elif isinstance(value, list):
        value[:] = [where]
