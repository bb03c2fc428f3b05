"""Label maps as pictures, with Pillow: overlays, legends, panels. Scores as a bar plot, with matplotlib."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..tables import name_list
from . import fonts

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["beside", "blend", "colorize", "legend", "stack"]

_PIXELS = 1 << 20  # that are mixed at once, which takes 60 bytes of each


def colorize(labels: np.ndarray, palette: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """(H, W) labels -> (H, W, 3) uint8 RGB; labels without a color (ignored pixels) are black.

    Examples:
        >>> import numpy as np
        >>> from upernet_zoo.images import visualize
        >>> visualize.colorize(np.array([[0, 1, 255]]), [(128, 64, 128), (244, 35, 232)]).tolist()
        [[[128, 64, 128], [244, 35, 232], [0, 0, 0]]]
    """
    table = np.zeros((max(len(palette), int(labels.max(initial=0)) + 1), 3), np.uint8)
    table[: len(palette)] = palette
    colors: np.ndarray = table[labels]
    return colors


def blend(image: np.ndarray, labels: np.ndarray, palette: Sequence[tuple[int, int, int]], alpha: float) -> np.ndarray:
    """`image` (H, W, 3) uint8 under the labels' colors with opacity `alpha` (0..1); ignored pixels stay as they are.

    Examples:
        >>> import numpy as np
        >>> from upernet_zoo.images import visualize
        >>> visualize.blend(np.full((1, 1, 3), 100, np.uint8), np.array([[0]]), [(200, 0, 100)], 0.5).tolist()
        [[[150, 50, 100]]]
    """
    mixed = np.empty(image.shape, np.uint8)
    rows = max(1, _PIXELS // image.shape[1])
    for top in range(0, len(image), rows):
        part = slice(top, top + rows)
        colors = colorize(labels[part], palette).astype(np.float32)
        mixed[part] = np.rint(image[part] * (1 - alpha) + colors * alpha).astype(np.uint8)
    ignored = labels >= len(palette)
    mixed[ignored] = image[ignored]
    return mixed


def legend(entries: Sequence[tuple[str, tuple[int, int, int]]], width: int, numbers: Sequence[int] | None = None) -> Image.Image:
    """A picture with a swatch and a text for each entry, in as many columns as fit into `width` pixels, and wider if a text needs it.

    Args:
        entries: text and RGB color of each.
        numbers: of the entries' classes, to be written, with one warning, where this machine has no font with the letters of a text;
            without them the characters' own numbers are.

    Examples:
        >>> from upernet_zoo.images import visualize
        >>> visualize.legend([("road", (128, 64, 128)), ("sky", (70, 130, 180))], 300).size[0]
        300
    """
    from PIL import Image, ImageDraw

    size = max(11, min(24, width // 50))
    drawn = [fonts.drawable(text, size, None if numbers is None else f"class {numbers[i]}") for i, (text, _) in enumerate(entries)]
    if missing := [wanted for (wanted, _), (text, _) in zip(entries, drawn) if text != wanted]:
        warnings.warn(
            f"No font on this machine has the letters of {name_list(map(repr, missing), 3)}: the legend shows numbers. Install a font that "
            "has them, such as Noto Sans CJK.",
            stacklevel=2,
        )
    line, swatch, gap = round(size * 1.6), round(size * 1.1), round(size * 0.6)
    longest = max((font.getlength(text) for text, font in drawn), default=0)
    cell = swatch + 2 * gap + round(longest) + gap
    width = max(width, cell)
    columns = max(1, min(len(entries), width // cell))
    rows = -(-len(entries) // columns)
    picture = Image.new("RGB", (width, rows * line + gap if entries else 0), "white")
    draw = ImageDraw.Draw(picture)
    for i, ((_, color), (text, font)) in enumerate(zip(entries, drawn)):
        x, y = gap + (i % columns) * (width // columns), gap // 2 + (i // columns) * line
        draw.rectangle((x, y + (line - swatch) // 2, x + swatch, y + (line + swatch) // 2), fill=tuple(color), outline="black")
        draw.text((x + swatch + gap, y + line / 2), text, fill="black", font=font, anchor="lm")
    return picture


def stack(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures one under the other, flush left, on white.

    Examples:
        >>> from PIL import Image
        >>> from upernet_zoo.images import visualize
        >>> visualize.stack([Image.new("RGB", (30, 20)), Image.new("RGB", (50, 10))]).size
        (50, 30)
    """
    from PIL import Image

    whole = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), "white")
    y = 0
    for picture in pictures:
        whole.paste(picture, (0, y))
        y += picture.height
    return whole


def beside(panels: Mapping[str, np.ndarray]) -> Image.Image:
    """(H, W, 3) uint8 RGB pictures of equal size side by side, each under its name.

    Examples:
        >>> import numpy as np
        >>> from upernet_zoo.images import visualize
        >>> visualize.beside({"picture": np.zeros((80, 100, 3), np.uint8), "labels": np.zeros((80, 100, 3), np.uint8)}).size[0]
        204
    """
    from PIL import Image, ImageDraw

    height, width = next(iter(panels.values())).shape[:2]
    size = max(11, min(24, width // 25))
    head, gap = round(size * 1.6), 4
    whole = Image.new("RGB", (len(panels) * (width + gap) - gap, head + height), "white")
    draw = ImageDraw.Draw(whole)
    for i, (name, pixels) in enumerate(panels.items()):
        x = i * (width + gap)
        name, font = fonts.drawable(name, size)
        while name and font.getlength(name) > width - 4:
            name = name[:-1]
        draw.text((x + 2, head / 2), name, fill="black", font=font, anchor="lm")
        whole.paste(Image.fromarray(pixels), (x, head))
    return whole
