"""What is stated of licenses: who says what of code, weights and data, and where it is read. No torch, no network.

Nothing here is advice, and no one answer is made of several: a license is what its source states, and what no source states is
"not stated". Terms of data sets are in `licenses.json` beside this file; what is stated of a model's code, weights and pretrained backbone
is in the index, under `Licenses` of its collection.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["NOT_STATED", "Licenses", "Statement", "Terms", "fitting", "of_data"]

NOT_STATED = "not stated"


@dataclass(frozen=True)
class Statement:
    """What one source states.

    Attributes:
        by: who says it: a host, a repository, an organization.
        license: an identifier of https://spdx.org/licenses, or a name of the source's own terms; None where it states none.
        source: URL where that is read; None where there is nothing to read.
        note: in a sentence or two, what else has to be known; empty if nothing.
    """

    by: str
    license: str | None = None
    source: str | None = None
    note: str = ""

    def __str__(self) -> str:
        """On one line, such as "MIT (hf-hub:openmmlab/upernet-swin-tiny, https://huggingface.co/openmmlab)"."""
        where = ", ".join(filter(None, (self.by, self.source)))
        return f"{self.license or NOT_STATED} ({where})" + (f": {self.note}" if self.note else "")


@dataclass(frozen=True)
class Terms:
    """All that is stated of one thing.

    Attributes:
        name: of the thing, such as "weights" or "Cityscapes".
        stated: one statement for each source, that of the origin first.
    """

    name: str
    stated: tuple[Statement, ...] = ()

    @property
    def licenses(self) -> tuple[str, ...]:
        """The different ones that are stated; empty if none is."""
        return tuple(dict.fromkeys(one.license for one in self.stated if one.license))

    @property
    def disagree(self) -> bool:
        """Whether two sources state different ones."""
        return len(self.licenses) > 1

    def __str__(self) -> str:
        """The licenses in short, such as "Apache-2.0 | MIT"."""
        return " | ".join(self.licenses) or NOT_STATED

    def lines(self) -> list[str]:
        """Each statement on a line, and one more where they disagree."""
        lines = [str(one) for one in self.stated] or [NOT_STATED]
        return [*lines, f"sources disagree: {' and '.join(self.licenses)}"] if self.disagree else lines


@dataclass(frozen=True)
class Licenses:
    """What is stated of a model.

    Attributes:
        code: the original implementation. The package's own code is Apache-2.0.
        weights: the checkpoint file, one statement for each host that has it or a copy.
        backbone: the pretrained backbone that training started from; None if it is not known.
        training: each data set that it was trained on.
        pretraining: each data set that the backbone was trained on before.
    """

    code: Terms = field(default_factory=lambda: Terms("code"))
    weights: Terms = field(default_factory=lambda: Terms("weights"))
    backbone: Terms | None = None
    training: tuple[Terms, ...] = ()
    pretraining: tuple[Terms, ...] = ()

    @property
    def data(self) -> tuple[Terms, ...]:
        """All data sets."""
        return (*self.training, *self.pretraining)

    def names(self) -> tuple[str, ...]:
        """Every license that somebody states of a part of the model."""
        parts = [self.code, self.weights, *([self.backbone] if self.backbone else []), *self.data]
        return tuple(dict.fromkeys(name for part in parts for name in part.licenses or (NOT_STATED,)))

    def lines(self) -> dict[str, list[str]]:
        """All of it as text: a heading for each part, and its statements."""
        backbone = self.backbone or Terms("")
        return {
            "code license": self.code.lines(),
            "weights license": self.weights.lines(),
            "started from": [f"{backbone.name}: {line}" if backbone.name else line for line in backbone.lines()],
            "trained on": _each(self.training),
            "pretrained on": _each(self.pretraining),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)


def _each(data: Iterable[Terms]) -> list[str]:
    return [f"{terms.name}: {line}" for terms in data for line in terms.lines()] or [NOT_STATED]


@functools.cache
def _data_sets() -> tuple[tuple[frozenset[str], Terms], ...]:
    """Of each data set that terms are known of: the published names that it is part of, in lower case, and its terms."""
    rows = json.loads((Path(__file__).resolve().parent / "licenses.json").read_text(encoding="utf-8"))
    return tuple(
        (frozenset(name.lower() for name in row["part_of"]), Terms(row["name"], tuple(Statement(**one) for one in row["stated"])))
        for row in rows
    )


def of_data(name: str | None) -> tuple[Terms, ...]:
    """What is stated of data.

    Args:
        name: as published, such as "Pascal VOC 2012 + Aug", which has two data sets in it; case does not matter. None: not known.

    Returns:
        The terms of each data set in it; of a name that nothing is known of, terms without a statement.
    """
    if name is None:
        return ()
    return tuple(terms for names, terms in _data_sets() if name.lower() in names) or (Terms(name),)


def fitting(place: str, known: Iterable[tuple[str, Statement]]) -> Statement:
    """What is stated of weights at a place: the first statement whose pattern (shell wildcards) fits it; else that nothing is stated."""
    found = next((statement for pattern, statement in known if fnmatch.fnmatchcase(place, pattern)), Statement(place))
    return dataclasses.replace(found, by=place)
