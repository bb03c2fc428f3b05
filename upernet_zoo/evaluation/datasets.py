"""Labelled pictures on disk: Cityscapes, Pascal VOC 2012, ADE20K, and a plain folder of pictures and masks.

Opening lists the files and checks that every picture has its labels; a picture is decoded when it is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .. import labels
from ..errors import ArgumentError, ImageError, MissingFileError, ModelNotFoundError
from ..labels import LabelSet
from ..preprocess import load_image

_PICTURES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_SPLITS = ("train", "val", None)
_SHOWN = 10  # names in a message

# name, picture, labels; paths
_Files = list[tuple[str, Path, Path]]


@dataclass(frozen=True, eq=False)  # arrays have no single answer to ==
class Sample:
    """One labelled picture.

    Args:
        name: of the picture in its data set; no two have the same.
        path: file of the picture.
        image: (H, W, 3) uint8 RGB.
        target: (H, W) int64 train ids; the label set's `ignore_index` where there is no label.
    """

    name: str
    path: Path
    image: np.ndarray
    target: np.ndarray


class SegmentationDataset:
    """Labelled pictures in order of their names; made by `open_dataset`. `len`, an index and a `for` loop work as on a list.

    Attributes:
        name: of the layout, as `open_dataset` takes it.
        label_set: what the labels mean.
        names: the pictures' names, in order.
    """

    def __init__(self, name: str, files: _Files, label_set: LabelSet):
        self.name, self.label_set = name, label_set
        self._files = sorted(files)
        self.names = tuple(name for name, _, _ in self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        """Decode a picture and its labels.

        Raises:
            IndexError: there is no such picture.
            ImageError: a file that cannot be read, labels that are no ids, or labels of another size than the picture.
            ArgumentError: labels that the label set does not know; the message names the file and the ids.
        """
        name, path, target_path = self._files[index]
        image, ids = load_image(path), _load_ids(target_path)
        if ids.shape != image.shape[:2]:
            raise ImageError(
                f"{target_path}: the labels are {ids.shape[1]}x{ids.shape[0]} pixels and the picture {path} is "
                f"{image.shape[1]}x{image.shape[0]}. They must be of one size."
            )
        try:
            target = self.label_set.to_train_ids(ids)
        except ArgumentError as error:
            raise ArgumentError(f"{target_path}: {error}") from None
        return Sample(name, path, image, target)

    def subset(self, indices: Iterable[int]) -> SegmentationDataset:
        """The data set of some of the pictures."""
        return SegmentationDataset(self.name, [self._files[i] for i in indices], self.label_set)


def open_dataset(name: str, root: str | os.PathLike, label_set: LabelSet | None = None, *, split: str | None = None) -> SegmentationDataset:
    """The pictures of a split of a data set, by default those for validation, or all pictures of a folder.

    Args:
        name: the layout, with what `root` holds:
            "cityscapes": `leftImg8bit/val/<city>/*_leftImg8bit.png` and `gtFine/val/<city>/*_gtFine_labelIds.png`.
            "voc12aug": `VOCdevkit/VOC2012/` as published, of which val.txt names the pictures. Those for training are named by train.txt,
                and where the augmentation is there, by aug.txt, with their labels in `SegmentationClassAug`.
            "ade20k": `images/validation/*.jpg` and `annotations/validation/*.png`, or the folder `ADEChallengeData2016` with these.
            "folder": `images/` with pictures and `masks/` with a PNG for each of the same name, whose values are ids of `label_set`.
        root: the data set's folder.
        label_set: what the labels mean; by default the data set's own. "folder" has none of its own.
        split: "train" or "val" ("training" and "validation" in the paths of "ade20k"); None: "val", but a "folder" itself and not
            `train/` or `val/` in it.

    Raises:
        ModelNotFoundError: another name, or another split.
        ArgumentError: "folder" without a label set, two pictures of one name, or a folder that cannot be listed.
        MissingFileError: the root has another layout (the message says what was looked for and what is there), or pictures have no
            labels (the message names them).
    """
    if name not in _LAYOUTS:
        raise ModelNotFoundError(f"No data set {name!r}; there are {', '.join(_LAYOUTS)}.")
    if split not in _SPLITS:
        raise ModelNotFoundError(f"No split {split!r}; there are 'train' and 'val'.")
    if label_set is None:
        if name not in labels.names():
            raise ArgumentError(f"Data set {name!r} needs a label set: open_dataset({name!r}, root, labels.LabelSet(name, classes)).")
        label_set = labels.get(name)
    root = Path(root).expanduser()
    try:
        files = _LAYOUTS[name](root, split)
    except (NotADirectoryError, PermissionError) as error:
        raise ArgumentError(f"Data set {name!r}: {error.filename} is not a folder that can be listed. Remove it, or mend it.") from None
    if not files:
        where = f"{root}, split {split!r}" if split else root
        raise MissingFileError(f"Data set {name!r}: no pictures under {where}. Its layout is in open_dataset's documentation.")
    seen: dict[str, Path] = {}
    for picture, path, _ in files:
        if picture in seen:
            raise ArgumentError(f"Data set {name!r}: {path} has the same name as {seen[picture]}. Rename one, and its labels.")
        seen[picture] = path
    for kind, paths in (("labels", {t: p for _, p, t in files}), ("picture", {p: t for _, p, t in files})):
        missing = sorted(path for path in paths if not path.is_file())
        if missing:
            shown = ", ".join(f"{path} (for {paths[path].name})" for path in missing[:_SHOWN])
            more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
            raise MissingFileError(
                f"Data set {name!r}: {len(missing)} of {len(files)} pictures without {kind}: no file {shown}{more}. "
                "Add these files, or take what they belong to out of the data set."
            )
    return SegmentationDataset(name, files, label_set)


def _need(name: str, root: Path, *parts: str) -> None:
    """Refuse a root in which one of the files or folders `parts` is missing."""
    for part in parts:
        if not (root / part).exists():
            there = next(folder for folder in (root / part).parents if folder.exists())
            try:
                found = sorted(entry.name + "/" * entry.is_dir() for entry in there.iterdir())
            except OSError as error:
                found = [f"nothing readable ({error.strerror})"]
            shown = ", ".join(found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "") if found else "nothing"
            raise MissingFileError(
                f"Data set {name!r}: looked in {root} for {', '.join(parts)}; there is no {root / part}. {there} has: {shown}. "
                "Give the folder that holds these."
            )


def _cityscapes(root: Path, split: str | None) -> _Files:
    from torchvision.datasets import Cityscapes

    # checked here, as torchvision would unpack archives that it finds in the root
    split = split or "val"
    _need("cityscapes", root, f"leftImg8bit/{split}", f"gtFine/{split}")
    data = Cityscapes(str(root), split=split, mode="fine", target_type="semantic")
    pairs = [(Path(image), Path(target)) for image, (target,) in zip(data.images, data.targets)]
    suffix = "_leftImg8bit.png"  # torchvision lists whatever lies in a city's folder
    return [(image.name.removesuffix(suffix), image, target) for image, target in pairs if image.name.endswith(suffix)]


def _voc12aug(root: Path, split: str | None) -> _Files:
    from torchvision.datasets import VOCSegmentation

    base = "VOCdevkit/VOC2012"
    split = split or "val"
    _need("voc12aug", root, *(f"{base}/{part}" for part in (f"ImageSets/Segmentation/{split}.txt", "JPEGImages", "SegmentationClass")))
    data = VOCSegmentation(str(root), year="2012", image_set=split, download=False)
    files = [(Path(image).stem, Path(image), Path(target)) for image, target in zip(data.images, data.masks)]
    more = root / base / "ImageSets/Segmentation/aug.txt"
    if split == "train" and more.exists():
        _need("voc12aug", root, f"{base}/SegmentationClassAug")
        known = {name for name, _, _ in files}
        names = [name for name in more.read_text().split() if name not in known]
        files += [(name, root / base / f"JPEGImages/{name}.jpg", root / base / f"SegmentationClassAug/{name}.png") for name in names]
    return files


def _ade20k(root: Path, split: str | None) -> _Files:
    if (root / "ADEChallengeData2016").is_dir():
        root = root / "ADEChallengeData2016"
    folder = "training" if split == "train" else "validation"
    _need("ade20k", root, f"images/{folder}", f"annotations/{folder}")
    return _beside(root / "images" / folder, root / "annotations" / folder)


def _folder(root: Path, split: str | None) -> _Files:
    root = root / (split or "")
    _need("folder", root, "images", "masks")
    return _beside(root / "images", root / "masks")


def _beside(images: Path, targets: Path) -> _Files:
    """Each picture of a folder, with the PNG of the same name in another."""
    pictures = (path for path in images.iterdir() if path.suffix.lower() in _PICTURES and not path.name.startswith("."))
    return [(path.stem, path, targets / f"{path.stem}.png") for path in sorted(pictures)]


_LAYOUTS: dict[str, Callable[[Path, str | None], _Files]] = {
    "cityscapes": _cityscapes,
    "voc12aug": _voc12aug,
    "ade20k": _ade20k,
    "folder": _folder,
}


def _load_ids(path: Path) -> np.ndarray:
    """(H, W) ids of a label PNG: its grey values, or its palette indices."""
    try:
        with Image.open(path) as image:
            if image.mode in ("1", "L", "P", "I", "I;16"):
                ids = np.array(image)
                return ids.astype(np.uint8) if image.mode == "1" else ids
            mode = image.mode
    except Exception as error:  # on damaged data Pillow's readers raise OSError, SyntaxError, ValueError, EOFError, struct.error, ...
        raise ImageError(f"{path}: the labels cannot be read ({error}). Get the file again.") from None
    raise ImageError(f"{path}: labels must be one id per pixel, as grey or palette PNG; found mode {mode}.")
