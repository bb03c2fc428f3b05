"""Picture in, label map out: preparation, the network whole or in windows, views, and the result in the picture's own size."""

from __future__ import annotations

import dataclasses
import math
import numbers
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from . import memory, optimized, preprocess, resample, sources, visualize
from .config import Recipe
from .errors import ArgumentError, ConfigError
from .factory import check_device, create_model
from .labels import LabelSet
from .models import UPerNet
from .models.fused import DirectConv, FusedUPerNet, optimize_for_inference
from .transfer import size_text

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

        if not isinstance(alpha, numbers.Real) or not 0 <= alpha <= 1:
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


_In, _Out = TypeVar("_In"), TypeVar("_Out")


def read_ahead(load: Callable[[_In], _Out], items: Iterable[_In]) -> Iterator[_Out]:
    """`load(item)` of each item, in order; the next one is loaded in a thread while one is worked on."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for item in items:
            following = pool.submit(load, item)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture, whole or not at all, in the format of its name.

    Raises:
        CacheError: the file cannot be written.
    """
    format = picture_format(path)
    sources.write_atomically(path, lambda temporary: picture.save(temporary, format=format))


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


class Segmenter:
    """Segments pictures as the published evaluation does.

    Args:
        model: a `UPerNet`, its fused twin, or what `create_model` takes.
        device: where to run; by default the model's own for a model, and for a name CUDA if there is one, else the CPU.
        mode, crop, stride: in place of the model's recipe: "whole", or "slide" with windows of `crop` (height, width) every
            `stride` pixels.
        scales: ratios to the recipe's scale; more than one averages the softmax over all. The published multi-scale numbers
            use (0.5, 0.75, 1.0, 1.25, 1.5, 1.75).
        flip: also run every view mirrored left-right, and average.
        batch_size: windows and views of equal size that the network takes at once.
        amp: run the network in half precision (float16 on CUDA, bfloat16 elsewhere).
        optimize: run the fused twin (`optimize_for_inference`) with the weights that the model has now; later changes of the model are
            not seen, so pass False while training it. By default on the CPU in float32, where it was measured to win from 128x128
            pixels up (and to lose a few ms below); the twin of a name of the index is kept in the cache.

    On CUDA the network runs in the channels-last layout. No part of this has been tried on a GPU.

    Raises:
        ArgumentError: a value that cannot be used; also what `create_model` raises.
    """

    def __init__(
        self,
        model: UPerNet | FusedUPerNet | str,
        *,
        device: torch.device | str | None = None,
        mode: str | None = None,
        crop: tuple[int, int] | None = None,
        stride: tuple[int, int] | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        batch_size: int = 1,
        amp: bool = False,
        optimize: bool | None = None,
    ):
        check_device(device)
        ratios = tuple(scales) if isinstance(scales, Iterable) else ()
        if not ratios or not all(isinstance(ratio, numbers.Real) and 0 < ratio <= 16 for ratio in ratios):
            raise ArgumentError(f"Segmenter: scales must be a list of ratios above 0 and up to 16, found {scales!r}.")
        for name, value in (("flip", flip), ("amp", amp), ("optimize", False if optimize is None else optimize)):
            if not isinstance(value, bool):
                raise ArgumentError(f"Segmenter: {name} must be True or False, found {value!r}.")
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ArgumentError(f"Segmenter: batch_size must be a whole number from 1, found {batch_size!r}.")
        if optimize and amp:
            raise ArgumentError("Segmenter: amp=True goes with a plain model. For a fused one in half precision, convert the model first.")
        self.model = model = _ready(model, device, optimize, amp)
        if model.config.in_channels != 3:
            raise ArgumentError(f"Segmenter: takes RGB pictures, and the model has {model.config.in_channels} input channels.")
        self.recipe = _override(model.recipe, mode, crop, stride)
        self.scales, self.flip, self.batch_size, self.amp = tuple(map(float, ratios)), flip, batch_size, amp

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
            ArgumentError: more memory is needed than there is.
        """
        return self._segment(preprocess.load_image(image))

    def map(self, images: Iterable[Any]) -> Iterator[Segmentation]:
        """Segment any number of pictures, in order; the next one is read and decoded while one is computed.

        Raises:
            MissingFileError, ImageError: one cannot be read; those before it have been given back.
            ArgumentError: one needs more memory than there is.
        """
        for pixels in read_ahead(preprocess.load_image, images):
            yield self._segment(pixels)

    @torch.inference_mode()
    def probabilities(self, image: Any) -> Tensor:
        """(num_classes, H, W) float32 softmax on the CPU at the picture's own size, averaged over the views.

        Raises:
            MissingFileError, ImageError: the picture cannot be read.
            ArgumentError: more memory is needed than there is.
        """
        pixels = preprocess.load_image(image)
        size = pixels.shape[:2]
        self._require_memory(size, self.model.config.num_classes * 4)
        return resample.probabilities(self._views(pixels), size).cpu()

    @torch.inference_mode()
    def _segment(self, pixels: np.ndarray) -> Segmentation:
        size = pixels.shape[:2]
        self._require_memory(size, 1)
        return Segmentation(resample.labels(self._views(pixels), size).cpu().numpy(), pixels, self.model.label_set)

    def _require_memory(self, size: tuple[int, int], bytes_per_pixel: int) -> None:
        """Refuse a picture of `size` (height, width) that cannot fit, where that can be known, before anything is computed."""
        free = memory.available(self.device)
        if free is None:
            return
        views, stored, network = 1 + self.flip, 0, 0
        for scale in self.scales:
            height, width = preprocess.fit(size, tuple(int(side * scale) for side in self.recipe.scale))
            rows, columns = self._windows((height, width)) or ([slice(0, height)], [slice(0, width)])
            high, wide = (axis[0].stop - axis[0].start for axis in (rows, columns))
            inputs = views * len(rows) * len(columns)
            stored += inputs * -(-high // 4) * -(-wide // 4) * self.model.config.num_classes * 4
            network = max(network, network_bytes(self.model, min(inputs, self.batch_size) * high * wide))
        result = size[0] * size[1] * bytes_per_pixel
        if network + stored + result > free:
            total, network, stored, result, free = map(size_text, (network + stored + result, network, stored, result, free))
            raise ArgumentError(
                f"A picture of {size[1]}x{size[0]} pixels needs about {total} of memory: {network} for the network, {stored} for the "
                f"logits of all views, {result} for the result; {self.device} has {free} free. Smaller or fewer scales, batch_size=1, "
                "mode='slide' with a crop, and labels in place of probabilities need less."
            )

    def _windows(self, size: tuple[int, int]) -> tuple[list[slice], list[slice]] | None:
        """Rows and columns of the windows over an input of (height, width); None in whole mode."""
        if self.recipe.mode == "whole":
            return None
        rows, columns = map(windows, size, self.recipe.crop, self.recipe.stride)
        return rows, columns

    def _views(self, pixels: np.ndarray) -> list[resample.View]:
        """Logits of each scale, plain and mirrored."""
        views = []
        for scale in self.scales:
            x = preprocess.prepare(pixels, self.recipe, scale)
            inputs = torch.cat([x, x.flip(3)]) if self.flip else x
            size = tuple(x.shape[2:])
            slices = self._windows(size)
            logits = self._network(inputs) if slices is None else self._slide(inputs, *slices)
            align_corners = self.model.config.align_corners
            views += [resample.View(one, size, align_corners, slices, mirrored=i > 0) for i, one in enumerate(logits)]
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

    def _slide(self, x: Tensor, rows: list[slice], columns: list[slice]) -> Tensor:
        """Logits of overlapping windows, side by side: (N, num_classes, len(rows) * h, len(columns) * w)."""
        places = [(i, r, c) for i in range(len(x)) for r in range(len(rows)) for c in range(len(columns))]
        total = None
        for start in range(0, len(places), self.batch_size):
            batch = places[start : start + self.batch_size]
            logits = self._network(torch.stack([x[i, :, rows[r], columns[c]] for i, r, c in batch]))
            if total is None:
                count, height, width = logits.shape[1:]
                total = logits.new_empty(len(x), count, len(rows), height, len(columns), width)
            for (i, r, c), one in zip(batch, logits):
                total[i, :, r, :, c] = one
        return total.flatten(4, 5).flatten(2, 3)


def _ready(model: Any, device: torch.device | str | None, optimize: bool | None, amp: bool) -> UPerNet | FusedUPerNet:
    """The network that runs: found by name, brought to its device, and fused where that is asked for or wins."""
    if isinstance(model, str):
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if device.type == "cpu" and optimize is not False and not amp:
            return optimized.load(model)
        model = create_model(model)
    elif isinstance(getattr(model, "_orig_mod", None), (UPerNet, FusedUPerNet)):
        raise ArgumentError(
            "Segmenter: found what torch.compile returned, which it would not use, as it runs backbone and head on their own. Pass the "
            "UPerNet itself; to compile its parts in place: model.backbone.compile(), model.decode_head.compile()."
        )
    elif not isinstance(model, (UPerNet, FusedUPerNet)):
        raise ArgumentError(f"Segmenter: expected a UPerNet or a model's name, found {type(model).__name__}.")
    if device is not None:
        if torch.device(device).type == "meta":
            raise ArgumentError("Segmenter: device 'meta' holds no weights and computes nothing. Try 'cpu'.")
        model = model.to(device)
    if isinstance(model, FusedUPerNet):
        if optimize is False or amp:
            raise ArgumentError("Segmenter: optimize=False and amp=True go with a plain UPerNet, and this one is fused.")
        return model
    weight = model.decode_head.classifier.weight
    wins = weight.device.type == "cpu" and weight.dtype == torch.float32 and not amp
    return optimize_for_inference(model) if optimize or (optimize is None and wins) else model.eval()


def network_bytes(model: UPerNet | FusedUPerNet, pixels: int) -> int:
    """Memory that a network takes at its peak for so many pixels of input, as measured with `resource` on the CPU, logits left out."""
    config = model.config
    features = sum(channels / 4**i for i, channels in enumerate(config.feature_channels)) / 16
    if isinstance(model, FusedUPerNet):
        # input and features, and five maps at stride 8; what works in bands is the same for every size
        values = pixels * (config.in_channels + features + 5 * config.channels / 64) + 2**16 * config.channels
        if isinstance(model.decode_head.fpn_bottleneck, DirectConv):  # torch's own convolution takes whole maps
            values += pixels * 4 * config.channels / 16
    else:
        # at stride 4: the features; their maps, these resized, all of them concatenated and once more in the convolution's own layout
        head = features + 14 * config.channels / 16
        stem = 3 * config.stem_channels / 4  # at stride 2: a map, the next, and one in the convolution's own layout
        values = pixels * max(head, stem)
    return round(values * model.decode_head.classifier.weight.element_size())


def windows(size: int, crop: int, stride: int) -> list[slice]:
    """Windows along one axis: ceil((size - crop) / stride) + 1 of them, the last pushed back inside; one whole if size <= crop."""
    count = max(math.ceil((size - crop) / stride), 0) + 1
    ends = [min(i * stride + crop, size) for i in range(count)]
    return [slice(max(end - crop, 0), end) for end in ends]


def _override(recipe: Recipe, mode: str | None, crop: Any, stride: Any) -> Recipe:
    mode = recipe.mode if mode is None else mode
    if mode == "whole":
        if crop is not None or stride is not None:
            raise ArgumentError("Segmenter: crop and stride belong to slide mode; pass mode='slide' with them.")
    else:
        crop, stride = recipe.crop if crop is None else crop, recipe.stride if stride is None else stride
    try:
        return dataclasses.replace(recipe, mode=mode, crop=crop, stride=stride)
    except ConfigError as error:
        raise ArgumentError(f"Segmenter: {error}") from None
