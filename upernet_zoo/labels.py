"""Label sets: class names, colors, and how the ids in a data set's files map to the ids that a model is trained on.

Names and palettes are those of mmsegmentation 0.30 (`labels.json`), kept letter for letter; ids on disk are those of
cityscapesScripts (`helpers/labels.py`), of the ADE20K scene parsing benchmark (0 is unlabeled, ids start at 1) and of the
Pascal VOC development kit.
"""

from __future__ import annotations

import functools
import hashlib
import json
import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ArgumentError, ConfigError, UnknownLabelSetError, shown
from .wording import did_you_mean

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "CLASSES_KEY",
    "DATASET_IDS",
    "IDS_KEY",
    "TRAIN_IDS",
    "Color",
    "LabelSet",
    "classes_digest",
    "color_codes",
    "color_of",
    "generic",
    "get",
    "named",
    "names",
    "voc_colors",
]

# What a mask's ids are: those that models are trained on, 0 to the number of classes - 1, or those of the data set's files.
TRAIN_IDS, DATASET_IDS = "train", "dataset"
# A label PNG that the library writes says so in a text chunk of this key, with the value TRAIN_IDS; such a mask is read as it says.
IDS_KEY = "upernet_zoo:ids"
CLASSES_KEY = "upernet_zoo:classes"  # and here of which classes: `classes_digest`

# label id of each Cityscapes train id, 0 to 18
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
# colors of what is no class there, beside black (`cityscapesscripts/helpers/labels.py`), and of Pascal VOC's outlines
_CITYSCAPES_VOID_COLORS = (
    *((0, 0, 0), (111, 74, 0), (81, 0, 81), (250, 170, 160), (230, 150, 140), (180, 165, 180), (150, 100, 100), (150, 120, 90)),
    *((0, 0, 90), (0, 0, 110)),
)
_VOC_VOID_COLORS = ((224, 224, 192),)
_MAX_ID = 65535  # what a 16-bit label file holds

Color = tuple[int, int, int]  # red, green, blue from 0 to 255


@dataclass(frozen=True)
class LabelSet:
    """Classes of a model or a data set.

    What `reduce_zero_label` says (0 is no label, the classes are 1, 2, ...) is `dataset_ids=range(1, n + 1), void_ids=(0, 255), void_id=0`.

    Args:
        name: short name, such as "cityscapes".
        classes: a name for each train id.
        palette: an RGB color (0..255) for each train id; by default the Pascal VOC color map.
        dataset_ids: the id that files of the data set use for each train id; by default the train id itself.
        void_ids: further ids that files may hold and that are no class: they become `ignore_index`.
        void_id: what `to_dataset_ids` writes where there is no class; one of the void ids. 65535 where 255 is a class.
        ignore_index: train id of pixels without a label; 65535 where 255 is a class.
        title: the name as people write it.
        void_colors: RGB colors of what is no class, in masks that are color pictures; by default black. That of a class is none.

    Raises:
        ConfigError: lists that do not fit together.

    Examples:
        >>> from upernet_zoo import labels
        >>> mine = labels.LabelSet(name="mine", classes=("field", "forest"), palette=((230, 220, 90), (30, 110, 40)))
        >>> mine.dataset_ids, mine.ignore_index
        ((0, 1), 255)
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[Color, ...] = ()
    dataset_ids: tuple[int, ...] = ()
    void_ids: tuple[int, ...] = (255,)
    void_id: int = 255
    ignore_index: int = 255
    title: str = ""
    void_colors: tuple[Color, ...] = ((0, 0, 0),)

    def __post_init__(self) -> None:
        self._check_names()
        palette = self._colors("palette", one_for_each=True) or voc_colors(len(self.classes))
        ids = self._checked_ids()
        ignore_index, void_id = self._free_id("ignore_index", range(len(self.classes))), self._free_id("void_id", ids)
        void_ids = self._whole_numbers("void_ids")
        if any(not 0 <= i <= _MAX_ID for i in void_ids):
            raise ConfigError(f"{self._owner}: void_ids must be ids from 0 to {_MAX_ID}.")
        void_ids = tuple(i for i in void_ids if i not in ids)
        values = {
            "classes": tuple(self.classes),
            "palette": palette,
            "dataset_ids": ids,
            "void_ids": void_ids if void_id in void_ids else (*void_ids, void_id),
            "void_id": void_id,
            "ignore_index": ignore_index,
            "title": self.title or self.name,
            "void_colors": tuple(color for color in self._colors("void_colors") if color not in palette),
        }
        for key, value in values.items():
            object.__setattr__(self, key, value)

    @property
    def _owner(self) -> str:
        return f"Label set {shown(self.name)}"

    def _check_names(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ConfigError(f"Label set: the name must be text, found {shown(self.name)}.")
        if not isinstance(self.title, str):
            raise ConfigError(f"{self._owner}: the title must be text, found {shown(self.title)}.")
        good = isinstance(self.classes, Sequence) and not isinstance(self.classes, str)
        if not good or not self.classes or not all(isinstance(c, str) for c in self.classes):
            raise ConfigError(f"{self._owner}: classes must be a list of names, found {shown(self.classes)}.")
        if len(self.classes) > 1 << 15:
            raise ConfigError(f"{self._owner}: {len(self.classes)} classes; at most {1 << 15} can be told apart in a label map.")

    def _whole_numbers(self, key: str) -> tuple[int, ...]:
        try:
            return tuple(map(operator.index, getattr(self, key)))
        except TypeError:
            raise ConfigError(f"{self._owner}: palette, void_colors, dataset_ids and void_ids must be lists of whole numbers.") from None

    def _colors(self, key: str, one_for_each: bool = False) -> tuple[Color, ...]:
        try:
            colors: tuple[Any, ...] = tuple(tuple(map(operator.index, color)) for color in getattr(self, key))
        except TypeError:
            raise ConfigError(f"{self._owner}: palette, void_colors, dataset_ids and void_ids must be lists of whole numbers.") from None
        count = len(self.classes)
        if any(len(c) != 3 or min(c) < 0 or max(c) > 255 for c in colors) or (one_for_each and colors and len(colors) != count):
            rule = f"the palette must be {count} colors of three numbers from 0 to 255, one for each class"
            raise ConfigError(f"{self._owner}: {rule if one_for_each else f'{key} must be colors of three numbers from 0 to 255'}.")
        return colors

    def _checked_ids(self) -> tuple[int, ...]:
        count = len(self.classes)
        ids = self._whole_numbers("dataset_ids") or tuple(range(count))
        if len(ids) != count or len(set(ids)) != count or min(ids) < 0 or max(ids) > _MAX_ID:
            raise ConfigError(f"{self._owner}: dataset_ids must be {count} different ids from 0 to {_MAX_ID}, one for each class.")
        return ids

    def _free_id(self, key: str, taken: Sequence[int]) -> int:
        value = getattr(self, key)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_ID:
            raise ConfigError(f"{self._owner}: {key} must be a whole number from 0 to {_MAX_ID}, found {shown(value)}.")
        if value == 255 and value in taken:  # the default, and there are more than 255 classes or masks of 0 and 255
            value = _MAX_ID
        if value in taken:
            raise ConfigError(f"{self._owner}: {key} {value} is the id of a class. Give one that is none.")
        return value

    def __len__(self) -> int:
        return len(self.classes)

    def train_id_table(self, ids: str = DATASET_IDS) -> np.ndarray:
        """(65536,) int64: the train id of each id that a file may hold; `ignore_index` where that is no class, -1 where it is unknown.

        Args:
            ids: what the file's ids are, DATASET_IDS or TRAIN_IDS.
        """
        import numpy as np

        table = np.full(_MAX_ID + 1, -1, np.int64)
        if ids == TRAIN_IDS:
            table[self.ignore_index] = self.ignore_index
            table[: len(self)] = np.arange(len(self))
        else:
            table[list(self.void_ids)] = self.ignore_index
            table[list(self.dataset_ids)] = np.arange(len(self))
        return table

    def to_train_ids(self, ids: np.ndarray) -> np.ndarray:
        """Ids as the data set's files hold them -> train ids (int64, `ignore_index` where there is no class).

        Raises:
            ArgumentError: an id that the label set does not know.
        """
        return self._look_up(self.train_id_table(DATASET_IDS), ids, "label ids")

    def check_train_ids(self, ids: np.ndarray) -> np.ndarray:
        """Train ids as int64, where all of them are classes or `ignore_index`.

        Raises:
            ArgumentError: an id that is neither.
        """
        return self._look_up(self.train_id_table(TRAIN_IDS), ids, "train ids")

    def require_classes(self, digest: str | None) -> None:
        """Refuse train ids of other classes.

        Args:
            digest: `classes_digest` of the classes that the ids are of; None where they have no names that are known.

        Raises:
            ArgumentError: they are others than these, or in another order.
        """
        own = classes_digest(self.classes)
        if None not in (digest, own) and digest != own:
            raise ArgumentError(
                f"A label map of other classes than those of label set {self.name!r}, or of these in another order: its train ids mean "
                "something else. Predict it with a model of these classes, or save it with the ids of the data set and without the mark."
            )

    def to_dataset_ids(self, train_ids: np.ndarray) -> np.ndarray:
        """Train ids -> ids as the data set's files hold them (int64); `ignore_index` becomes `void_id`.

        Raises:
            ArgumentError: an id that is neither a class nor `ignore_index`.
        """
        import numpy as np

        table = np.full(_MAX_ID + 1, -1, np.int64)
        table[self.ignore_index] = self.void_id
        table[: len(self)] = self.dataset_ids
        return self._look_up(table, train_ids, "train ids")

    def colors_to_train_ids(self, colors: np.ndarray) -> np.ndarray:
        """(..., 3) uint8 RGB colors of the palette -> (...) train ids (int64, `ignore_index` where a color is a void one).

        Raises:
            ArgumentError: a color that is no class's and no void one, or that of two classes.
        """
        import numpy as np

        known, colors = self.color_table(), np.asarray(colors)
        codes, places = np.unique(color_codes(colors), return_inverse=True)
        found = np.array([known.get(code, -1) for code in codes.tolist()], np.int64)
        if (found < 0).any():
            unknown = [str(color_of(code)) for code in codes[found < 0].tolist()]
            listed = ", ".join(unknown[:10]) + (", ..." if len(unknown) > 10 else "")
            raise ArgumentError(
                f"Label set {self.name!r} has no one class of the colors {listed}. Check that its palette is that of the masks."
            )
        return found[places].reshape(colors.shape[:-1])

    def color_table(self) -> dict[int, int]:
        """Code of a color (`color_codes`) -> train id or `ignore_index`; a color that several classes share is left out."""
        codes = [_code(color) for color in self.palette]
        counts = Counter(codes)
        table = {code: id for id, code in enumerate(codes) if counts[code] == 1}
        return {_code(color): self.ignore_index for color in self.void_colors} | table

    def _look_up(self, table: np.ndarray, ids: np.ndarray, kind: str) -> np.ndarray:
        import numpy as np

        ids = np.asarray(ids)
        if ids.dtype.kind not in "ui":
            raise ArgumentError(f"Label set {self.name!r}: {kind} must be whole numbers, found dtype {ids.dtype}.")
        inside = (ids >= 0) & (ids < len(table)) if ids.dtype.itemsize > 2 or ids.dtype.kind == "i" else None
        out: np.ndarray = table[ids if inside is None else np.where(inside, ids, 0)]
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
            "void_colors": [list(c) for c in self.void_colors],
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


def classes_digest(classes: Sequence[str]) -> str | None:
    """What tells class names, in their order, from others: 16 hex digits, whatever their case; None for "class 0", "class 1", ..."""
    if tuple(classes) == _generic_names(len(classes)):
        return None
    names = [name.strip() for name in classes]
    folded = [name.casefold() for name in names]
    text = json.dumps(folded if len(set(folded)) == len(folded) else names)  # "Sky" and "sky" may be two classes
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def voc_colors(count: int) -> tuple[Color, ...]:
    """The first `count` colors of the Pascal VOC color map (its development kit's `VOClabelcolormap`).

    Examples:
        >>> from upernet_zoo import labels
        >>> labels.voc_colors(3)
        ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    """
    colors = []
    for index in range(count):
        color = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                color[channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
        colors.append((color[0], color[1], color[2]))
    return tuple(colors)


def _code(color: Sequence[int]) -> int:
    return color[0] << 16 | color[1] << 8 | color[2]


def color_codes(colors: np.ndarray) -> np.ndarray:
    """(..., 3) RGB colors -> one int64 for each."""
    import numpy as np

    codes: np.ndarray = colors.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    return codes


def color_of(code: int) -> tuple[int, int, int]:
    """The RGB color of a code."""
    return code >> 16, code >> 8 & 255, code & 255


@functools.cache
def _known() -> dict[str, LabelSet]:
    data = json.loads((Path(__file__).parent / "labels.json").read_text(encoding="utf-8"))
    ids: dict[str, dict[str, Any]] = {
        "cityscapes": dict(dataset_ids=_CITYSCAPES_IDS, void_ids=(*range(34), 255), void_id=0, void_colors=_CITYSCAPES_VOID_COLORS),
        "ade20k": dict(dataset_ids=tuple(range(1, 151)), void_ids=(0, 255), void_id=0),
        "voc12aug": dict(void_colors=_VOC_VOID_COLORS),
    }
    return {name: LabelSet(name=name, **fields, **ids[name]) for name, fields in data.items()}


def names() -> tuple[str, ...]:
    """Names that `get` knows.

    Examples:
        >>> from upernet_zoo import labels
        >>> labels.names()
        ('cityscapes', 'ade20k', 'voc12aug')
    """
    return tuple(_known())


def get(name: str) -> LabelSet:
    """The label set "cityscapes", "ade20k" or "voc12aug".

    Raises:
        UnknownLabelSetError: another name.

    Examples:
        >>> from upernet_zoo import labels
        >>> labels.get("cityscapes").classes[:3]
        ('road', 'sidewalk', 'building')
    """
    try:
        return _known()[name]
    except (KeyError, TypeError):
        raise UnknownLabelSetError(f"No label set {name!r}; there are {', '.join(names())}.{did_you_mean(str(name), names())}") from None


def named(classes: Sequence[str], palette: Sequence[Color] = ()) -> LabelSet:
    """The known label set with these classes, or a new one; a palette that is not one color for each class is left out.

    Raises:
        ConfigError: not a list of names.

    Examples:
        >>> from upernet_zoo import labels
        >>> labels.named(("field", "forest")).name
        '2 classes'
    """
    for name in names():
        if get(name).classes == tuple(classes):
            return get(name)
    palette = palette if len(palette) == len(classes) else ()
    return LabelSet(name=f"{len(classes)} classes", classes=tuple(classes), palette=tuple(palette))


def generic(count: int) -> LabelSet:
    """A label set for a model whose class names are not known: "class 0", "class 1", ...

    Examples:
        >>> from upernet_zoo import labels
        >>> labels.generic(2).classes
        ('class 0', 'class 1')
    """
    return LabelSet(name=f"{count} classes", classes=_generic_names(count))


def _generic_names(count: int) -> tuple[str, ...]:
    return tuple(f"class {i}" for i in range(count))
