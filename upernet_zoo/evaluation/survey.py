"""Which ids the masks of a folder hold, before anything is measured by them or learned from them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import files, tables
from .. import progress as bars
from ..errors import ArgumentError, ImageError, UPerNetZooError, WriteError
from ..labels import DATASET_IDS, TRAIN_IDS, LabelSet, color_codes, color_of
from ..weights.cache import cache_root
from ..wording import option
from .layouts import Files
from .masks import load_mask, require_fit

__all__ = ["MaskSurvey", "look"]

_COLORS = "colors"
_KINDS = (DATASET_IDS, TRAIN_IDS, _COLORS)  # of a mask's values: ids of which the file says nothing, ids that it says are train ids, colors
_MANY_COLORS = 1024  # in one mask: then it is a photograph
_SHOWN = 10  # ids or files in a message
_FORMAT = 2
_logger = logging.getLogger("upernet_zoo")


@dataclass(frozen=True)
class MaskSurvey:
    """What the masks hold.

    Attributes:
        of: number of masks.
        ids: id -> (masks that have it, one of them), of masks that do not say themselves what their ids are.
        marked: the same, of masks that say that theirs are train ids.
        colors: the same by the code of a color, of masks that are color pictures.
        classes: the same by what marked masks say of which classes their ids are (`labels.classes_digest`).
        problems: of each file that cannot be used, why.
    """

    of: int
    ids: Mapping[int, tuple[int, Path]]
    marked: Mapping[int, tuple[int, Path]]
    colors: Mapping[int, tuple[int, Path]]
    classes: Mapping[str, tuple[int, Path]]
    problems: tuple[UPerNetZooError, ...]

    def reading(self, label_set: LabelSet) -> str:
        """What the ids are, where the label set and the ids leave one answer: DATASET_IDS (also where they fit neither) or TRAIN_IDS.

        Raises:
            ArgumentError: they can be read in two ways; the message says both, and how to choose.
        """
        found = sorted(self.ids)
        readings = {kind: label_set.train_id_table(kind)[found] for kind in (DATASET_IDS, TRAIN_IDS)}
        fit = [kind for kind, train_ids in readings.items() if (train_ids >= 0).all()]
        if len(fit) == 2 and not np.array_equal(readings[DATASET_IDS], readings[TRAIN_IDS]):
            differ = [i for i, pair in enumerate(zip(*readings.values())) if pair[0] != pair[1]][:3]

            def said(kind: str) -> str:
                return ", ".join(f"{found[i]} is {_meaning(label_set, readings[kind][i])}" for i in differ)

            raise ArgumentError(
                f"The ids {_some(found)} of {_masks(self.of)} can be read in two ways: as the data set's ids ({said(DATASET_IDS)}), or as "
                f"train ids ({said(TRAIN_IDS)}). Say which: {option('ids', DATASET_IDS)} or {option('ids', TRAIN_IDS)}; or put classes.txt "
                "beside images/, with an id and a name in each line."
            )
        return fit[0] if len(fit) == 1 else DATASET_IDS

    def rows(self, label_set: LabelSet, ids: str) -> list[tuple[str, str, str, int]]:
        """(id or color, "class", "void" or "unknown", name, masks that have it) of each id that occurs."""
        rows = []
        for what, train_id, (count, _) in self._read(label_set, ids):
            kind = "unknown" if train_id < 0 else "void" if train_id == label_set.ignore_index else "class"
            rows.append((what, kind, label_set.classes[train_id].strip() if kind == "class" else "", count))
        return rows

    def table(self, label_set: LabelSet, ids: str) -> str:
        """`rows` as a table to read."""
        rows = [[*row[:3], str(row[3])] for row in self.rows(label_set, ids)]
        what = "train ids" if ids == TRAIN_IDS or (not self.ids and self.marked) else "the data set's ids"
        lines = [f"{_masks(self.of)}, read as {what}", tables.plain(("id", "is", "name", "pictures"), rows, left=3)]
        return "\n".join(lines + [self._report()] * bool(self.problems))

    def _report(self) -> str:
        """What is wrong with files that cannot be used, ten at most."""
        lines = [f"  {error}" for error in self.problems[:_SHOWN]] + ["  ..."] * (len(self.problems) > _SHOWN)
        return "\n".join([f"{len(self.problems)} of {self.of} pictures or masks cannot be used:", *lines])

    def require(self, label_set: LabelSet, ids: str) -> None:
        """Refuse masks by which nothing can be measured.

        Raises:
            ImageError: no picture has a mask that can be used; ten at most are named, and what is wrong with each.
            ArgumentError: ids or colors that the label set does not have; label maps of other classes; no label in any mask; masks of 0
                and 255 where 255 is no class.
        """
        if self.problems and len(self.problems) == self.of:
            raise type(self.problems[0])(self._report())
        for digest, (count, path) in self.classes.items():
            try:
                label_set.require_classes(digest)
            except ArgumentError as error:
                raise ArgumentError(f"{path}: {error} In {count} of {_masks(self.of)}.") from None
        found = list(self._read(label_set, ids))
        self._require_known(label_set, ids, [(what, *where) for what, train_id, where in found if train_id < 0])
        if all(train_id == label_set.ignore_index for _, train_id, _ in found):
            raise ArgumentError(
                f"No label in {_masks(self.of)}: the ids {_some([what for what, _, _ in found])} are no class of label set "
                f"{label_set.name!r}. {_binary_hint(self.ids) or 'Check that these are its masks.'}"
            )
        table = label_set.train_id_table(ids)
        if set(self.ids) == {0, 255} and table[255] == label_set.ignore_index:
            raise ArgumentError(
                f"The ids of {_masks(self.of)} are 0 and 255 alone, and 255 is no label here, so that every label is "
                f"{_meaning(label_set, table[0])}. {_binary_hint(self.ids)}"
            )

    def _require_known(self, label_set: LabelSet, ids: str, unknown: list[tuple[str, int, Path]]) -> None:
        if not unknown:
            return
        names, path = [what for what, _, _ in unknown], unknown[0][2]
        if names[0].startswith("("):
            kind, out = "colors", 'Name the class of each in classes.json beside images/, as "color"; ids belong into a gray picture.'
        else:
            kind = "train ids" if ids == TRAIN_IDS else "label ids"
            lines = f"'{names[0]} NAME', or '{names[0]} void' where it is no class"
            out = _binary_hint(self.ids) or f"Say what they are in classes.txt beside images/, with an id and a name in each line: {lines}."
        count = max(where for _, where, _ in unknown)
        raise ArgumentError(f"{path}: Label set {label_set.name!r} has no {kind} {_some(names)}. In {count} of {_masks(self.of)}. {out}")

    def _read(self, label_set: LabelSet, ids: str) -> Iterator[tuple[str, int, tuple[int, Path]]]:
        """(what the masks hold, train id, -1 if it is unknown, where) of each id and color."""
        for found, kind in ((self.ids, ids), (self.marked, TRAIN_IDS)):
            table = label_set.train_id_table(kind)
            for id, where in sorted(found.items()):
                yield str(id), int(table[id]) if id < len(table) else -1, where
        known = label_set.color_table()
        for code, where in sorted(self.colors.items()):
            yield str(color_of(code)), known.get(code, -1), where


def _meaning(label_set: LabelSet, train_id: int) -> str:
    return "no label" if train_id == label_set.ignore_index else repr(label_set.classes[train_id].strip())


def _masks(count: int) -> str:
    return "1 mask" if count == 1 else f"{count} masks"


def _some(values: list[Any]) -> str:
    return ", ".join(map(str, values[:_SHOWN])) + (", ..." if len(values) > _SHOWN else "")


def _binary_hint(ids: Mapping[int, Any]) -> str:
    """What to do with masks of 0 and one other id, which is what tools write that know background and object alone."""
    if len(ids) > 2 or not set(ids) & {255, 65535} or set(ids) - {0, 255, 65535}:
        return ""
    high = max(ids)
    return (
        f"In masks of 0 and {high}, {high} is most often the object: put classes.txt beside images/ with the lines '0 background' and "
        f"'{high} object'. If {high} is no label, masks with the other classes are missing."
    )


def look(pairs: Files, root: Path, progress: bool = False) -> MaskSurvey:
    """Read every mask once; those that are as they were at an earlier time, by name, size and mtime, are not read again.

    What was read is kept in the cache, in a file of its own for each root.

    Args:
        pairs: names, pictures and masks.
        root: the data set's folder.
    """
    kept = _Kept(root)
    counts: dict[str, dict[int, tuple[int, Path]]] = {kind: {} for kind in _KINDS}
    classes: dict[str, tuple[int, Path]] = {}
    problems = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        seen = pool.map(lambda pair: kept.look(*pair[1:]), pairs)
        for (_, _, path), found in zip(pairs, bars.bar(seen, total=len(pairs), unit="mask", desc="checking masks", show=progress)):
            if isinstance(found, UPerNetZooError):
                problems.append(found)
                continue
            for id in found["ids"]:
                count, first = counts[found["kind"]].get(id, (0, path))
                counts[found["kind"]][id] = count + 1, first
            if found["classes"] is not None:
                count, first = classes.get(found["classes"], (0, path))
                classes[found["classes"]] = count + 1, first
    kept.save()
    return MaskSurvey(len(pairs), counts[DATASET_IDS], counts[TRAIN_IDS], counts[_COLORS], classes, tuple(problems))


class _Kept:
    """What was found in the masks of a folder, in a file of the cache; without one, or with a damaged one, they are read again."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.old: dict[str, Any] = {}
        self.new: dict[str, Any] = {}
        self.path: Path | None = None
        try:
            self.path = cache_root() / "masks" / f"{hashlib.sha256(os.fsencode(self.root)).hexdigest()[:24]}.json"
            data = json.loads(self.path.read_text(encoding="utf-8"))
            if data["format"] == _FORMAT and isinstance(data["masks"], dict):
                self.old = data["masks"]
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:  # no such file, a damaged one, no place for a cache
            _logger.debug("What earlier masks held is not known: %r", error)

    def look(self, picture: Path, path: Path) -> dict[str, Any] | UPerNetZooError:
        """What a mask's values are ("kind"), which of them occur ("ids"), and of which classes they are ("classes")."""
        key = os.path.relpath(path, self.root)
        try:
            stamps = [os.path.relpath(picture, self.root), *_stamp(picture), *_stamp(path)]
            entry: Any = self.old.get(key)
            if not _is_entry(entry) or entry["files"] != stamps:
                entry = {"files": stamps, **_look(picture, path)}
        except OSError as error:
            return ImageError(f"{path}: cannot be read ({error.strerror or error}). Get the file again.")
        except UPerNetZooError as error:
            return error
        self.new[key] = entry
        return dict(entry)

    def save(self) -> None:
        if self.path is None or all(self.old.get(key) == entry for key, entry in self.new.items()):
            return
        text = json.dumps({"format": _FORMAT, "root": str(self.root), "masks": self.old | self.new})
        try:
            files.write_atomically(self.path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        except WriteError as error:
            _logger.info("What the masks hold is not kept: %s", error)


def _is_entry(entry: Any) -> bool:
    ids = entry.get("ids") if isinstance(entry, dict) and entry.get("kind") in _KINDS else None
    if not isinstance(ids, list) or "files" not in entry or not isinstance(entry.get("classes", 0), (str, type(None))):
        return False
    return all(isinstance(id, int) and 0 <= id < 1 << 24 for id in ids)


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _look(picture: Path, path: Path) -> dict[str, Any]:
    mask = load_mask(path)
    require_fit(picture, path, mask)
    if mask.values.ndim == 3:
        found = np.unique(color_codes(mask.values))
        if len(found) > _MANY_COLORS:
            raise ImageError(f"{path}: {len(found)} different colors: a photograph, and no mask. Put the mask there.")
        return {"kind": _COLORS, "ids": found.tolist(), "classes": None}
    small = mask.values.dtype in (np.uint8, np.uint16)
    found = np.flatnonzero(np.bincount(mask.values.ravel())) if small else np.unique(mask.values)
    if found[0] < 0 or found[-1] > 65535:
        raise ImageError(f"{path}: holds {found[0]} to {found[-1]}; ids are from 0 to 65535.")
    return {"kind": TRAIN_IDS if mask.marked else DATASET_IDS, "ids": found.tolist(), "classes": mask.classes}
