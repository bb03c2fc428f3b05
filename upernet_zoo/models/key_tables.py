"""Names of tensors on two sides, ours and another library's, and the tables that translate between them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import CheckpointError

__all__ = ["KeyTable", "Rule"]


@dataclass(frozen=True)
class Rule:
    """How some tensors are named on both sides; what follows the prefix is the same.

    Args:
        ours: prefix of our names; `{i}`, `{j}` are whole numbers, as `{i}`, `{j}` in theirs.
        theirs: prefix of their names; several, where they keep in several tensors, along the first axis, what we have in one.
        to_ours: makes our tensor of theirs, where the order of its elements differs.
        to_theirs: the way back.
    """

    ours: str
    theirs: str | tuple[str, ...]
    to_ours: Callable[[Tensor], Tensor] | None = None
    to_theirs: Callable[[Tensor], Tensor] | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """Their prefixes."""
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs


def _pattern(prefix: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{(\w)\\\}", r"(?P<\1>[0-9]+)", re.escape(prefix)))


class KeyTable:
    """Names of tensors on two sides. The first rule that fits a name is used; a name that none fits is the same on both.

    Args:
        rules: a pair of prefixes is short for a `Rule`.
        ours, theirs: the table is for tensors that have all of these names, on our side and on theirs; without any, for none.
        derived: patterns, as in a rule, of names over there that hold what is computed from the config here, or what nothing uses.
    """

    def __init__(
        self,
        *rules: Rule | tuple[str, str],
        ours: Iterable[str] = (),
        theirs: Iterable[str] = (),
        derived: Iterable[str] = (),
    ) -> None:
        self.rules = tuple(rule if isinstance(rule, Rule) else Rule(*rule) for rule in rules)
        self.ours, self.theirs, self.derived = tuple(ours), tuple(theirs), tuple(derived)
        self._to_theirs = [(_pattern(rule.ours), rule) for rule in self.rules]
        self._to_ours = [(_pattern(part), rule, number) for rule in self.rules for number, part in enumerate(rule.parts)]
        self._derived = [_pattern(prefix) for prefix in self.derived]

    def __add__(self, other: KeyTable) -> KeyTable:
        """The rules of both."""
        return KeyTable(
            *self.rules,
            *other.rules,
            ours=self.ours + other.ours,
            theirs=self.theirs + other.theirs,
            derived=self.derived + other.derived,
        )

    def is_ours(self, names: Iterable[str]) -> bool:
        """Whether the table is for tensors that have these names here."""
        return bool(self.ours) and set(self.ours) <= set(names)

    def is_theirs(self, names: Iterable[str]) -> bool:
        """Whether the table is for tensors that have these names over there."""
        return bool(self.theirs) and set(self.theirs) <= set(names)

    def to_theirs(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same tensors under their names."""
        result = {}
        for key, value in state_dict.items():
            match, rule = next(((m, rule) for pattern, rule in self._to_theirs if (m := pattern.match(key))), (None, None))
            if match is None or rule is None:
                result[key] = value
                continue
            value = value if rule.to_theirs is None else rule.to_theirs(value)
            values = (value,) if len(rule.parts) == 1 else value.chunk(len(rule.parts))
            for part, one in zip(rule.parts, values):
                result[part.format(**match.groupdict()) + key[match.end() :]] = one
        return result

    def to_ours(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same tensors under our names, in their order; those that have our names already keep them.

        Raises:
            CheckpointError: two tensors would have one name, or a part of a tensor is not there.
        """
        found: dict[str, tuple[Rule | None, dict[int, tuple[str, Tensor]]]] = {}
        for key, value in state_dict.items():
            if any(pattern.match(key) for pattern in self._derived):
                continue
            name, rule, number = key, None, 0
            for pattern, one, part in self._to_ours:
                if match := pattern.match(key):
                    name, rule, number = one.ours.format(**match.groupdict()) + key[match.end() :], one, part
                    break
            parts = found.setdefault(name, (rule, {}))[1]
            if number in parts or found[name][0] is not rule:
                other = next(iter(parts.values()))[0]
                raise CheckpointError(f"{other!r} and {key!r} are two names of the same tensor. Save the state dict again.")
            parts[number] = key, value
        return {name: self._joined(name, rule, parts) for name, (rule, parts) in found.items()}

    @staticmethod
    def _joined(name: str, rule: Rule | None, parts: Mapping[int, tuple[str, Tensor]]) -> Tensor:
        if rule is None:
            return parts[0][1]
        if len(parts) < len(rule.parts):
            there = ", ".join(key for key, _ in parts.values())
            raise CheckpointError(f"{name!r} is made of {len(rule.parts)} tensors, and only {there} is there.")
        value = torch.cat([parts[i][1] for i in range(len(parts))]) if len(parts) > 1 else parts[0][1]
        return value if rule.to_ours is None else rule.to_ours(value)
