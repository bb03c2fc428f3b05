"""A label map of a picture, and what is needed to read it. No torch here."""

from __future__ import annotations

import difflib
import io
import numbers
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import ArgumentError, UnknownNameError
from .files import expanded
from .images import shapes, visualize
from .images.save import save_labels
from .labels import LabelSet
from .tables import name_list

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Segmentation", "SegmentedFrame"]


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """A label map and what is needed to read it. In a notebook it shows itself as its overlay.

    Attributes:
        labels: (H, W) train ids in the picture's own size; uint8, or int16 above 255 classes.
        image: the picture, (H, W, 3) uint8 RGB.
        label_set: classes and colors.

    Examples:
        >>> import upernet_zoo as uz
        >>> segmentation = uz.Segmenter("demo")("street.jpg")
        >>> segmentation.labels.shape, segmentation.labels.dtype
        ((256, 512), dtype('uint8'))
        >>> segmentation.mask("road").dtype, segmentation.colors().shape
        (dtype('bool'), (256, 512, 3))
        >>> segmentation.save("labels.png").name
        'labels.png'
    """

    labels: np.ndarray
    image: np.ndarray
    label_set: LabelSet

    def __repr__(self) -> str:
        height, width = self.labels.shape
        shares = [f"{self.classes[id].strip()} {area:.1%}" for id, area in self._shares()]
        return f"Segmentation({width}x{height}, {self.label_set.name}: {name_list(shares, 4)})"

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.overlay().save(content, format="PNG")
        return content.getvalue()

    @property
    def classes(self) -> tuple[str, ...]:
        """A name for each train id."""
        return self.label_set.classes

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """An RGB color (0..255) for each train id."""
        return self.label_set.palette

    def colors(self) -> np.ndarray:
        """The label map in the palette's colors, (H, W, 3) uint8 RGB: of an ADE20K model what ControlNet's segmentation models take."""
        return visualize.colorize(self.labels, self.palette)

    def mask(self, name: str) -> np.ndarray:
        """Where a class is, (H, W) bool.

        Raises:
            UnknownNameError: the label set has no such class; the message has the nearest names.
        """
        names = [known.strip() for known in self.classes]  # some of ADE20K's end in a space
        if not isinstance(name, str) or name.strip() not in names:
            near = difflib.get_close_matches(str(name).lower(), names, n=3, cutoff=0.5)
            hint = f"Did you mean {', '.join(map(repr, near))}?" if near else f"It has {name_list(map(repr, names), 20)}."
            raise UnknownNameError(f"Label set {self.label_set.name!r} has no class {name!r}. {hint}")
        found: np.ndarray = self.labels == names.index(name.strip())
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: size in pixels, and of each class that occurs its id, color and share (0..1), largest first."""
        height, width = self.labels.shape
        classes = [
            {"name": self.classes[id].strip(), "id": id, "color": list(self.palette[id]), "area": area} for id, area in self._shares()
        ]
        return {"height": height, "width": width, "label_set": self.label_set.name, "classes": classes}

    def to_coco(self, image_id: int = 1, file_name: str = "") -> dict[str, Any]:
        """The label map as a COCO data set of one picture, plain values for JSON: an annotation in run lengths for each class that occurs.

        A category's id is the train id plus 1, since other tools keep 0 for the background. Annotations' ids differ from those of every
        other picture of these classes, so several data sets are one when their lists of images and annotations are joined.

        Args:
            image_id: of the picture, a whole number from 0.
            file_name: of the picture.

        Raises:
            ArgumentError: `image_id` is something else.
        """
        if isinstance(image_id, bool) or not isinstance(image_id, int) or image_id < 0:
            raise ArgumentError(f"to_coco: image_id must be a whole number from 0, found {image_id!r}.")
        height, width = self.labels.shape
        annotations = []
        for id, _ in self._shares():
            mask = self.labels == id
            annotations.append(
                {
                    "id": image_id * len(self.classes) + id + 1,  # never 0, which pycocotools takes for "no match"
                    "image_id": image_id,
                    "category_id": id + 1,
                    "segmentation": {"size": [height, width], "counts": shapes.run_lengths(mask)},
                    "area": int(mask.sum()),
                    "bbox": shapes.bounding_box(mask),
                    "iscrowd": 0,
                }
            )
        return {
            "images": [{"id": image_id, "file_name": file_name, "height": height, "width": width}],
            "annotations": annotations,
            "categories": [{"id": id + 1, "name": name.strip()} for id, name in enumerate(self.classes)],
        }

    def polygons(self, name: str) -> list[list[list[tuple[float, float]]]]:
        """Outlines of a class, along the edges of pixels: rasterized again they are its mask.

        Args:
            name: of the class.

        Returns:
            Of each group of pixels that share an edge, its outer ring and those of its holes; a ring is of (x, y) in pixels from the upper
            left corner, and ends where it begins. So they are the coordinates of a GeoJSON MultiPolygon.

        Raises:
            UnknownNameError: the label set has no such class; the message has the nearest names.
            MissingPackageError: rasterio is not installed (the extra `raster`).
        """
        return shapes.polygons(self.mask(name))

    def areas(self) -> dict[str, float]:
        """Class name -> fraction of the picture (0..1), largest first, only classes that occur."""
        return {self.classes[id]: area for id, area in self._shares()}

    def _shares(self) -> list[tuple[int, float]]:
        """(train id, fraction of the picture) of each class that occurs, largest first."""
        counts = np.zeros(len(self.classes), np.int64)
        for row in self.labels:  # of all at once NumPy would make an array of 8 bytes for each pixel
            counts += np.bincount(row, minlength=len(counts))
        order = sorted(np.flatnonzero(counts).tolist(), key=lambda id: -counts[id])
        return [(id, float(counts[id] / self.labels.size)) for id in order]

    def overlay(self, alpha: float = 0.5, legend: bool = True) -> Image.Image:
        """The picture under the classes' colors with opacity `alpha` (0..1), over a legend with names and areas.

        Raises:
            ArgumentError: alpha outside 0..1.
        """
        from PIL import Image

        if not isinstance(alpha, numbers.Real) or not 0 <= alpha <= 1:
            raise ArgumentError(f"overlay: alpha is an opacity from 0 to 1, found {alpha!r}.")
        picture = Image.fromarray(visualize.blend(self.image, self.labels, self.palette, alpha))
        if not legend:
            return picture
        shares = self._shares()
        entries = [(f"{self.classes[id].strip()} {area:.1%}", self.palette[id]) for id, area in shares]
        return visualize.stack([picture, visualize.legend(entries, picture.width, [id for id, _ in shares])])

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the label map as a PNG that says that it holds train ids, with the palette in it (16 bit without one above 256 classes).

        Args:
            path: ends in ".png".
            overwrite: replace a file that is there and was not written by this library.

        Raises:
            ArgumentError: a name that does not end in .png (other formats would change the labels).
            ExistingFileError: a file of that name is there, and was not written by this library.
            WriteError: the file cannot be written.
        """
        path = expanded(path)
        save_labels(self.labels, self.palette, path, classes=self.classes, overwrite=overwrite)
        return path


@dataclass(frozen=True, eq=False)
class SegmentedFrame:
    """A frame's result, or why there is none.

    Attributes:
        number: of the frame, counted from 0 in the video.
        seconds: when it is shown, from the beginning; None where the file does not say.
        segmentation: its label map; None where it could not be had.
        error: why it could not be had; None where it could.

    Examples:
        >>> import upernet_zoo as uz
        >>> for frame in uz.Segmenter("demo").video("clip.mp4", every=4):
        ...     print(frame.number, frame.segmentation.labels.shape if frame.error is None else frame.error)
        0 (96, 128)
        4 (96, 128)
    """

    number: int
    seconds: float | None
    segmentation: Segmentation | None
    error: str | None
