"""From a picture to the network's input, value for value as the published evaluation did it (mmcv 1.x on OpenCV), without either."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import ArgumentError, ImageError, MissingFileError

if TYPE_CHECKING:
    from .config import Recipe

# Values per block of rows of `resize_uint8`, so that its temporaries stay in the cache; of 2**14 to 2**17 this measured best.
_BLOCK = 1 << 16


def load_image(source: str | os.PathLike | Image.Image | np.ndarray | torch.Tensor) -> np.ndarray:
    """A picture as a (H, W, 3) uint8 RGB array.

    Files and PIL images are turned upright by their EXIF orientation; grey, palette and CMYK become RGB, 16 bits become 8 (the
    high byte), alpha is dropped, of several frames the first is taken: as OpenCV's `imread` does, which the published evaluation used.

    Args:
        source: path of a file that Pillow reads; a PIL image; a uint8 array (H, W, 3) RGB, (H, W, 4) RGBA, (H, W) or (H, W, 1) grey;
            or a uint8 tensor, either of such a shape or channels first, (1 | 3 | 4, H, W), as torchvision decodes.

    Returns:
        (H, W, 3) uint8 RGB, contiguous. It shares memory with a `source` that is such an array already.

    Raises:
        MissingFileError: no such file.
        ImageError: not a picture, empty, cut off, too large for Pillow's guard against decompression bombs, or an array of another
            shape or dtype.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, "Image array")
    if isinstance(source, torch.Tensor):
        if source.dtype != torch.uint8:
            raise _not_uint8("Image tensor", source.dtype)
        array = source.detach().cpu().numpy()
        return _from_array(array.transpose(1, 2, 0) if array.ndim == 3 and len(array) in (1, 3, 4) else array, "Image tensor")
    if isinstance(source, Image.Image):
        return _from_pil(source, getattr(source, "filename", "") or "Image")
    if not isinstance(source, (str, os.PathLike)):
        raise ImageError(
            f"Cannot take a picture from {type(source).__name__}; give a path, a PIL image, or a uint8 array or tensor of (H, W, 3) RGB."
        )
    path = Path(source).expanduser()
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise MissingFileError(f"No picture at {path} (looked from {Path.cwd()}). Check the path.") from None
    except (OSError, ValueError) as error:  # a folder, no permission, a path that cannot be
        raise ImageError(f"{path}: cannot be opened as a picture: {error}. Give the path of one readable file.") from None
    with file:
        try:
            image = Image.open(file)
        except UnidentifiedImageError:
            cause = "not a picture in a format that Pillow reads" if file.seek(0, os.SEEK_END) else "the file is empty"
            raise ImageError(f"{path}: {cause}. Get the file again, or convert it to PNG or JPEG.") from None
        except Image.DecompressionBombError as error:
            raise _bomb(path, error) from None
        except Exception as error:
            raise _damaged(path, error) from None
        return _from_pil(image, path)


def _not_uint8(owner: Any, dtype: Any) -> ImageError:
    return ImageError(f"{owner}: pixels must be uint8 from 0 to 255, found {dtype}. Scale and convert them first.")


def _damaged(owner: Any, error: Exception) -> ImageError:
    return ImageError(f"{owner}: the picture is damaged or cut off ({error}). Get the file again.")


def _bomb(owner: Any, error: Exception) -> ImageError:
    return ImageError(f"{owner}: {error} If you trust the picture, raise PIL.Image.MAX_IMAGE_PIXELS.")


def _from_pil(image: Image.Image, owner: Any) -> np.ndarray:
    try:
        image.load()
        image = ImageOps.exif_transpose(image)  # always a copy
        image.info.pop("transparency", None)  # of a palette: dropped like any alpha, without Pillow's warning
        if image.mode in ("RGBa", "La", "PA"):  # Pillow converts these to one mode only
            image = image.convert("LA" if image.mode == "La" else "RGBA")
        if image.mode != "F" and not image.mode.startswith("I"):
            return _from_array(np.array(image.convert("RGB")), owner)
    except Image.DecompressionBombError as error:
        raise _bomb(owner, error) from None
    except Exception as error:  # on damaged data Pillow's readers raise OSError, SyntaxError, ValueError, EOFError, struct.error, ...
        raise _damaged(owner, error) from None
    if image.mode == "F":
        raise ImageError(f"{owner}: floating-point pixels have no fixed range. Scale them to 8 bits.")
    return _from_array(_high_byte(image, owner), owner)


def _high_byte(image: Image.Image, owner: Any) -> np.ndarray:
    """Grey with 16 bits per pixel -> (H, W) uint8."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(f"{owner}: 32-bit grey with values outside 0 to 65535. Scale it to 8 or 16 bits.")
    if image.mode == "I" and values.max() <= 255:  # 8-bit values in a 32-bit array
        return values.astype(np.uint8)
    return (values >> 8).astype(np.uint8)


def _from_array(array: np.ndarray, owner: Any) -> np.ndarray:
    if array.dtype != np.uint8:
        raise _not_uint8(owner, array.dtype)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise ImageError(f"{owner}: expected one picture of (H, W, 3), (H, W, 4) or (H, W), found shape {array.shape}.")
    if array.shape[2] == 1:
        array = array.repeat(3, axis=2)
    return np.ascontiguousarray(array[..., :3])


def fit(size: tuple[int, int], scale: tuple[int, int]) -> tuple[int, int]:
    """Size of a picture that is made to fit in a scale, keeping its ratio (mmcv 1.x `rescale_size`).

    Args:
        size: (height, width) of the picture in pixels.
        scale: (long, short) side in pixels to fit in, in any order.

    Returns:
        (height, width) in pixels, each at least 1.
    """
    factor = min(max(scale) / max(size), min(scale) / min(size))
    height, width = (max(1, int(side * factor + 0.5)) for side in size)
    return height, width


def prepare(image: np.ndarray, recipe: Recipe, ratio: float = 1.0) -> torch.Tensor:
    """The network's input for a picture: resized to the recipe's scale, minus its mean, over its std.

    Args:
        image: (H, W, C) uint8, RGB for a model of three channels; see `load_image`.
        recipe: the model's; C is the length of its mean.
        ratio: of a multi-scale view: the scale to fit in is (int(long * ratio), int(short * ratio)).

    Returns:
        (1, C, h, w) float32 on the CPU, equal in every bit to mmcv's `imresize` and `imnormalize`.

    Raises:
        ArgumentError: an image of another shape or dtype, or a ratio that leaves no pixel.
    """
    channels = len(recipe.mean)
    if getattr(image, "dtype", None) != np.uint8 or image.ndim != 3 or image.shape[2] != channels:
        found = f"{image.dtype} {tuple(image.shape)}" if hasattr(image, "shape") else type(image).__name__
        raise ArgumentError(f"prepare takes a uint8 array of (H, W, {channels}), found {found}. load_image makes one of any picture.")
    if not 1 <= min(recipe.scale) * ratio < 1 << 31:
        raise ArgumentError(f"Ratio {ratio!r} leaves no usable size of the scale {recipe.scale}. Usual ratios are 0.5 to 1.75.")
    long, short = (int(side * ratio) for side in recipe.scale)
    resized = resize_uint8(image, fit(image.shape[:2], (long, short)))
    out = np.empty((1, channels, *resized.shape[:2]), np.float32)
    for channel, (mean, std) in enumerate(zip(np.float32(recipe.mean), np.float64(np.float32(recipe.std)))):
        plane = out[0, channel]
        np.subtract(resized[..., channel], mean, out=plane, dtype=np.float32)
        # cv2.subtract works in float32, cv2.multiply by a scalar in float64
        np.multiply(plane, 1 / std, out=plane, dtype=np.float64, casting="same_kind")
    return torch.from_numpy(out)


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
