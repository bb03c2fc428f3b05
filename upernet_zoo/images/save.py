"""Pictures written whole or not at all, and marked: what does not have the mark is not replaced unasked. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import files
from ..errors import ArgumentError
from ..labels import CLASSES_KEY, IDS_KEY, TRAIN_IDS, classes_digest

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["MARK", "is_own", "labels_png", "picture_format", "run_of", "save_labels", "save_picture"]

# the text "Software" of a PNG, the comment of a JPEG, the tag "Software" of a TIFF, the member "generator" at the head of a GeoJSON file
MARK = "upernet_zoo"
_RUN = "upernet_zoo run"  # key of a text in a PNG
_SOFTWARE = 305


def save_picture(picture: Image.Image, path: Path, *, overwrite: bool = False, text: Mapping[str, str] | None = None) -> None:
    """Write a picture, whole or not at all, in the format of its name.

    Args:
        overwrite: replace a file that is there and was not written here. One that was, a PNG or JPEG, is replaced in any case.
        text: of a PNG, key -> value.

    Raises:
        ArgumentError: no format that can be written has that suffix.
        ExistingFileError: a file of that name is there, and was not written here.
        WriteError: the file cannot be written.

    Examples:
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from upernet_zoo.images import save
        >>> save.save_picture(Image.new("RGB", (4, 3)), Path("black.jpg"))
        >>> Image.open("black.jpg").size
        (4, 3)
    """
    format = picture_format(path)
    files.require_replaceable(path, is_own, overwrite)
    content = _encoded(picture, format, text or {})  # first into memory: Pillow does not say that a disk is full
    files.write_atomically(path, lambda temporary: temporary.write_bytes(content))


def _encoded(picture: Image.Image, format: str, text: Mapping[str, str]) -> bytes:
    """The content of a picture's file, with our mark where the format has room for it."""
    from PIL import PngImagePlugin

    options: dict[str, Any] = {}
    if format == "PNG":
        info = PngImagePlugin.PngInfo()
        for key, value in {"Software": MARK, **text}.items():
            info.add_text(key, value)
        options = {"pnginfo": info}
    elif format == "JPEG":
        options = {"comment": MARK}
    content = BytesIO()
    picture.save(content, format=format, **options)
    return content.getvalue()


def save_labels(
    labels: np.ndarray,
    palette: Sequence[tuple[int, int, int]],
    path: Path,
    *,
    classes: Sequence[str] = (),
    overwrite: bool = False,
    run: str | None = None,
) -> None:
    """Write a label map as a PNG that says that it holds train ids, and of which classes.

    Args:
        labels: (H, W) train ids, any integer dtype.
        palette: an RGB color for each class, which goes into the file. Above 256 classes the file has 16 bits and no colors.
        path, overwrite: as for `save_picture`.
        classes: their names, a digest of which goes into the file, so that it is not taken for labels of other classes.

    Raises:
        ArgumentError: a name that does not end in .png (other formats would change the labels).
        ExistingFileError, WriteError: as `save_picture`.

    Examples:
        >>> import numpy as np
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from upernet_zoo.images import save
        >>> save.save_labels(np.array([[0, 1]]), [(128, 64, 128), (244, 35, 232)], Path("labels.png"), classes=("road", "sidewalk"))
        >>> np.array(Image.open("labels.png"))
        array([[0, 1]], dtype=uint8)
    """
    if path.suffix.lower() != ".png":
        raise ArgumentError(f"{path}: a label map is saved as .png; other formats would change the labels.")
    files.require_replaceable(path, is_own, overwrite)
    content = labels_png(labels, palette, classes, {} if run is None else {_RUN: run})
    files.write_atomically(path, lambda temporary: temporary.write_bytes(content))


def labels_png(
    labels: np.ndarray, palette: Sequence[tuple[int, int, int]], classes: Sequence[str] = (), text: Mapping[str, str] | None = None
) -> bytes:
    """The file that `save_labels` writes, as bytes: for a table, a database, an answer over HTTP.

    Args:
        labels, palette, classes: as for `save_labels`.
        text: key -> value, to be kept in the file.

    Examples:
        >>> import numpy as np
        >>> from upernet_zoo.images import save
        >>> save.labels_png(np.zeros((2, 2), int), [(128, 64, 128)], ("road",))[1:4]
        b'PNG'
    """
    from PIL import Image

    if len(palette) > 256:
        picture = Image.fromarray(labels.astype(np.uint16))
    else:
        picture = Image.fromarray(labels.astype(np.uint8))
        picture.putpalette([v for color in palette for v in color])
    digest = classes_digest(classes)
    return _encoded(picture, "PNG", {IDS_KEY: TRAIN_IDS} | ({} if digest is None else {CLASSES_KEY: digest}) | dict(text or {}))


def is_own(path: Path) -> bool:
    """Whether a file is a picture, or a raster's labels or their polygons, that was written here."""
    from PIL import Image, TiffImagePlugin

    try:
        if path.suffix.lower() == ".geojson":
            with path.open("rb") as file:
                return f'"generator": "{MARK}"'.encode() in file.read(100)
        if path.suffix.lower() in (".tif", ".tiff"):
            tiff = TiffImagePlugin.TiffImageFile(path)  # not `open`, which refuses what is large
            with tiff:
                return bool(tiff.tag_v2.get(_SOFTWARE) == MARK)
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            return image.info.get("Software") == MARK or image.info.get("comment") == MARK.encode()
    except Exception:  # no picture, or one that is damaged
        return False


def run_of(path: Path) -> str | None:
    """What `save_labels` was given as `run`; None if it was not, or if the file is no label map that was written here."""
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG",)) as image:
            return image.info.get(_RUN) if image.info.get("Software") == MARK else None
    except Exception:  # no picture, or one that is damaged
        return None


def picture_format(path: Path) -> str:
    """Pillow's name of the format that a file's name asks for.

    Raises:
        ArgumentError: there is none that can be written.
    """
    from PIL import Image

    Image.init()
    format = Image.EXTENSION.get(path.suffix.lower())
    if format not in Image.SAVE:
        raise ArgumentError(f"{path}: no picture format is known for {path.suffix!r}; use .png or .jpg.")
    return format
