"""The file in which a folder of masks says what its ids mean: `classes.txt`, `classes.json` or `classes.yaml`.

The text has the name of a class in each line, of id 0, 1, ...; or in each line an id and a name, as in `7 road`. A line whose name is
`void` says that an id is no class. JSON and YAML have a list of such entries, or a mapping with that list as `classes`:

    classes:
      - {name: background, id: 0, color: [0, 0, 0]}
      - {name: object, id: 255}
    void: [7]                       # ids that are no class; or an entry with `void: true`, which may have a color

255 is void unless it is the id of a class.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from .errors import ArgumentError, ConfigError, shown
from .labels import LabelSet, generic

__all__ = ["NAMES", "find", "in_order_of", "read_classes", "require_names"]

NAMES = ("classes.txt", "classes.json", "classes.yaml", "classes.yml")
_FORMS = "Write the name of a class in each line, for id 0, 1, ...; or an id and a name in each line, as in '7 road'"
_VOID = "void"  # the name of what is no class
_KEYS = ("name", "id", "color", "void")
_LARGEST = 4 << 20  # bytes; a list of 32768 classes has fewer
_SHOWN = 10  # names in a message


def find(root: Path) -> Path | None:
    """The label file of a folder; for the folder `train` or `val` of a data set, else that of the data set. None if there is none.

    Raises:
        ArgumentError: there are several.
    """
    for folder in (root, *([root.absolute().parent] if root.name in ("train", "val") else [])):
        found = sorted(path for path in folder.iterdir() if path.name.lower() in NAMES and path.is_file()) if folder.is_dir() else []
        if len(found) > 1:
            raise ArgumentError(f"{folder}: {', '.join(path.name for path in found)} all say what the ids mean. Keep one of them.")
        if found:
            return found[0]
    return None


def read_classes(path: Path) -> LabelSet:
    """The label set of a file, whose `dataset_ids` are the ids of the masks beside it.

    Raises:
        ArgumentError: no such file, no text, a blank line, a name twice, or entries that say something else.
        ConfigError: no class in it, or an id twice.
    """
    text = _text(path)
    found = _entries_of_text(path, text) if path.suffix.lower() == ".txt" else _entries_of_data(path, _parsed(path, text))
    entries, void_ids, void_colors = found
    names: list[Any] = [entry.get("name") for entry in entries]
    ids: list[Any] = [entry.get("id") for entry in entries]
    colors: list[Any] = [entry.get("color") for entry in entries]
    require_names(names, str(path))
    for key, values in (("id", ids), ("color", colors)):
        if None in values and any(value is not None for value in values):
            raise ArgumentError(
                f"{path}: {names[values.index(None)]!r} has no {key}, and other classes have one. Give it to all, or to none."
            )
    twice = _twice([*ids, *void_ids]) if None not in ids else ()
    if twice:
        raise ConfigError(f"{path}: id {twice[0]} more than once. An id has one meaning.")
    try:
        return LabelSet(
            name=path.absolute().parent.name or "folder",
            classes=tuple(names),
            palette=tuple(colors) if None not in colors else (),
            dataset_ids=tuple(ids) if None not in ids else _remaining(len(names), void_ids),
            void_ids=(*void_ids, 255),
            void_id=next(iter(void_ids), 255),
            void_colors=(*void_colors, (0, 0, 0)),
        )
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def in_order_of(model: LabelSet, path: Path) -> LabelSet:
    """The label set of a file, its classes in the order in which a model has them: by name, whatever the case and the spaces around it.

    A model whose classes have no names but "class 0", "class 1", ... takes the file's, in its order.

    Raises:
        ConfigError: other classes than the model's; the message names them.
    """
    own = read_classes(path)
    if model.classes == generic(len(model)).classes and len(own) == len(model):
        return own
    wanted, there = _keys(model.classes, own.classes), _keys(own.classes, model.classes)
    places = {key: place for place, key in enumerate(there)}
    order = [places[key] for key in wanted if key in places]
    if len(own) != len(model) or len(order) != len(model):
        missing = [name.strip() for name, key in zip(model.classes, wanted) if key not in places]
        strange = [name for name, key in zip(own.classes, there) if key not in set(wanted)]
        raise ConfigError(
            f"{path}: names {len(own)} classes and the model has {len(model)}; not of the model: {_some(strange)}; not in the file: "
            f"{_some(missing)}. Name the model's classes there, with the ids that they have in the masks."
        )
    return replace(
        own,
        classes=model.classes,
        palette=tuple(own.palette[place] for place in order),
        dataset_ids=tuple(own.dataset_ids[place] for place in order),
    )


def _keys(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """What names are compared by: without their case, unless "Sky" and "sky" are two classes."""
    folded = all(len({name.strip().casefold() for name in one}) == len(one) for one in (names, others))
    return [name.strip().casefold() if folded else name.strip() for name in names]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "") or "none"


def require_names(names: Sequence[Any], source: str) -> None:
    """Refuse class names that are blank or not there once.

    Args:
        source: where they are, for messages.

    Raises:
        ArgumentError: such a name.
    """
    for number, name in enumerate(names, 1):
        if not isinstance(name, str) or not name.strip():
            raise ArgumentError(
                f"{source}: class {number} has no name (found {shown(name)}). Give it one; in YAML, put 'no' and 'on' in quotes."
            )
    if twice := _twice(names):
        raise ArgumentError(f"{source}: {', '.join(twice[:_SHOWN])} more than once. Give each class a name of its own.")


def _twice(values: Sequence[Any]) -> list[Any]:
    return sorted(value for value, count in Counter(values).items() if count > 1)


def _text(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 with its byte order mark, as editors on Windows write it."""
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except FileNotFoundError:
        raise ArgumentError(
            f"{path}: not there, and without it the masks' ids have no names. {_FORMS}; or pass a label set (on the command line "
            "--classes NAME,NAME,...)."
        ) from None
    except OSError as error:
        raise ArgumentError(f"{path}: cannot be read ({error}). {_FORMS}.") from None
    if len(data) > _LARGEST:
        raise ArgumentError(f"{path}: larger than {_LARGEST >> 20} MiB, which no list of classes is. {_FORMS}.")
    try:
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{path}: cannot be read as UTF-8 text ({error}). {_FORMS}.") from None


# entries of classes, ids that are void, and colors that are
_Entries = tuple[list[dict[str, Any]], list[int], list[Any]]


def _entries_of_text(path: Path, text: str) -> _Entries:
    lines = [line.strip() for line in text.rstrip().splitlines()]
    for number, line in enumerate(lines, 1):
        if not line:
            raise ArgumentError(
                f"{path}: line {number} is blank, and would shift the ids of the lines after it. Remove it, or name a class there."
            )
    with_ids = [re.fullmatch(r"([0-9]{1,9})[\s:,;=]\s*(.+)", line) for line in lines]
    if with_ids and with_ids[0]:
        if None in with_ids:
            number = with_ids.index(None)
            raise ArgumentError(f"{path}: line {number + 1} ({shown(lines[number])}) has no id and name, as line 1 has. {_FORMS}.")
        pairs = [(int(match[1]), match[2]) for match in with_ids if match]
    else:
        pairs = list(enumerate(lines))
    entries = [{"name": name, "id": id} for id, name in pairs if name.lower() != _VOID]
    return entries, [id for id, name in pairs if name.lower() == _VOID], []


def _parsed(path: Path, text: str) -> Any:
    try:
        if path.suffix.lower() == ".json":
            return json.loads(text)
        return yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ArgumentError(f"{path}: cannot be read ({error}). Give a list of entries with name and id.") from None


def _entries_of_data(path: Path, data: Any) -> _Entries:
    form = 'Give {"classes": [{"name": "road", "id": 7, "color": [128, 64, 128]}, ...], "void": [0]}; all but the names may be left out'
    data = {"classes": data} if isinstance(data, list) else data
    if not isinstance(data, dict) or not isinstance(data.get("classes"), list):
        raise ArgumentError(f"{path}: no list of classes in it. {form}.")
    if unknown := [key for key in data if key not in ("classes", _VOID)]:
        raise ArgumentError(f"{path}: unknown key {shown(unknown[0])}. {form}.")
    entries = [{"name": entry} if isinstance(entry, str) else entry for entry in data["classes"]]
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or set(entry) - set(_KEYS) or not isinstance(entry.get("void", False), bool):
            raise ArgumentError(f"{path}: entry {number} is {shown(entry)}; it may have {', '.join(_KEYS)} (true or false). {form}.")
        if _is_void(entry) and "id" not in entry and "color" not in entry:
            raise ArgumentError(f"{path}: entry {number} is void and has neither id nor color. {form}.")
    void, entries = [entry for entry in entries if _is_void(entry)], [entry for entry in entries if not _is_void(entry)]
    void_ids = data.get(_VOID, [])
    void_ids = [*(void_ids if isinstance(void_ids, list) else [void_ids]), *(entry["id"] for entry in void if "id" in entry)]
    for id in [*void_ids, *(entry["id"] for entry in entries if "id" in entry)]:
        if isinstance(id, bool) or not isinstance(id, int):
            raise ArgumentError(f"{path}: an id is {shown(id)}, and must be a whole number. {form}.")
    void_colors = [entry["color"] for entry in void if "color" in entry]
    return entries, list(dict.fromkeys(void_ids)), void_colors


def _is_void(entry: dict[str, Any]) -> bool:
    return bool(entry.get("void", str(entry.get("name")).lower() == _VOID))


def _remaining(count: int, void_ids: Sequence[int]) -> tuple[int, ...]:
    """Ids 0, 1, ... of classes that are given none."""
    return tuple(i for i in range(count + len(void_ids)) if i not in void_ids)[:count]
