"""A mask file -> the ids or colors that are stored in it, and what the file itself says of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin

from ..errors import ImageError
from ..images import reading
from ..images.preprocess import load_image
from ..labels import CLASSES_KEY, DATASET_IDS, IDS_KEY, TRAIN_IDS, LabelSet

__all__ = ["SUFFIXES", "Mask", "load_mask", "orientation", "require_fit"]

SUFFIXES = (".png", ".tif", ".tiff", ".bmp")  # formats that keep ids as they are
_FORMATS = ("PNG", "TIFF", "BMP")
_ID_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
_COLOR_MODES = ("RGB", "RGBA", "LA")
_ORIENTATION, _BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 0x112, 258, 262, 0


@dataclass(frozen=True, eq=False)  # arrays have no single answer to ==
class Mask:
    """What a mask file holds.

    Attributes:
        values: (H, W) ids of a whole-number dtype, or (H, W, 3) uint8 RGB colors.
        marked: the file says that its ids are train ids.
        turned: the file says itself how it is to be turned (EXIF), and was.
        classes: `classes_digest` of the classes that its train ids are of, where the file says so.
    """

    values: np.ndarray
    marked: bool
    turned: bool
    classes: str | None = None

    def train_ids(self, label_set: LabelSet, ids: str = DATASET_IDS) -> np.ndarray:
        """(H, W) int64 train ids, `label_set.ignore_index` where there is no class.

        Args:
            ids: what the ids of a mask are that does not say so itself, DATASET_IDS or TRAIN_IDS.

        Raises:
            ArgumentError: ids or colors that the label set does not have, or ids that the file says are of other classes.
        """
        label_set.require_classes(self.classes)
        if self.values.ndim == 3:
            return label_set.colors_to_train_ids(self.values)
        return label_set.check_train_ids(self.values) if self.marked or ids == TRAIN_IDS else label_set.to_train_ids(self.values)


def load_mask(path: Path) -> Mask:
    """Read a PNG, TIFF or BMP file: its gray values or palette indices as they are stored, or its colors.

    Raises:
        ImageError: a file that cannot be read, or that holds neither ids nor colors.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            mode, frames = image.mode, getattr(image, "n_frames", 1)
            said = image.text if isinstance(image, PngImagePlugin.PngImageFile) else {}
            marked = said.get(IDS_KEY) == TRAIN_IDS
            way = orientation(image)
            values = _stored(image)
            if not isinstance(image, TiffImagePlugin.TiffImageFile):
                values = _turned(values, way)
    except Exception as error:  # on damaged data Pillow's readers raise OSError, SyntaxError, ValueError, EOFError, struct.error, ...
        raise ImageError(f"{path}: the labels cannot be read ({error}). Get the file again.") from None
    if frames > 1:
        raise ImageError(f"{path}: holds {frames} pictures, and a mask is one. Save the right one as PNG.")
    if mode not in _ID_MODES + _COLOR_MODES:
        raise ImageError(
            f"{path}: labels must be one id per pixel, as gray or palette PNG, or RGB colors of the palette; found mode {mode}."
        )
    if mode in ("RGBA", "LA") and (values[..., -1] != 255).any():
        raise ImageError(f"{path}: labels with transparent pixels. Save it without the alpha channel.")
    values = values[..., 0] if mode == "LA" else values[..., :3] if mode == "RGBA" else values
    return Mask(values, marked, way != 1, said.get(CLASSES_KEY) if marked else None)


def require_fit(picture: Path, path: Path, mask: Mask) -> None:
    """Refuse a mask of another size than its picture, or one that may lie otherwise than the picture that EXIF turns.

    Raises:
        ImageError: such a mask, or a picture that cannot be read; both files are named.
    """
    stored, seen, way = _lie(picture)
    height, width = mask.values.shape[:2]
    if way != 1 and not mask.turned and (width, height) == stored:
        lies = "is not turned" if stored != seen else "may be turned or not"
        raise ImageError(
            f"{path}: EXIF turns the picture {picture} (orientation {way}), and the mask {lies}. Save the picture as it is seen, and the "
            "mask to match: PIL.ImageOps.exif_transpose(image).save(path)."
        )
    if (width, height) != seen:
        raise ImageError(
            f"{path}: the labels are {width}x{height} pixels and the picture {picture} is {seen[0]}x{seen[1]}. They must be of one size."
        )


def _stored(image: Image.Image) -> np.ndarray:
    """The values as they are in the file: Pillow spreads gray values of 1, 2 and 4 bits over 0 to 255, and turns white-is-zero over."""
    values = np.array(image)
    if image.mode == "1":
        values = values.astype(np.uint8)
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.mode in ("1", "L"):
        bits = image.tag_v2.get(_BITS_PER_SAMPLE, (1,))[0]
        if image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
            values = (1 if image.mode == "1" else 255) - values
    elif isinstance(image, PngImagePlugin.PngImageFile) and image.mode == "L":
        bits = _png_bits(image)
    else:
        return values
    return values // (255 // (2**bits - 1)) if bits in (2, 4) else values


def _png_bits(image: PngImagePlugin.PngImageFile) -> int:
    """Bits of a gray value, from the file's header; Pillow keeps them nowhere."""
    with Path(os.fsdecode(image.filename)).open("rb") as file:
        return int(file.read(25)[24])


def _lie(picture: Path) -> tuple[tuple[int, int], tuple[int, int], int]:
    """(width, height) of a picture as stored and as seen, and the orientation that makes the difference; its header has them."""
    try:
        with Image.open(picture, formats=reading.FORMATS) as image:
            way, size = orientation(image), image.size
            turned = size[::-1] if way >= 5 else size
            return (turned, size, way) if isinstance(image, TiffImagePlugin.TiffImageFile) else (size, turned, way)
    except Exception:  # as of metadata that Pillow stumbles over; `load_image` knows, or says what is wrong
        height, width, _ = load_image(picture).shape
        return (width, height), (width, height), 1


def orientation(image: Image.Image) -> int:
    """How EXIF says that an opened picture is to be turned, 1 (not at all) to 8. Pillow turns a TIFF itself, as it loads it."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        found = image.tag_v2.get(_ORIENTATION, 1)
        return found if found in range(1, 9) else 1
    exif = image.info.get("exif")
    return reading.orientation(exif) if isinstance(exif, bytes) else 1


def _turned(values: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an array (H, W, ...) as EXIF says."""
    if orientation >= 5:
        values = values.swapaxes(0, 1)
    return {2: values[:, ::-1], 3: values[::-1, ::-1], 4: values[::-1], 6: values[:, ::-1], 7: values[::-1, ::-1], 8: values[::-1]}.get(
        orientation, values
    )
