"""From a picture to the network's input, value for value as the published evaluation did it (mmcv 1.x on OpenCV), without either."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from PIL import Image, UnidentifiedImageError

from .. import memory
from ..errors import ArgumentError, ImageError, MissingFileError, NotEnoughMemoryError
from ..files import expanded
from ..wording import worded
from . import reading

if TYPE_CHECKING:
    import torch

    from ..config import Recipe

__all__ = ["fit", "load_image", "normalize", "padded_size", "prepare", "prepare_array", "resize_uint8", "target_size", "windows"]

_CHANNELS = (1, 3, 4)  # gray, RGB, RGBA

# Values per block of rows of `resize_uint8`, so that its temporaries stay in the cache; of 2**14 to 2**17 this measured best.
_BLOCK = 1 << 16


def load_image(source: str | os.PathLike[str] | Image.Image | np.ndarray | torch.Tensor) -> np.ndarray:
    """A picture as a (H, W, 3) uint8 RGB array.

    Files and PIL images are turned upright by their EXIF orientation; gray, palette and CMYK become RGB, 16 bits become 8 (the
    high byte), alpha is dropped, of several frames the first is taken: as OpenCV's `imread` does, which the published evaluation used.

    Args:
        source: path of a PNG, JPEG, WebP, TIFF, BMP, GIF, PPM or PGM file; a PIL image; a uint8 array (H, W, 3) RGB, (H, W, 4) RGBA,
            (H, W) or (H, W, 1) gray; or a uint8 tensor, either of such a shape or channels first, (1 | 3 | 4, H, W), as torchvision
            decodes.

    Returns:
        (H, W, 3) uint8 RGB, contiguous. It shares memory with a `source` that is such an array already.

    Raises:
        MissingFileError: no such file.
        ImageError: not a picture, empty, cut off, too large for Pillow's guard against decompression bombs, a URL, several pictures, or
            an array of another shape or dtype; the message has the line that converts it.
        NotEnoughMemoryError: the picture is too large for the memory that there is.

    Examples:
        >>> from upernet_zoo.images import preprocess
        >>> preprocess.load_image("street.jpg").shape
        (256, 512, 3)
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, "Image array")
    if _is_tensor(source):
        return _from_tensor(source)
    if isinstance(source, Image.Image):
        return _from_pil(source, reading.upright, getattr(source, "filename", "") or "Image")
    if not isinstance(source, (str, os.PathLike)):
        raise _no_picture(source)
    if reading.is_url(source):
        raise ImageError(f"{os.fspath(source)[:200]} is a URL, and pictures are read from files. Download it, and give the file's path.")
    path = expanded(source)
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a device or a pipe"
        raise ImageError(f"{path}: cannot be opened as a picture: it is {kind}. Give the path of one readable file.")
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise MissingFileError(f"No picture at {path} (looked from {Path.cwd()}). Check the path.") from None
    except (OSError, ValueError) as error:  # no permission, a path that cannot be
        raise ImageError(f"{path}: cannot be opened as a picture: {error}. Give the path of one readable file.") from None
    with file:
        try:
            return _from_pil(file, reading.read, path)
        except UnidentifiedImageError:
            raise ImageError(f"{path}: {reading.why_unread(file)}. Get the file again, or convert it to PNG or JPEG.") from None


def _is_tensor(source: Any) -> TypeGuard[torch.Tensor]:
    """Whether it is a tensor, without importing torch: where there is one, torch is there too."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.Tensor)


def _no_picture(source: Any) -> ImageError:
    if isinstance(source, (bytes, bytearray, memoryview)):
        hint = "For the content of a file: PIL.Image.open(io.BytesIO(data))"
    elif isinstance(source, Iterable):
        hint = "For several pictures: a call for each, or Segmenter.map(pictures), which takes any number"
    else:
        hint = "Give a path, a PIL image, or a uint8 array or tensor of (H, W, 3) RGB"
    return ImageError(f"Cannot take a picture from {type(source).__name__}. {hint}.")


def _damaged(owner: Any, error: Exception) -> ImageError:
    return ImageError(f"{owner}: the picture is damaged or cut off ({error}). Get the file again.")


def _from_pil(source: Any, decode: Callable[[Any], Image.Image], owner: Any) -> np.ndarray:
    """What `decode` makes of a source, as an array; `owner` names it in errors."""
    try:
        with memory.refused(str(owner)):
            image = decode(source)
            if "transparency" in image.info:  # of a palette: dropped like any alpha, without Pillow's warning
                image = image.copy()
                del image.info["transparency"]
            if image.mode in ("RGBa", "La", "PA"):  # Pillow converts these to one mode only
                image = image.convert("LA" if image.mode == "La" else "RGBA")
            if image.mode != "F" and not image.mode.startswith("I"):
                return _from_array(np.array(image if image.mode == "RGB" else image.convert("RGB")), owner)
    except NotEnoughMemoryError as error:
        raise NotEnoughMemoryError((str(error) if str(owner) in str(error) else f"{owner}: {error}") + _in_tiles(owner)) from None
    except (ImageError, UnidentifiedImageError):
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{owner}: {error} If you trust the picture, raise PIL.Image.MAX_IMAGE_PIXELS.{_in_tiles(owner)}") from None
    except Exception as error:  # on damaged data Pillow's readers raise OSError, SyntaxError, ValueError, EOFError, struct.error, ...
        raise _damaged(owner, error) from None
    if image.mode == "F":
        raise ImageError(f"{owner}: floating-point pixels have no fixed range. Scale them to 8 bits: {_scaling(np.asarray(image))}.")
    return _from_array(_high_byte(image, owner), owner)


def _in_tiles(owner: Any) -> str:
    """The way to segment a TIFF that is too large to be read at once."""
    if not str(owner).lower().endswith((".tif", ".tiff")):
        return ""
    return f" In tiles it is segmented by {worded('upernet_zoo.segment_raster', 'upernet-zoo predict --tile 1024')}."


def _high_byte(image: Image.Image, owner: Any) -> np.ndarray:
    """Gray with 16 bits per pixel -> (H, W) uint8."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(f"{owner}: 32-bit gray with values outside 0 to 65535. Scale it to 8 or 16 bits.")
    if image.mode == "I" and values.max() <= 255:  # 8-bit values in a 32-bit array
        return values.astype(np.uint8)
    return (values >> 8).astype(np.uint8)


def _from_tensor(tensor: torch.Tensor) -> np.ndarray:
    values = tensor.detach().cpu()
    array: np.ndarray = (values.float() if values.is_floating_point() else values).numpy()  # NumPy has no bfloat16
    if array.ndim == 3 and len(array) in _CHANNELS:
        array = array.transpose(1, 2, 0)
    return _from_array(array, "Image tensor", tensor.dtype)


def _from_array(array: np.ndarray, owner: Any, dtype: torch.dtype | None = None) -> np.ndarray:
    """An array of one of the shapes that `load_image` takes as (H, W, 3) RGB; `dtype` is that of the tensor that it was."""
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in _CHANNELS or 0 in array.shape:
        raise ImageError(f"{owner}: expected one picture of (H, W, 3), (H, W, 4) or (H, W), found {_shape_text(array)}.")
    if array.dtype != np.uint8:
        raise ImageError(
            f"{owner}: pixels must be uint8 from 0 to 255, found {dtype or array.dtype} of {array.shape[2]} channels with values from "
            f"{array.min():g} to {array.max():g}. Convert them first: {_scaling(array, dtype is not None)}."
        )
    if array.shape[2] == 1:
        array = array.repeat(3, axis=2)
    return np.ascontiguousarray(array[..., :3])


def _shape_text(array: np.ndarray) -> str:
    """A shape that is no picture's, and the way out."""
    found = f"shape {array.shape}"
    if 0 in array.shape or array.ndim not in (3, 4):
        return found
    if array.ndim == 4:
        return f"{found}: {len(array)} pictures. Pass one at a time, or all to Segmenter.map"
    if array.shape[0] in _CHANNELS:
        return f"{found}: channels first. Pass array.transpose(1, 2, 0)"
    channels = min(array.shape[0], array.shape[2])
    three = "array[..., [R, G, B]]" if channels == array.shape[2] else "array[[R, G, B]].transpose(1, 2, 0)"
    return f"{found}: {channels} channels. Pass the three that are red, green and blue: {three}"


def _scaling(array: np.ndarray, tensor: bool = False) -> str:
    """The line that makes uint8 of other pixels, by the range of their values."""
    x, cast = ("tensor", "to(torch.uint8)") if tensor else ("array", "astype(np.uint8)")
    low, high = array.min(), array.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        return "they hold NaN or infinity, so see where these come from"
    if array.dtype == bool:
        return f"{x}.{cast} * 255"
    if array.dtype.kind in "ui":
        return f"{x}.{cast}" if low >= 0 and high <= 255 else f"({x} >> 8).{cast} for values of 16 bits"
    if low >= 0 and high <= 1:
        return f"({x} * 255).round().{cast}"
    if low >= 0 and high <= 255:
        return f"{x}.round().{cast}"
    return f"they look normalized, so undo that: ({x} * std + mean).clip(0, 255).round().{cast}"


def fit(size: tuple[int, int], scale: tuple[float, float]) -> tuple[int, int]:
    """Size of a picture that is made to fit in a scale, keeping its ratio (mmcv 1.x `rescale_size`).

    Args:
        size: (height, width) of the picture in pixels.
        scale: (long, short) side in pixels to fit in, in any order; mmcv computes with fractions of pixels too.

    Returns:
        (height, width) in pixels, each at least 1.

    Examples:
        >>> from upernet_zoo.images import preprocess
        >>> preprocess.fit((480, 640), (2048, 512))
        (512, 683)
    """
    factor = min(max(scale) / max(size), min(scale) / min(size))
    height, width = (max(1, int(side * factor + 0.5)) for side in size)
    return height, width


def target_size(size: tuple[int, int], recipe: Recipe, ratio: float = 1.0) -> tuple[int, int]:
    """Size that a recipe resizes a picture to, before padding.

    Args:
        size: (height, width) of the picture in pixels.
        recipe: the model's.
        ratio: of a multi-scale view: the scale is (int(long * ratio), int(short * ratio)), as 0.x has it; where pictures keep their own
            size it is that times the ratio, rounded, as 1.x has it.

    Returns:
        (height, width) in pixels, each at least 1.

    Raises:
        ArgumentError: a ratio that leaves no pixel.

    Examples:
        >>> import upernet_zoo as uz
        >>> from upernet_zoo.images import preprocess
        >>> preprocess.target_size((480, 640), uz.model_info("upernet_r50_512x512_160k_ade20k").recipe, ratio=0.5)
        (256, 341)
    """
    height, width = size
    sides = [side * ratio for side in recipe.scale] if recipe.scale is not None else [width * ratio + 0.5, height * ratio + 0.5]
    if not all(1 <= side < 1 << 31 for side in sides):
        raise ArgumentError(f"Ratio {ratio!r} leaves no usable size of the scale {recipe.scale or size}. Usual ratios are 0.5 to 1.75.")
    scale = (int(sides[0]), int(sides[1]))
    if not recipe.keep_ratio:
        return scale[1], scale[0]
    if recipe.short_edge:
        return fit(size, _shortest_edge(size, scale))
    if recipe.min_size is not None:
        short = max(min(scale), recipe.min_size)
        return fit(size, (short, short * max(size) / min(size)))
    return fit(size, scale)


def _shortest_edge(size: tuple[int, int], scale: tuple[int, int]) -> tuple[int, int]:
    """As mmsegmentation 1.x's `ResizeShortestEdge._get_output_shape`: (height, width), which is then fitted into once more."""
    long, short = scale
    factor = short / min(size)
    height, width = (float(short), factor * size[1]) if size[0] < size[1] else (factor * size[0], float(short))
    if max(height, width) > long:
        factor = long / max(height, width)
        height, width = height * factor, width * factor
    return int(height + 0.5), int(width + 0.5)


def prepare(image: np.ndarray, recipe: Recipe, ratio: float = 1.0) -> torch.Tensor:
    """The network's input for a picture: resized as the recipe says, minus its mean, over its std, padded with zeros.

    Args:
        image: (H, W, C) uint8, RGB for a model of three channels; see `load_image`.
        recipe: the model's; C is the length of its mean.
        ratio: of a multi-scale view; see `target_size`.

    Returns:
        (1, C, h, w) float32 on the CPU, equal in every bit to mmcv's `imresize` and `imnormalize`.

    Raises:
        ArgumentError: an image of another shape or dtype, or a ratio that leaves no pixel.

    Examples:
        >>> import upernet_zoo as uz
        >>> from upernet_zoo.images import preprocess
        >>> recipe = uz.model_info("upernet_r50_512x512_160k_ade20k").recipe
        >>> preprocess.prepare(preprocess.load_image("street.jpg"), recipe).shape
        torch.Size([1, 3, 512, 1024])
    """
    import torch

    return torch.from_numpy(prepare_array(image, recipe, ratio))


def prepare_array(image: np.ndarray, recipe: Recipe, ratio: float = 1.0) -> np.ndarray:
    """`prepare` without torch: the same arguments, and the same values as an array.

    Examples:
        >>> import upernet_zoo as uz
        >>> from upernet_zoo.images import preprocess
        >>> recipe = uz.model_info("upernet_r50_512x512_160k_ade20k").recipe
        >>> preprocess.prepare_array(preprocess.load_image("street.jpg"), recipe).shape
        (1, 3, 512, 1024)
    """
    channels = len(recipe.mean)
    if getattr(image, "dtype", None) != np.uint8 or image.ndim != 3 or image.shape[2] != channels:
        found = f"{image.dtype} {tuple(image.shape)}" if hasattr(image, "shape") else type(image).__name__
        raise ArgumentError(f"prepare takes a uint8 array of (H, W, {channels}), found {found}. load_image makes one of any picture.")
    size = target_size(image.shape[:2], recipe, ratio)
    return normalize(resize_uint8(image, size), recipe, padded_size(size, recipe))[None]


def normalize(image: np.ndarray, recipe: Recipe, size: tuple[int, int]) -> np.ndarray:
    """Pixels minus the recipe's mean, over its std, with zeros to the right and below: (C, *size) float32.

    Args:
        image: (H, W, C) uint8; C is the length of the recipe's mean.
        recipe: the model's.
        size: (height, width) of the result in pixels, no side less than the image's.

    Examples:
        >>> import numpy as np
        >>> import upernet_zoo as uz
        >>> from upernet_zoo.images import preprocess
        >>> recipe = uz.Recipe(scale=(64, 64), mean=(100, 100, 100), std=(50, 50, 50))
        >>> preprocess.normalize(np.full((1, 1, 3), 150, np.uint8), recipe, (1, 2))[0]
        array([[1., 0.]], dtype=float32)
    """
    height, width, channels = image.shape
    out = np.zeros((channels, *size), np.float32)
    for channel, (mean, std) in enumerate(zip(np.asarray(recipe.mean, np.float32), np.asarray(recipe.std, np.float32).astype(np.float64))):
        plane = out[channel, :height, :width]
        np.subtract(image[..., channel], mean, out=plane, dtype=np.float32)
        # cv2.subtract works in float32, cv2.multiply by a scalar in float64
        np.multiply(plane, 1 / std, out=plane, dtype=np.float64, casting="same_kind")
    return out


def padded_size(size: tuple[int, int], recipe: Recipe) -> tuple[int, int]:
    """(height, width) with the recipe's padding, to the right and below, of a resized picture of `size` (height, width).

    Examples:
        >>> import upernet_zoo as uz
        >>> from upernet_zoo.images import preprocess
        >>> preprocess.padded_size((510, 683), uz.Recipe(scale=(2048, 512), size_divisor=32))
        (512, 704)
    """
    height, width = (-(-side // recipe.size_divisor) * recipe.size_divisor for side in size)
    return height, width


def windows(size: int, crop: int, stride: int) -> list[slice]:
    """Windows along one axis: ceil((size - crop) / stride) + 1 of them, the last pushed back inside; one whole if size <= crop.

    Examples:
        >>> from upernet_zoo.images import preprocess
        >>> preprocess.windows(1024, 512, 341)
        [slice(0, 512, None), slice(341, 853, None), slice(512, 1024, None)]
    """
    count = max(math.ceil((size - crop) / stride), 0) + 1
    ends = [min(i * stride + crop, size) for i in range(count)]
    return [slice(max(end - crop, 0), end) for end in ends]


def resize_uint8(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear resize on 8-bit values, equal in every value to OpenCV's `resize` with INTER_LINEAR (`imgproc/src/resize.cpp`).

    OpenCV's way: weights in 11-bit fixed point; along x into int32, of which 4 bits are dropped; along y with 16 bits dropped from
    each product. (Its special case for an exact 2:1 reduction, `(a + b + c + d + 2) >> 2`, is what this gives at weights of one half.)

    Args:
        image: (H, W) or (H, W, C) uint8.
        size: (height, width) of the result in pixels.

    Returns:
        (height, width) or (height, width, C) uint8, never sharing memory with `image`.

    Raises:
        ArgumentError: another dtype or shape, an image without pixels, or a size below 1.

    Examples:
        >>> import numpy as np
        >>> from upernet_zoo.images import preprocess
        >>> preprocess.resize_uint8(np.array([[0, 100]], np.uint8), (1, 4))
        array([[  0,  25,  75, 100]], dtype=uint8)
    """
    height, width = size
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or 0 in image.shape:
        raise ArgumentError(f"resize_uint8 takes uint8 (H, W) or (H, W, C), found {image.dtype} {image.shape}.")
    if height < 1 or width < 1:
        raise ArgumentError(f"resize_uint8: the size must be at least 1 x 1, found {tuple(size)}.")
    if image.shape[:2] == (height, width):
        return image.copy()
    source = image.reshape(image.shape[0], -1)
    channels = source.shape[1] // image.shape[1]
    row, row_weight = _taps(image.shape[0], height, zero_outside=False)
    column, column_weight = _taps(image.shape[1], width, zero_outside=True)
    column = (column[..., None] * channels + np.arange(channels)).reshape(2, -1)
    column_weight = column_weight.repeat(channels, axis=1)
    needed, position = np.unique(row, return_inverse=True)
    if len(needed) < len(source):
        source = source[needed]
    upper, lower = position.reshape(row.shape)  # rows of `source`, neither ever going back
    values = width * channels
    out = np.empty((height, values), np.uint8)
    step = max(1, min(height, _BLOCK // values))
    # memory for one block, used again for each: to allocate it takes longer than to fill it
    taken = np.empty((2 * step, values), np.uint8)
    buffers = [np.empty((2 * step, values), np.int32) for _ in range(4)]
    for top in range(0, height, step):
        block = slice(top, min(top + step, height))
        first, last = upper[top], lower[block.stop - 1] + 1
        left, right = (buffer[: last - first] for buffer in buffers[:2])
        for tap, weight, part in zip(column, column_weight, (left, right)):
            part[:] = source[first:last].take(tap, axis=1, out=taken[: last - first], mode="clip")  # "clip": straight into `out`
            part *= weight
        left += right
        left >>= 4
        above, below = (buffer[: block.stop - top] for buffer in buffers[2:])
        for tap, weight, part in zip((upper, lower), row_weight, (above, below)):
            left.take(tap[block] - first, axis=0, out=part, mode="clip")
            part *= weight[block, None]
            part >>= 16
        above += below
        above += 2
        above >>= 2
        out[block] = above
    return out.reshape(height, width, *image.shape[2:])


def _taps(source: int, target: int, zero_outside: bool) -> tuple[np.ndarray, np.ndarray]:
    """For each target position the two source positions, (2, target) int64, and their weights times 2048, (2, target) int32.

    OpenCV sets the fraction outside the picture to zero along x (`zero_outside`) but keeps it along y; both clip the positions.
    """
    coordinate = ((np.arange(target) + 0.5) * (1.0 / (target / source)) - 0.5).astype(np.float32)
    first = np.floor(coordinate).astype(np.int64)
    fraction = coordinate - first.astype(np.float32)
    if zero_outside:
        fraction[(first < 0) | (first >= source - 1)] = 0
    weights = np.rint(np.stack([np.float32(1) - fraction, fraction]) * np.float32(2048)).astype(np.int32)
    return np.clip(np.stack([first, first + 1]), 0, source - 1), weights
