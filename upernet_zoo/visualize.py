"""Label maps as pictures, with Pillow: overlays, legends, panels. Scores as a bar plot, with matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import sources
from .errors import ArgumentError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
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
    """A picture with a swatch and a text for each entry, in as many columns as fit into `width` pixels, and wider if a text needs it."""
    from PIL import Image, ImageDraw, ImageFont

    size = max(11, min(24, width // 50))
    font = ImageFont.load_default(size)
    line, swatch, gap = round(size * 1.6), round(size * 1.1), round(size * 0.6)
    longest = max((font.getlength(text) for text, _ in entries), default=0)
    cell = swatch + 2 * gap + round(longest) + gap
    width = max(width, cell)
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
    """Pictures one under the other, flush left, on white."""
    from PIL import Image

    whole = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), "white")
    y = 0
    for picture in pictures:
        whole.paste(picture, (0, y))
        y += picture.height
    return whole


def beside(panels: Mapping[str, np.ndarray]) -> Image.Image:
    """(H, W, 3) uint8 RGB pictures of equal size side by side, each under its name."""
    from PIL import Image, ImageDraw, ImageFont

    height, width = next(iter(panels.values())).shape[:2]
    size = max(11, min(24, width // 25))
    font, head, gap = ImageFont.load_default(size), round(size * 1.6), 4
    whole = Image.new("RGB", (len(panels) * (width + gap) - gap, head + height), "white")
    draw = ImageDraw.Draw(whole)
    for i, (name, pixels) in enumerate(panels.items()):
        x = i * (width + gap)
        while name and font.getlength(name) > width - 4:
            name = name[:-1]
        draw.text((x + 2, head / 2), name, fill="black", font=font, anchor="lm")
        whole.paste(Image.fromarray(pixels), (x, head))
    return whole


def require_matplotlib() -> None:
    """Refuse to go on without it.

    Raises:
        ArgumentError: it is not installed; the message says how to get it.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ArgumentError(f"Plots need matplotlib ({error}). Install it: pip install 'upernet-zoo[plot]'.") from None


def save_bars(path: Path, values: Sequence[tuple[str, float]], mean: float, title: str) -> Path:
    """Write a plot with a bar for each (name, fraction from 0 to 1), largest first, and a line at their mean.

    Args:
        path: its suffix is the format, such as .png, .svg or .pdf.

    Raises:
        ArgumentError: matplotlib is not installed, or has no format of that suffix.
        CacheError: the file cannot be written.
    """
    require_matplotlib()
    from matplotlib.figure import Figure  # without pyplot: no window system, nothing global

    figure = Figure(figsize=(8, max(2, 1 + 0.22 * len(values))), layout="constrained")
    format = _plot_format(figure, path)
    values = sorted(values, key=lambda item: item[1])
    axes = figure.subplots()
    bars = axes.barh([name for name, _ in values], [100 * value for _, value in values], color="#4477aa")
    axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    axes.axvline(100 * mean, color="#cc6677", linestyle="--", label=f"mean {100 * mean:.2f}")
    axes.set(title=title, xlabel="IoU in %", xlim=(0, 108))
    axes.margins(y=0.01)
    axes.legend(loc="lower right")
    sources.write_atomically(path, lambda temporary: figure.savefig(temporary, format=format, dpi=150))
    return path


def save_curves(path: Path, losses: Sequence[tuple[int, float]], scores: Sequence[tuple[int, float]]) -> Path:
    """Write a plot of the loss and, where there are any, of the mIoU (0 to 1) over the steps of a training run.

    Args:
        path: its suffix is the format, such as .png, .svg or .pdf.

    Raises:
        ArgumentError: matplotlib is not installed, or has no format of that suffix.
        CacheError: the file cannot be written.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    format = _plot_format(figure, path)
    left = figure.subplots()
    left.plot(*zip(*losses), color="#4477aa")
    left.set(xlabel="step", ylabel="loss", ylim=(0, None))
    left.yaxis.label.set_color("#4477aa")
    if scores:
        right = left.twinx()
        right.plot(*zip(*((step, 100 * score) for step, score in scores)), color="#cc6677", marker="o")
        right.set(ylabel="mIoU in %", ylim=(0, 100))
        right.yaxis.label.set_color("#cc6677")
    sources.write_atomically(path, lambda temporary: figure.savefig(temporary, format=format, dpi=150))
    return path


def _plot_format(figure: Figure, path: Path) -> str:
    """Matplotlib's name of the format that a file's name asks for."""
    format = path.suffix.lstrip(".").lower()
    if format not in figure.canvas.get_supported_filetypes():
        raise ArgumentError(f"{path}: matplotlib writes no {path.suffix!r}; use .png, .svg or .pdf.")
    return format
