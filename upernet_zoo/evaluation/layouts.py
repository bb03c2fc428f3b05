"""Where the pictures and their masks are: the layouts of Cityscapes, Pascal VOC 2012, ADE20K, and a plain folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ..errors import ArgumentError, ImageError, MissingFileError
from ..images.reading import FORMATS_TEXT, SUFFIXES
from . import masks

__all__ = ["LAYOUTS", "Files", "listed", "need"]

# name, picture, mask; paths
Files = list[tuple[str, Path, Path]]

# what a mask's name has after its picture's: nothing, or what labeling tools, Cityscapes' scripts and `predict` put there
_ENDINGS = ("_mask", "_labels", "_labelIds", "_gtFine_labelIds", "_labelTrainIds", "_gtFine_labelTrainIds")
_CITYSCAPES_ENDING = "_leftImg8bit"  # of a picture, in place of which its masks have another
_SHOWN = 10  # names in a message


def need(name: str, root: Path, *parts: str) -> None:
    """Refuse a root in which one of the files or folders `parts` is missing."""
    for part in parts:
        if not (root / part).exists():
            there = next(folder for folder in (root / part).parents if folder.exists())
            raise MissingFileError(
                f"Data set {name!r}: looked in {root} for {', '.join(parts)}; there is no {root / part}. {there} has: {listed(there)}. "
                "Give the folder that holds these."
            )


def listed(folder: Path, first: str = "") -> str:
    """What is in a folder, for a message; names that begin with `first` come first."""
    try:
        found = sorted(
            (entry.name + "/" * entry.is_dir() for entry in folder.iterdir()), key=lambda name: (not name.startswith(first), name)
        )
    except OSError as error:
        return f"nothing readable ({error.strerror})"
    return ", ".join(found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "") if found else "nothing"


def _cityscapes(root: Path, split: str | None) -> Files:
    split = split or "val"
    need("cityscapes", root, f"leftImg8bit/{split}", f"gtFine/{split}")
    files, suffix = [], f"{_CITYSCAPES_ENDING}.png"
    for city in sorted((root / "leftImg8bit" / split).iterdir()):
        for picture in city.iterdir():
            if picture.name.endswith(suffix) and not picture.name.startswith("."):
                name = picture.name.removesuffix(suffix)
                files.append((name, picture, root / "gtFine" / split / city.name / f"{name}_gtFine_labelIds.png"))
    return files


def _voc12aug(root: Path, split: str | None) -> Files:
    devkit, split = "VOCdevkit/VOC2012", split or "val"
    need("voc12aug", root, *(f"{devkit}/{part}" for part in (f"ImageSets/Segmentation/{split}.txt", "JPEGImages", "SegmentationClass")))
    base = root / devkit

    def pairs(names: Iterable[str], masks: str) -> Files:
        return [(name, base / f"JPEGImages/{name}.jpg", base / f"{masks}/{name}.png") for name in names]

    names = _names(base / f"ImageSets/Segmentation/{split}.txt")
    files = pairs(names, "SegmentationClass")
    more = base / "ImageSets/Segmentation/aug.txt"
    if split == "train" and more.exists():
        need("voc12aug", root, f"{devkit}/SegmentationClassAug")
        known = set(names)
        files += pairs((name for name in _names(more) if name not in known), "SegmentationClassAug")
    return files


def _names(path: Path) -> list[str]:
    """The names in a list of pictures; a byte order mark is none of them."""
    try:
        return path.read_text(encoding="utf-8-sig").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"{path}: cannot be read as text ({error}). It has the name of a picture in each line.") from None


def _ade20k(root: Path, split: str | None) -> Files:
    if (root / "ADEChallengeData2016").is_dir():
        root = root / "ADEChallengeData2016"
    folder = "training" if split == "train" else "validation"
    need("ade20k", root, f"images/{folder}", f"annotations/{folder}")
    return _beside(root / "images" / folder, root / "annotations" / folder)


def _folder(root: Path, split: str | None) -> Files:
    inside = root / (split or "")
    need("folder", inside, "images", "masks")
    files = _beside(inside / "images", inside / "masks")
    if not files:
        where = f"{root}, split {split!r}" if split else root
        raise MissingFileError(
            f"Data set 'folder': no pictures under {where}: {inside / 'images'} has: {listed(inside / 'images')}. "
            f"Pictures end in {', '.join(SUFFIXES)}."
        )
    return files


def _beside(images: Path, targets: Path) -> Files:
    """Each picture in a folder and the folders in it, with its mask in the same place of another folder.

    Where there is no mask, the path is that of the PNG of the picture's name.
    """
    found: dict[tuple[Path, str], list[Path]] = {}
    for path in _walk(targets):
        if path.suffix.lower() in masks.SUFFIXES:
            found.setdefault((path.parent.relative_to(targets), path.stem), []).append(path)
    files = []
    for picture in _walk(images):
        place = picture.relative_to(images)
        mask = _mask_of(picture, place.parent, found)
        if picture.suffix.lower() in SUFFIXES:
            files.append((place.with_suffix("").as_posix(), picture, mask or targets / place.with_suffix(".png")))
        elif mask is not None:
            raise ImageError(
                f"{picture}: has the mask {mask}, and is in no format that is read ({FORMATS_TEXT}). Convert it to one of these."
            )
    return files


def _mask_of(picture: Path, place: Path, found: dict[tuple[Path, str], list[Path]]) -> Path | None:
    """The mask of the picture's own name, or else the one with an ending; None if there is none.

    Raises:
        ArgumentError: there are several.
    """
    base = picture.stem.removesuffix(_CITYSCAPES_ENDING)
    others = [name + ending for name in dict.fromkeys((picture.stem, picture.name, base)) for ending in ("", *_ENDINGS)]
    for stems in ([picture.stem], others):
        candidates = [path for stem in dict.fromkeys(stems) for path in found.get((place, stem), ())]
        if len(candidates) > 1:
            listed = ", ".join(map(str, candidates))
            raise ArgumentError(f"Data set 'folder': {picture} has several masks: {listed}. Keep one of them there.")
        if candidates:
            return candidates[0]
    return None


def _walk(folder: Path) -> Iterator[Path]:
    """Files in a folder and in the folders in it, by name; those whose names begin with a dot (`._` of macOS) are left out."""

    def failed(error: OSError) -> None:
        raise error

    seen: dict[tuple[int, int], str] = {}
    for parent, folders, names in os.walk(folder, onerror=failed, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        place = Path(parent).stat()
        first = seen.setdefault((place.st_dev, place.st_ino), parent)
        if first != parent:
            raise ArgumentError(f"{parent} and {first} are one folder, by a link, and its files would count twice. Remove the link.")
        yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))


LAYOUTS: dict[str, Callable[[Path, str | None], Files]] = {
    "cityscapes": _cityscapes,
    "voc12aug": _voc12aug,
    "ade20k": _ade20k,
    "folder": _folder,
}
