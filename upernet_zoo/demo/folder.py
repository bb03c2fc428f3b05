"""Drawn scenes as a folder of pictures and masks, as `upernet_zoo.training` reads it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from .. import files, labels
from . import scenes

__all__ = ["CITYSCAPES", "MERGED", "write"]

CITYSCAPES = labels.get("cityscapes").classes

# four classes in place of nineteen: what one walks on, what is upright, what moves, and the sky
MERGED: Mapping[str, Sequence[str]] = {
    "ground": ("road", "sidewalk", "terrain"),
    "upright": ("building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"),
    "sky": ("sky",),
    "moving": ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
}


def write(folder: Path, seeds: Iterable[int], classes: Mapping[str, Sequence[str]] = MERGED, size: tuple[int, int] = (256, 512)) -> None:
    """Draw scenes into `images/` and `masks/`; scenes that are there already stay as they are.

    Args:
        folder: is made if it is not there.
        seeds: of the scenes; the files are named by them.
        classes: for each class of the masks, in the order of their ids, the Cityscapes classes that it is made of.
        size: (height, width) in pixels.

    Raises:
        WriteError: the folder cannot be written.
    """
    merged = {name: id for id, names in enumerate(classes.values()) for name in names}
    ids = np.array([merged[name] for name in CITYSCAPES], np.uint8)
    for seed in seeds:
        paths = folder / "images" / f"{seed:06d}.png", folder / "masks" / f"{seed:06d}.png"
        if not all(path.exists() for path in paths):
            image, target = scenes.draw(seed, size)
            for path, array in zip(paths, (image, ids[target])):
                files.write_atomically(path, functools.partial(_write_png, array))


def _write_png(array: np.ndarray, path: Path) -> None:
    Image.fromarray(array).save(path, format="png", compress_level=1)
