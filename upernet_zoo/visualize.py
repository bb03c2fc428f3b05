"""Label maps as pictures: overlays, legends and indexed PNGs (Pillow only)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image


def colourise(labels: np.ndarray, palette: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """(H, W) labels -> (H, W, 3) uint8 RGB; labels without a colour (ignored pixels) are black."""
    table = np.zeros((max(len(palette), int(labels.max(initial=0)) + 1), 3), np.uint8)
    table[: len(palette)] = palette
    return table[labels]


def blend(image: np.ndarray, labels: np.ndarray, palette: Sequence[tuple[int, int, int]], alpha: float) -> np.ndarray:
    """`image` (H, W, 3) uint8 under the labels' colours with opacity `alpha` (0..1); ignored pixels stay as they are."""
    colours = colourise(labels, palette).astype(np.float32)
    mixed = np.rint(image * (1 - alpha) + colours * alpha).astype(np.uint8)
    ignored = labels >= len(palette)
    mixed[ignored] = image[ignored]
    return mixed


def legend(entries: Sequence[tuple[str, tuple[int, int, int]]], width: int) -> Image.Image:
    """A picture of `width` pixels with a swatch and a text for each entry, in as many columns as fit."""
    from PIL import Image, ImageDraw, ImageFont

    size = max(11, min(24, width // 50))
    font = ImageFont.load_default(size)
    line, swatch, gap = round(size * 1.6), round(size * 1.1), round(size * 0.6)
    longest = max((font.getlength(text) for text, _ in entries), default=0)
    cell = swatch + 2 * gap + round(longest) + gap
    columns = max(1, min(len(entries), width // cell))
    rows = -(-len(entries) // columns)
    picture = Image.new("RGB", (width, rows * line + gap if entries else 0), "white")
    draw = ImageDraw.Draw(picture)
    for i, (text, colour) in enumerate(entries):
        x, y = gap + (i % columns) * (width // columns), gap // 2 + (i // columns) * line
        draw.rectangle((x, y + (line - swatch) // 2, x + swatch, y + (line + swatch) // 2), fill=tuple(colour), outline="black")
        draw.text((x + swatch + gap, y + line / 2), text, fill="black", font=font, anchor="lm")
    return picture


def stack(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of equal width, one under the other."""
    from PIL import Image

    whole = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), "white")
    y = 0
    for picture in pictures:
        whole.paste(picture, (0, y))
        y += picture.height
    return whole
