"""Picture in, label map out: preparation, the network whole or in windows, views, and the result in the picture's own size."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from . import preprocess, resample, sources, visualize
from .config import Recipe
from .errors import ArgumentError, CacheError, ConfigError
from .factory import create_model
from .labels import LabelSet
from .models import UPerNet
from .models.heads import resize

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A label map and what is needed to read it.

    Attributes:
        labels: (H, W) train ids in the picture's own size; uint8, or int16 above 255 classes.
        image: the picture, (H, W, 3) uint8 RGB.
        label_set: classes and colours.
    """

    labels: np.ndarray
    image: np.ndarray
    label_set: LabelSet

    @property
    def classes(self) -> tuple[str, ...]:
        """A name for each train id."""
        return self.label_set.classes

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """An RGB colour (0..255) for each train id."""
        return self.label_set.palette

    def areas(self) -> dict[str, float]:
        """Class name -> fraction of the picture (0..1), largest first, only classes that occur."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.classes))
        order = sorted(np.flatnonzero(counts), key=lambda i: -counts[i])
        return {self.classes[i]: float(counts[i] / self.labels.size) for i in order}

    def overlay(self, alpha: float = 0.5, legend: bool = True) -> Image.Image:
        """The picture under the classes' colours with opacity `alpha` (0..1), over a legend with names and areas.

        Raises:
            ArgumentError: alpha outside 0..1.
        """
        from PIL import Image

        if not 0 <= alpha <= 1:
            raise ArgumentError(f"overlay: alpha is an opacity from 0 to 1, found {alpha!r}.")
        picture = Image.fromarray(visualize.blend(self.image, self.labels, self.palette, alpha))
        if not legend:
            return picture
        colours = dict(zip(self.classes, self.palette))
        entries = [(f"{name.strip()} {area:.1%}", colours[name]) for name, area in self.areas().items()]
        return visualize.stack([picture, visualize.legend(entries, picture.width)])

    def save(self, path: str | os.PathLike) -> Path:
        """Write the label map as a PNG of train ids with the palette in it (16 bit without a palette above 256 classes).

        Raises:
            ArgumentError: a name that does not end in .png (other formats would change the labels).
            CacheError: the file cannot be written.
        """
        from PIL import Image

        path = Path(path).expanduser()
        if path.suffix.lower() != ".png":
            raise ArgumentError(f"{path}: a label map is saved as .png; other formats would change the labels.")
        if len(self.classes) > 256:
            picture = Image.fromarray(self.labels.astype(np.uint16))
        else:
            picture = Image.fromarray(self.labels.astype(np.uint8))
            picture.putpalette([v for colour in self.palette for v in colour])
        save_picture(picture, path)
        return path


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture, whole or not at all, in the format of its name.

    Raises:
        CacheError: the file cannot be written.
    """
    from PIL import Image

    Image.init()
    format = Image.EXTENSION.get(path.suffix.lower())
    if format not in Image.SAVE:
        raise ArgumentError(f"{path}: no picture format is known for {path.suffix!r}; use .png or .jpg.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sources.write_atomically(path, lambda temporary: picture.save(temporary, format=format))
    except OSError as error:
        raise CacheError(f"Cannot write {path}: {error}. Choose a folder that can be written.") from error


class Segmenter:
    """Segments pictures as the published evaluation does.

    Args:
        model: a `UPerNet`, or what `create_model` takes.
        device: where to run; by default the model's own for a model, and for a name CUDA if there is one, else the CPU.
        mode, crop, stride: in place of the model's recipe: "whole", or "slide" with windows of `crop` (height, width) every
            `stride` pixels.
        scales: ratios to the recipe's scale; more than one averages the softmax over all. The published multi-scale numbers
            use (0.5, 0.75, 1.0, 1.25, 1.5, 1.75).
        flip: also run every view mirrored left-right, and average.
        batch_size: windows and views of equal size that the network takes at once.
        amp: run the network in half precision (float16 on CUDA, bfloat16 elsewhere).

    Raises:
        ArgumentError: a value that cannot be used; also what `create_model` raises.
    """

    def __init__(
        self,
        model: UPerNet | str,
        *,
        device: torch.device | str | None = None,
        mode: str | None = None,
        crop: tuple[int, int] | None = None,
        stride: tuple[int, int] | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        batch_size: int = 1,
        amp: bool = False,
    ):
        if isinstance(model, str):
            model = create_model(model)
            device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        elif not isinstance(model, UPerNet):
            raise ArgumentError(f"Segmenter: expected a UPerNet or a model's name, found {type(model).__name__}.")
        if model.config.in_channels != 3:
            raise ArgumentError(f"Segmenter: takes RGB pictures, and the model has {model.config.in_channels} input channels.")
        try:
            scales = tuple(float(s) for s in scales)
        except (TypeError, ValueError):
            raise ArgumentError(f"Segmenter: scales must be a list of numbers, found {scales!r}.") from None
        if not scales or not all(0 < s <= 16 for s in scales):
            raise ArgumentError(f"Segmenter: scales must be ratios above 0 and up to 16, found {scales}.")
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ArgumentError(f"Segmenter: batch_size must be a whole number from 1, found {batch_size!r}.")
        self.model = model.to(device).eval() if device is not None else model.eval()
        self.recipe = _override(model.recipe, mode, crop, stride)
        self.scales, self.flip, self.batch_size, self.amp = scales, bool(flip), batch_size, bool(amp)

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return self.model.decode_head.classifier.weight.device

    def __call__(self, image: Any) -> Segmentation:
        """Segment a picture.

        Args:
            image: a path, a PIL image, an (H, W, 3) uint8 RGB array or a tensor: what `preprocess.load_image` takes.

        Raises:
            MissingFileError, ImageError: it cannot be read.
        """
        return self._segment(preprocess.load_image(image))

    def map(self, images: Iterable[Any]) -> Iterator[Segmentation]:
        """Segment any number of pictures, in order; the next one is read and decoded while one is computed.

        Raises:
            MissingFileError, ImageError: one cannot be read; those before it have been given back.
        """
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(1) as pool:
            waiting = None
            for image in images:
                following = pool.submit(preprocess.load_image, image)
                if waiting is not None:
                    yield self._segment(waiting.result())
                waiting = following
            if waiting is not None:
                yield self._segment(waiting.result())

    @torch.inference_mode()
    def probabilities(self, image: Any) -> Tensor:
        """(num_classes, H, W) float32 softmax on the CPU at the picture's own size, averaged over the views."""
        pixels = preprocess.load_image(image)
        return resample.probabilities(self._views(pixels), pixels.shape[:2]).cpu()

    @torch.inference_mode()
    def _segment(self, pixels: np.ndarray) -> Segmentation:
        views, size = self._views(pixels), pixels.shape[:2]
        winner = resample.labels(views[0], size) if len(views) == 1 else resample.probabilities(views, size).argmax(0)
        dtype = torch.uint8 if self.model.config.num_classes <= 255 else torch.int16
        return Segmentation(winner.to(dtype).cpu().numpy(), pixels, self.model.label_set)

    def _views(self, pixels: np.ndarray) -> list[resample.View]:
        """Logits of each scale, plain and mirrored; mirrored ones are flipped back."""
        views = []
        for scale in self.scales:
            x = preprocess.prepare(pixels, self.recipe, scale)
            inputs = torch.cat([x, x.flip(3)]) if self.flip else x
            logits, via = (self._slide if self.recipe.mode == "slide" else self._whole)(inputs)
            for i in range(len(inputs)):
                one = logits[i].flip(2) if i else logits[i]
                views.append(resample.View(one, via, self.model.config.align_corners))
        return views

    def _network(self, x: Tensor) -> Tensor:
        """Logits at stride 4, at most `batch_size` at once."""
        weight = self.model.decode_head.classifier.weight
        parts = []
        for part in x.split(self.batch_size):
            part = part.to(weight.device, weight.dtype)
            if weight.device.type == "cuda":
                part = part.contiguous(memory_format=torch.channels_last)
            half = torch.float16 if weight.device.type == "cuda" else torch.bfloat16
            with torch.autocast(weight.device.type, dtype=half, enabled=self.amp):
                parts.append(self.model.decode_head(self.model.backbone(part)).float())
        return torch.cat(parts)

    def _whole(self, x: Tensor) -> tuple[Tensor, tuple[int, int] | None]:
        return self._network(x), tuple(x.shape[2:])

    def _slide(self, x: Tensor) -> tuple[Tensor, tuple[int, int] | None]:
        """Logits of overlapping windows, summed and divided by their number at each pixel (mmsegmentation 0.30's slide_inference)."""
        height, width = x.shape[2:]
        rows, columns = map(windows, (height, width), self.recipe.crop, self.recipe.stride)
        places = [(i, r, c) for i in range(len(x)) for r in rows for c in columns]
        total = torch.zeros(len(x), self.model.config.num_classes, height, width, device=self.device)
        for start in range(0, len(places), self.batch_size):
            batch = places[start : start + self.batch_size]
            crops = torch.stack([x[i, :, r, c] for i, r, c in batch])
            logits = self._network(crops)
            size = crops.shape[2:]
            for (i, r, c), one in zip(batch, logits):
                total[i, :, r, c] += resize(one[None], size, self.model.config.align_corners)[0]
        seen = [torch.zeros(size, device=self.device) for size in (height, width)]
        for axis, slices in zip(seen, (rows, columns)):
            for window in slices:
                axis[window] += 1
        total /= seen[0][:, None] * seen[1]
        return total, None


def windows(size: int, crop: int, stride: int) -> list[slice]:
    """Windows along one axis: ceil((size - crop) / stride) + 1 of them, the last pushed back inside; one whole if size <= crop."""
    count = max(math.ceil((size - crop) / stride), 0) + 1
    ends = [min(i * stride + crop, size) for i in range(count)]
    return [slice(max(end - crop, 0), end) for end in ends]


def _override(recipe: Recipe, mode: str | None, crop: Any, stride: Any) -> Recipe:
    mode = mode or recipe.mode
    if mode == "whole":
        if crop is not None or stride is not None:
            raise ArgumentError("Segmenter: crop and stride belong to slide mode; pass mode='slide' with them.")
    else:
        crop, stride = crop or recipe.crop, stride or recipe.stride
    try:
        return dataclasses.replace(recipe, mode=mode, crop=crop, stride=stride)
    except ConfigError as error:
        raise ArgumentError(f"Segmenter: {error}") from None
