"""Labeled pictures on disk: Cityscapes, Pascal VOC 2012, ADE20K, and a plain folder of pictures and masks.

Opening lists the files and checks that every picture has its labels; a picture is decoded when it is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import label_files, labels
from ..errors import ArgumentError, MissingFileError, UnknownDatasetError, UnknownSplitError
from ..files import expanded
from ..images.preprocess import load_image
from ..labels import DATASET_IDS, TRAIN_IDS, LabelSet
from ..wording import did_you_mean
from . import survey
from .layouts import LAYOUTS, Files, listed
from .masks import load_mask, require_fit
from .survey import MaskSurvey

__all__ = ["Sample", "SegmentationDataset", "open_dataset"]

_SPLITS = ("train", "val", None)
_SHOWN = 10  # names in a message


@dataclass(frozen=True, eq=False)  # arrays have no single answer to ==
class Sample:
    """One labeled picture.

    Args:
        name: of the picture in its data set; no two have the same.
        path: file of the picture.
        image: (H, W, 3) uint8 RGB.
        target: (H, W) int64 train ids; the label set's `ignore_index` where there is no label.

    Examples:
        >>> from upernet_zoo.evaluation import open_dataset
        >>> sample = open_dataset("folder", "scenes")[0]
        >>> sample.image.shape, sample.target.shape
        ((256, 512, 3), (256, 512))
    """

    name: str
    path: Path
    image: np.ndarray
    target: np.ndarray


class SegmentationDataset:
    """Labeled pictures in order of their names; made by `open_dataset`. `len`, an index and a `for` loop work as on a list.

    Attributes:
        name: of the layout, as `open_dataset` takes it.
        label_set: what the labels mean.
        names: the pictures' names, in order.
        root: the data set's folder.

    Examples:
        >>> from upernet_zoo.evaluation import open_dataset
        >>> dataset = open_dataset("folder", "scenes")
        >>> len(dataset), dataset.ids
        (2, 'dataset')
    """

    def __init__(self, name: str, files: Files, label_set: LabelSet, root: Path, ids: str | None = DATASET_IDS) -> None:
        self.name, self.label_set, self.root = name, label_set, root
        self._files = sorted(files)
        self._ids = ids or _same_either_way(label_set)
        self._checked: MaskSurvey | None = None
        self.names = tuple(name for name, _, _ in self._files)

    def __len__(self) -> int:
        return len(self._files)

    @property
    def ids(self) -> str:
        """What the ids of masks are that do not say so themselves: "dataset" or "train".

        Where nobody has said it, all masks are read, once, to see whether they leave one answer.

        Raises:
            ArgumentError: they leave two.
        """
        if self._ids is None:
            self._ids = self.survey().reading(self.label_set)
        return self._ids

    def survey(self, progress: bool = False) -> MaskSurvey:
        """Which ids the masks hold, each read once; what is as it was at an earlier survey is not read again."""
        return survey.look(self._files, self.root, progress)

    def checked(self, progress: bool = False) -> MaskSurvey:
        """The survey of masks by which something can be measured; made once.

        Raises:
            ImageError, ArgumentError: nothing can, see `MaskSurvey.reading` and `MaskSurvey.require`.
        """
        if self._checked is None:
            found = self.survey(progress)
            self._ids = self._ids or found.reading(self.label_set)
            found.require(self.label_set, self._ids)
            self._checked = found
        return self._checked

    def files_and_sizes(self) -> list[tuple[str, int, int]]:
        """Name, and size in bytes of picture and mask, of each picture."""
        return [(name, picture.stat().st_size, mask.stat().st_size) for name, picture, mask in self._files]

    def read_as(self, ids: str) -> SegmentationDataset:
        """The same data set, of which it is known what the masks' ids are: "dataset" or "train"."""
        if ids == self._ids:
            return self
        return SegmentationDataset(self.name, self._files, self.label_set, self.root, ids)

    def __getitem__(self, index: int) -> Sample:
        """Decode a picture and its labels.

        Raises:
            IndexError: there is no such picture.
            ImageError: a file that cannot be read, labels that are no ids, or labels that do not lie as the picture does.
            ArgumentError: labels that the label set does not know; the message names the file and the ids.
        """
        name, path, target_path = self._files[index]
        image, mask = load_image(path), load_mask(target_path)
        require_fit(path, target_path, mask)
        ids = self.ids
        try:
            target = mask.train_ids(self.label_set, ids)
        except ArgumentError as error:
            raise ArgumentError(f"{target_path}: {error}") from None
        return Sample(name, path, image, target)

    def subset(self, indices: Iterable[int]) -> SegmentationDataset:
        """The data set of some of the pictures."""
        return SegmentationDataset(self.name, [self._files[i] for i in indices], self.label_set, self.root, self._ids)

    def joined(self, other: SegmentationDataset) -> SegmentationDataset:
        """The data set of the pictures of both, two splits of one data set."""
        files = [(f"{part}/{name}", picture, mask) for part, data in enumerate((self, other)) for name, picture, mask in data._files]
        return SegmentationDataset(self.name, files, self.label_set, self.root, self._ids)


def _same_either_way(label_set: LabelSet) -> str | None:
    """An answer to what the ids are where it makes no difference; else None."""
    same = np.array_equal(label_set.train_id_table(DATASET_IDS), label_set.train_id_table(TRAIN_IDS))
    return DATASET_IDS if same else None


def open_dataset(
    name: str, root: str | os.PathLike, label_set: LabelSet | None = None, *, split: str | None = None, ids: str | None = None
) -> SegmentationDataset:
    """The pictures of a split of a data set, by default those for validation, or all pictures of a folder.

    Args:
        name: the layout, with what `root` holds:
            "cityscapes": `leftImg8bit/val/<city>/*_leftImg8bit.png` and `gtFine/val/<city>/*_gtFine_labelIds.png`.
            "voc12aug": `VOCdevkit/VOC2012/` as published, of which val.txt names the pictures. Those for training are named by train.txt,
                and where the augmentation is there, by aug.txt, with their labels in `SegmentationClassAug`.
            "ade20k": `images/validation/*.jpg` and `annotations/validation/*.png`, or the folder `ADEChallengeData2016` with these.
            "folder": `images/` with pictures, also in folders of their own, and `masks/` with a PNG, TIFF or BMP for each, in the same
                place and of the same name; or with `_mask`, `_labels`, `_labelIds` or `_gtFine_labelIds` after it.
        root: the data set's folder.
        label_set: what the labels mean; by default the data set's own. That of a "folder" is in `classes.txt`, `.json` or `.yaml` in it
            (`label_files`).
        split: "train" or "val" ("training" and "validation" in the paths of "ade20k"); None: "val", but a "folder" itself and not
            `train/` or `val/` in it.
        ids: what the masks' ids are: "dataset" (the label set's `dataset_ids`) or "train" (0, 1, ... in the order of its classes).
            Masks that say so themselves, as `predict` writes them, hold train ids in any case, and color masks are read by the
            palette. By default those of a "folder" are what its label file says; with a `label_set` that is passed, what the masks
            leave as the one answer; those of the others are the data set's.

    Raises:
        UnknownDatasetError, UnknownSplitError: another name, or another split.
        ArgumentError: "folder" without a label set, two pictures of one name, several masks of one picture, or a folder that cannot be
            listed.
        MissingFileError: the root has another layout (the message says what was looked for and what is there), or pictures have no
            labels (the message names them).

    Examples:
        >>> from upernet_zoo.evaluation import open_dataset
        >>> open_dataset("folder", "scenes").label_set.classes[:2]
        ('road', 'sidewalk')
    """
    if name not in LAYOUTS:
        raise UnknownDatasetError(f"No data set {name!r}; there are {', '.join(LAYOUTS)}.{did_you_mean(str(name), LAYOUTS)}")
    if split not in _SPLITS:
        raise UnknownSplitError(f"No split {split!r}; there are 'train' and 'val'.")
    if ids not in (None, DATASET_IDS, TRAIN_IDS):
        raise ArgumentError(f"ids={ids!r}: give 'dataset' or 'train'.")
    root = expanded(root)
    if label_set is None:
        label_set, ids = _own_labels(name, root, ids)
    elif name != "folder":
        ids = ids or DATASET_IDS
    try:
        files = LAYOUTS[name](root, split)
    except (NotADirectoryError, PermissionError) as error:
        raise ArgumentError(f"Data set {name!r}: {error.filename} is not a folder that can be listed. Remove it, or mend it.") from None
    if not files:
        where = f"{root}, split {split!r}" if split else root
        raise MissingFileError(f"Data set {name!r}: no pictures under {where}. Its layout is in open_dataset's documentation.")
    _require_different_names(name, files)
    _require_files(name, files)
    return SegmentationDataset(name, files, label_set, root, ids)


def _own_labels(name: str, root: Path, ids: str | None) -> tuple[LabelSet, str]:
    """A data set's own label set, and what the ids of its masks are."""
    if name in labels.names():
        return labels.get(name), ids or DATASET_IDS
    path = label_files.find(root)
    if path is None:
        raise ArgumentError(
            f"Data set {name!r} needs a label set: put classes.txt into {root}, with the name of a class in each line; or pass one: "
            f"open_dataset({name!r}, root, labels.LabelSet(name, classes))."
        )
    return label_files.read_classes(path), ids or DATASET_IDS


def _require_different_names(name: str, files: Files) -> None:
    seen: dict[str, Path] = {}
    for picture, path, _ in files:
        if picture in seen:
            raise ArgumentError(f"Data set {name!r}: {path} has the same name as {seen[picture]}. Rename one, and its labels.")
        seen[picture] = path


def _require_files(name: str, files: Files) -> None:
    for kind, paths in (("labels", {t: p for _, p, t in files}), ("picture", {p: t for _, p, t in files})):
        missing = sorted(path for path in paths if not path.is_file())
        if missing:
            shown = ", ".join(f"{path} (for {paths[path].name})" for path in missing[:_SHOWN])
            more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
            folder = missing[0].parent
            there = f"{folder} has: {listed(folder, missing[0].stem)}" if folder.exists() else f"there is no folder {folder}"
            if kind == "labels" and any(missing[0].with_suffix(suffix).is_file() for suffix in (".jpg", ".jpeg", ".JPG")):
                there += " (JPEG changes ids: masks are PNG, TIFF or BMP)"
            raise MissingFileError(
                f"Data set {name!r}: {len(missing)} of {len(files)} pictures without {kind}: no file {shown}{more}; {there}. "
                "Add these files, or take what they belong to out of the data set."
            )
