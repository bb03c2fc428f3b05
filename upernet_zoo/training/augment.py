"""The original training's augmentations (mmsegmentation 0.30, `datasets/pipelines/transforms.py`) with torchvision's transforms.

Everything random comes from a generator that is passed in, so that a crop can be made again from its seed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ..images.preprocess import target_size

if TYPE_CHECKING:
    from ..config import Recipe

__all__ = ["MAX_SHARE", "RATIOS", "augment", "distort"]

RATIOS = (0.5, 2.0)  # of the recipe's scale
MAX_SHARE = 0.75  # of one class in a crop; after so many tries any crop will do:
_TRIES = 10
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = 32, (0.5, 1.5), (0.5, 1.5), 0.1  # hue in turns; the original's 18 of OpenCV's 180


def augment(
    image: np.ndarray, target: np.ndarray, rng: np.random.Generator, recipe: Recipe, crop: tuple[int, int], ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Scale, crop, flip, distort, normalize and pad a labeled picture.

    Args:
        image: (H, W, 3) uint8 RGB.
        target: (H, W) int64 train ids.
        rng: where all that is random comes from.
        recipe: how the picture is resized, with its scale times 0.5 to 2; mean and std.
        crop: (height, width) in pixels; a smaller picture is padded to the right and below, with the mean color.
        ignore_index: label of the padding.

    Returns:
        Normalized picture (3, *crop) float32 and its labels (*crop) int64.
    """
    with torch.device("cpu"):  # whatever torch's default is set to, which torchvision follows
        x = tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1))
        labels = tv_tensors.Mask(torch.from_numpy(target))
        ratio = rng.uniform(*RATIOS)
        size = target_size(image.shape[:2], recipe, ratio)
        x = F.resize(x, list(size), InterpolationMode.BILINEAR, antialias=False)  # as at inference
        labels = F.resize(labels, list(size), InterpolationMode.NEAREST)
        box = _choose_crop(labels, rng, crop, ignore_index)
        x, labels = F.crop(x, *box), F.crop(labels, *box)
        if rng.random() < 0.5:
            x, labels = F.horizontal_flip(x), F.horizontal_flip(labels)
        x = distort(x, rng)
        mean, std = (torch.tensor(v, dtype=torch.float32)[:, None, None] for v in (recipe.mean, recipe.std))
        x = (x.as_subclass(Tensor).float() - mean) / std
        padding = [0, 0, crop[1] - x.shape[2], crop[0] - x.shape[1]]
        return F.pad(x, padding, fill=0.0), F.pad(labels, padding, fill=ignore_index).as_subclass(Tensor)


def _choose_crop(labels: Tensor, rng: np.random.Generator, crop: tuple[int, int], ignore_index: int) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a crop with at most `MAX_SHARE` of one class, if one of ten is such."""
    (height, width), (full_height, full_width) = (tuple(map(min, crop, labels.shape)), labels.shape)
    for _ in range(_TRIES):
        top, left = int(rng.integers(full_height - height + 1)), int(rng.integers(full_width - width + 1))
        inside = labels[top : top + height, left : left + width].as_subclass(Tensor).reshape(-1)
        counts = torch.bincount(inside[inside != ignore_index])
        if counts.numel() and counts.max() < MAX_SHARE * counts.sum():
            break
    return top, left, height, width


def distort(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Photometric distortion (Liu et al. 2016, "SSD"): brightness, contrast, saturation and hue, each in half of all pictures.

    As in the original, but for saturation: torchvision mixes with the gray picture, the original scales the S of HSV.

    Args:
        image: (3, H, W) uint8 RGB.

    Returns:
        The same shape and dtype.
    """
    brightness, contrast, saturation, hue, contrast_last = (bool(v) for v in rng.random(5) < 0.5)
    if brightness:
        image = _linear(image, 1.0, rng.uniform(-_BRIGHTNESS, _BRIGHTNESS))
    factor = rng.uniform(*_CONTRAST)
    if contrast and not contrast_last:
        image = _linear(image, factor, 0.0)
    if saturation:
        image = F.adjust_saturation(image, rng.uniform(*_SATURATION))
    if hue:
        image = F.adjust_hue(image, rng.uniform(-_HUE, _HUE))
    if contrast and contrast_last:
        image = _linear(image, factor, 0.0)
    return image


def _linear(image: Tensor, factor: float, offset: float) -> Tensor:
    return (image.float() * factor + offset).clamp(0, 255).to(torch.uint8)
