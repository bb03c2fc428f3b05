"""Bars and curves of results, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .. import files, written
from ..errors import ArgumentError, MissingPackageError
from ..images import save
from ..version import install_line

# where matplotlib puts the program's name, and what is in the file then
_MARKS = {"png": "Software", "svg": "Creator", "pdf": "Creator"}
_MARKED = {".svg": f"<dc:title>{written.MARK}</dc:title>", ".pdf": f"/Creator ({written.MARK})"}

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["require_matplotlib", "save_bars", "save_confusion", "save_curves"]


def require_matplotlib() -> None:
    """Refuse to go on without it.

    Raises:
        ArgumentError: it is not installed; the message says how to get it.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(f"Plots need matplotlib ({error}). Install it: {install_line('plot')}.") from None


def save_bars(path: Path, values: Sequence[tuple[str, float]], mean: float, title: str, overwrite: bool = False) -> Path:
    """Write a plot with a bar for each (name, fraction from 0 to 1), largest first, and a line at their mean.

    Args:
        path: its suffix is the format, such as .png, .svg or .pdf.
        overwrite: replace a file that is there and was not written here.

    Raises:
        MissingPackageError: matplotlib is not installed.
        ArgumentError: it has no format of that suffix.
        ExistingFileError: a file of that name is there, and was not written here.
        WriteError: the file cannot be written.
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
    return _write(figure, path, format, 150, overwrite)


def save_confusion(path: Path, names: Sequence[str], confusion: Sequence[Sequence[int]], title: str, overwrite: bool = False) -> Path:
    """Write a picture of a confusion matrix: a row for each label, a column for each prediction, in percent of the label's pixels.

    Args:
        path: its suffix is the format, such as .png, .svg or .pdf.
        overwrite: replace a file that is there and was not written here.
        confusion: pixels, by label and prediction.

    Raises:
        MissingPackageError: matplotlib is not installed.
        ArgumentError: matplotlib has no format of that suffix.
        ExistingFileError: a file of that name is there, and was not written here.
        WriteError: the file cannot be written.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    size = max(4, 2 + 0.25 * len(names))
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    format = _plot_format(figure, path)
    axes = figure.subplots()
    shares = [[100 * value / max(1, sum(row)) for value in row] for row in confusion]
    image = axes.imshow(shares, vmin=0, vmax=100, cmap="Blues")
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set(title=title, xlabel="prediction", ylabel="label")
    if len(names) <= 30:  # more would not be legible
        for row, values in enumerate(shares):
            for column, value in enumerate(values):
                if value >= 0.5:
                    axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=6, color="white" if value > 60 else "black")
    figure.colorbar(image, label="% of the label's pixels")
    return _write(figure, path, format, 100, overwrite)


def save_curves(path: Path, losses: Sequence[tuple[int, float]], scores: Sequence[tuple[int, float]], overwrite: bool = False) -> Path:
    """Write a plot of the loss and, where there are any, of the mIoU (0 to 1) over the steps of a training run.

    Args:
        path: its suffix is the format, such as .png, .svg or .pdf.
        overwrite: replace a file that is there and was not written here.

    Raises:
        MissingPackageError: matplotlib is not installed.
        ArgumentError: it has no format of that suffix.
        ExistingFileError: a file of that name is there, and was not written here.
        WriteError: the file cannot be written.
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
    return _write(figure, path, format, 150, overwrite)


def is_own(path: Path) -> bool:
    """Whether a file is a plot that was written here, as PNG, SVG or PDF."""
    mark = _MARKED.get(path.suffix.lower())
    try:
        return save.is_own(path) if mark is None else mark.encode() in path.read_bytes()
    except OSError:
        return False


def _write(figure: Figure, path: Path, format: str, dpi: int, overwrite: bool) -> Path:
    files.require_replaceable(path, is_own, overwrite)
    metadata = {_MARKS[format]: written.MARK} if format in _MARKS else None
    files.write_atomically(path, lambda temporary: figure.savefig(temporary, format=format, dpi=dpi, metadata=metadata))
    return path


def _plot_format(figure: Figure, path: Path) -> str:
    """Matplotlib's name of the format that a file's name asks for."""
    format = path.suffix.lstrip(".").lower()
    if format not in figure.canvas.get_supported_filetypes():
        raise ArgumentError(f"{path}: matplotlib writes no {path.suffix!r}; use .png, .svg or .pdf.")
    return format
