"""Label sets: class names, colours, and how the ids in a data set's files map to the ids that a model is trained on.

Names and palettes are those of mmsegmentation 0.30 (`labels.json`), kept letter for letter; ids on disk are those of
cityscapesScripts (`helpers/labels.py`), of the ADE20K scene parsing benchmark (0 is unlabelled, ids start at 1) and of the
Pascal VOC development kit.
"""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ArgumentError, ConfigError, ModelNotFoundError, shown

if TYPE_CHECKING:
    import numpy as np

# label id of each Cityscapes train id, 0 to 18
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_MAX_ID = 65535  # what a 16-bit label file holds


@dataclass(frozen=True)
class LabelSet:
    """Classes of a model or a data set.

    Args:
        name: short name, such as "cityscapes".
        classes: a name for each train id.
        palette: an RGB colour (0..255) for each train id; by default the Pascal VOC colour map.
        dataset_ids: the id that files of the data set use for each train id; by default the train id itself.
        void_ids: further ids that files may hold and that are no class: they become `ignore_index`.
        void_id: what `to_dataset_ids` writes where there is no class; one of the void ids. 65535 where 255 is a class.
        ignore_index: train id of pixels without a label; 65535 where 255 is a class.
        title: the name as people write it.

    Raises:
        ConfigError: lists that do not fit together.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...] = ()
    dataset_ids: tuple[int, ...] = ()
    void_ids: tuple[int, ...] = (255,)
    void_id: int = 255
    ignore_index: int = 255
    title: str = ""

    def __post_init__(self):
        owner = f"Label set {shown(self.name)}"
        if not isinstance(self.name, str) or not self.name:
            raise ConfigError(f"Label set: the name must be text, found {shown(self.name)}.")
        if not isinstance(self.title, str):
            raise ConfigError(f"{owner}: the title must be text, found {shown(self.title)}.")
        good = isinstance(self.classes, Sequence) and not isinstance(self.classes, str)
        if not good or not self.classes or not all(isinstance(c, str) for c in self.classes):
            raise ConfigError(f"{owner}: classes must be a list of names, found {shown(self.classes)}.")
        count = len(self.classes)
        if count > 1 << 15:
            raise ConfigError(f"{owner}: {count} classes; at most {1 << 15} can be told apart in a label map.")
        try:
            palette = tuple(tuple(map(operator.index, colour)) for colour in self.palette) or voc_colours(count)
            ids = tuple(map(operator.index, self.dataset_ids)) or tuple(range(count))
            void_ids = tuple(map(operator.index, self.void_ids))
        except TypeError:
            raise ConfigError(f"{owner}: palette, dataset_ids and void_ids must be lists of whole numbers.") from None
        if len(palette) != count or any(len(c) != 3 or min(c) < 0 or max(c) > 255 for c in palette):
            raise ConfigError(f"{owner}: the palette must be {count} colours of three numbers from 0 to 255, one for each class.")
        if len(ids) != count or len(set(ids)) != count or min(ids) < 0 or max(ids) > _MAX_ID:
            raise ConfigError(f"{owner}: dataset_ids must be {count} different ids from 0 to {_MAX_ID}, one for each class.")
        if any(not 0 <= i <= _MAX_ID for i in void_ids):
            raise ConfigError(f"{owner}: void_ids must be ids from 0 to {_MAX_ID}.")
        for key, taken in (("ignore_index", range(count)), ("void_id", ids)):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_ID:
                raise ConfigError(f"{owner}: {key} must be a whole number from 0 to {_MAX_ID}, found {shown(value)}.")
            if value == 255 and value in taken:  # the default, and there are more than 255 classes or masks of 0 and 255
                value = _MAX_ID
            if value in taken:
                raise ConfigError(f"{owner}: {key} {value} is the id of a class. Give one that is none.")
            object.__setattr__(self, key, value)
        if self.void_id not in void_ids:
            void_ids += (self.void_id,)
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "palette", palette)
        object.__setattr__(self, "dataset_ids", ids)
        object.__setattr__(self, "void_ids", tuple(i for i in void_ids if i not in ids))
        object.__setattr__(self, "title", self.title or self.name)

    def __len__(self) -> int:
        return len(self.classes)

    def to_train_ids(self, ids: np.ndarray) -> np.ndarray:
        """Ids as the data set's files hold them -> train ids (int64, `ignore_index` where there is no class).

        Raises:
            ArgumentError: an id that the label set does not know.
        """
        import numpy as np

        ids = np.asarray(ids)
        table = np.full(_MAX_ID + 1, -1, np.int64)
        table[list(self.void_ids)] = self.ignore_index
        table[list(self.dataset_ids)] = np.arange(len(self))
        return self._look_up(table, ids, "label ids")

    def to_dataset_ids(self, train_ids: np.ndarray) -> np.ndarray:
        """Train ids -> ids as the data set's files hold them (int64); `ignore_index` becomes `void_id`.

        Raises:
            ArgumentError: an id that is neither a class nor `ignore_index`.
        """
        import numpy as np

        table = np.full(_MAX_ID + 1, -1, np.int64)
        table[self.ignore_index] = self.void_id
        table[: len(self)] = self.dataset_ids
        return self._look_up(table, np.asarray(train_ids), "train ids")

    def _look_up(self, table, ids, kind):
        import numpy as np

        if ids.dtype.kind not in "ui":
            raise ArgumentError(f"Label set {self.name!r}: {kind} must be whole numbers, found dtype {ids.dtype}.")
        inside = (ids >= 0) & (ids < len(table)) if ids.dtype.itemsize > 2 or ids.dtype.kind == "i" else None
        out = table[ids if inside is None else np.where(inside, ids, 0)]
        if inside is not None:
            out[~inside] = -1
        if (out < 0).any():
            unknown = np.unique(ids[out < 0])
            shown = ", ".join(map(str, unknown[:10])) + (", ..." if len(unknown) > 10 else "")
            raise ArgumentError(f"Label set {self.name!r} has no {kind} {shown}. Check that these labels belong to {self.title}.")
        return out

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` gives back an equal label set."""
        return {
            "name": self.name,
            "title": self.title,
            "classes": list(self.classes),
            "palette": [list(c) for c in self.palette],
            "dataset_ids": list(self.dataset_ids),
            "void_ids": list(self.void_ids),
            "void_id": self.void_id,
            "ignore_index": self.ignore_index,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LabelSet:
        """The label set in a mapping.

        Raises:
            ConfigError: an unknown key, or values that do not fit together.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(f"Label set: expected a mapping, found {shown(data)}.")
        unknown = [key for key in data if key not in cls.__dataclass_fields__]
        if unknown:
            raise ConfigError(f"Label set: unknown key {shown(unknown[0])}; known keys are {', '.join(cls.__dataclass_fields__)}.")
        try:
            return cls(**data)
        except TypeError as error:
            raise ConfigError(f"Label set: {error}.") from None


def voc_colours(count: int) -> tuple[tuple[int, int, int], ...]:
    """The first `count` colours of the Pascal VOC colour map (its development kit's `VOClabelcolormap`)."""
    colours = []
    for index in range(count):
        colour = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                colour[channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
        colours.append(tuple(colour))
    return tuple(colours)


@functools.cache
def _known() -> dict[str, LabelSet]:
    data = json.loads((Path(__file__).parent / "labels.json").read_text(encoding="utf-8"))
    ids = {
        "cityscapes": dict(dataset_ids=_CITYSCAPES_IDS, void_ids=tuple(range(34)) + (255,), void_id=0),
        "ade20k": dict(dataset_ids=tuple(range(1, 151)), void_ids=(0, 255), void_id=0),
        "voc12aug": {},
    }
    return {name: LabelSet(name=name, **fields, **ids[name]) for name, fields in data.items()}


def names() -> tuple[str, ...]:
    """Names that `get` knows."""
    return tuple(_known())


def get(name: str) -> LabelSet:
    """The label set "cityscapes", "ade20k" or "voc12aug".

    Raises:
        ModelNotFoundError: another name.
    """
    try:
        return _known()[name]
    except (KeyError, TypeError):
        raise ModelNotFoundError(f"No label set {name!r}; there are {', '.join(names())}.") from None


def named(classes: Sequence[str], palette: Sequence[Sequence[int]] = ()) -> LabelSet:
    """The known label set with these classes, or a new one; a palette that is not one colour for each class is left out.

    Raises:
        ConfigError: not a list of names.
    """
    for name in names():
        if get(name).classes == tuple(classes):
            return get(name)
    palette = palette if len(palette) == len(classes) else ()
    return LabelSet(name=f"{len(classes)} classes", classes=tuple(classes), palette=tuple(palette))


def generic(count: int) -> LabelSet:
    """A label set for a model whose class names are not known: "class 0", "class 1", ..."""
    return LabelSet(name=f"{count} classes", classes=tuple(f"class {i}" for i in range(count)))
