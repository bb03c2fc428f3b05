"""From logits at the network's resolution to labels or probabilities at the picture's, in bounded memory.

The published evaluation resizes logits from stride 4 to the network's input size, in slide mode averages windows, resizes to the
picture's own size, takes the softmax, and averages views. All but the softmax is linear, and along each axis on its own: a view at the
picture's size is `rows @ logits @ columns.T` for each class, with one matrix per axis that holds torch's own float32 weights (weights
in float64 give other probabilities, by up to 2e-5). So the picture is done in tiles that stay in the cache, each from the few logits
that it depends on, and neither resized logits nor sums of windows ever exist as a whole. Nor need the logits: tiles are done from the
top down, and of a view whose logits are `Rows` each band of tiles asks for those that it depends on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Rows", "View", "label_bands", "labels", "probabilities", "rows_of"]

# Elements (classes x pixels) of a tile: 1 MiB, which stays in the cache. On a GPU it is calls that cost. The same for any number of
# threads, so that results do not depend on it.
_TILE = {"cpu": 1 << 18, "cuda": 1 << 24}


class Rows(Protocol):
    """Logits (num_classes, h, w) whose rows are computed when they are asked for, from the top down."""

    @property
    def shape(self) -> Sequence[int]:
        """(num_classes, h, w)."""

    @property
    def device(self) -> torch.device:
        """Where they are."""

    def take(self, used: Tensor) -> Tensor:
        """(num_classes, len(used), w): some rows, ascending. Those above the first are not asked for again."""


@dataclass(frozen=True, eq=False)
class View:
    """Logits of one view of a picture.

    Args:
        logits: (num_classes, h, w) float, at stride 4; of several windows those of each, side by side as the windows lie:
            (num_classes, number of rows * h, number of columns * w).
        via: (height, width) of the network's input in pixels, which the logits are resized to before the picture's size.
        align_corners: of both resizes.
        windows: the windows' slices of rows and of columns of the input; logits of overlapping windows are averaged. None for one
            that is the whole.
        mirrored: the view is left-right mirrored, and is turned back at the end.
        content: (height, width) of the part of `via`, from its top left, that is the picture; what is beyond was padding. None: all.

    Examples:
        >>> import torch
        >>> from upernet_zoo.images import resample
        >>> resample.labels([resample.View(torch.zeros(3, 8, 8), via=(32, 32), align_corners=False)], (48, 48)).shape
        torch.Size([48, 48])
    """

    logits: Tensor | Rows
    via: tuple[int, int]
    align_corners: bool
    windows: tuple[Sequence[slice], Sequence[slice]] | None = None
    mirrored: bool = False
    content: tuple[int, int] | None = None

    def axes(self, size: tuple[int, int]) -> tuple[_Axis, _Axis]:
        """The matrices `rows` and `columns` of which `rows @ logits @ columns.T` is the view at `size`."""
        windows = self.windows or [[slice(0, length)] for length in self.via]
        content = self.content or self.via
        rows, columns = (
            _Axis(self.logits.shape[axis + 1], self.via[axis], content[axis], size[axis], self.align_corners, windows[axis], mirrored)
            for axis, mirrored in enumerate((False, self.mirrored))
        )
        return rows, columns


@dataclass(frozen=True, eq=False)
class _Band:
    """Some rows (or columns) of the picture: which logits they depend on, and the matrix from these to them."""

    used: Tensor
    matrix: Tensor


class _Axis:
    """The matrix along one axis, (size, count): from the logits of all windows to the picture. On the CPU.

    Of each window only the part that is not zero is kept: the whole has 1.5 GB along a side of 30,000 pixels in windows of 512.
    """

    def __init__(
        self, count: int, via: int, content: int, size: int, align_corners: bool, windows: Sequence[slice], mirrored: bool = False
    ) -> None:
        self.size, self.mirrored, self.each = size, mirrored, count // len(windows)
        plain: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}  # whatever torch's defaults are set to
        # the weights are those of torch's own resize: made by resizing the identity
        length = windows[0].stop - windows[0].start
        one = F.interpolate(torch.eye(self.each, **plain)[None], length, mode="linear", align_corners=align_corners)[0]
        seen = torch.zeros(via, **plain)
        for window in windows:
            seen[window] += 1
        self.blocks: list[tuple[int, Tensor]] = []  # of each window: the first place that it reaches, and (places, each)
        for window in windows:
            share = one / seen[window] if len(windows) > 1 else one
            if content == size:
                first, block = window.start, share[:, : max(0, content - window.start)]
            else:
                placed = torch.zeros(self.each, via, **plain)
                placed[:, window] = share
                resized = F.interpolate(placed[None, :, :content], size, mode="linear", align_corners=align_corners)[0]
                reached = resized.any(0).nonzero()[:, 0]
                first, last = (int(reached[0]), int(reached[-1]) + 1) if len(reached) else (0, 0)
                block = resized[:, first:last]
            self.blocks.append((first, block.T.contiguous()))

    def bands(self, step: int, device: torch.device) -> Iterator[_Band]:
        """Of `step` places each, the last of fewer, from the first place on."""
        for start in range(0, self.size, step):
            yield self._band(start, min(start + step, self.size), device)

    def _band(self, start: int, stop: int, device: torch.device) -> _Band:
        if self.mirrored:
            start, stop = self.size - stop, self.size - start
        used, parts = [], []
        for number, (first, block) in enumerate(self.blocks):
            top, bottom = max(start, first), min(stop, first + len(block))
            if top < bottom:
                part = block[top - first : bottom - first]
                columns = (part != 0).any(0).nonzero()[:, 0]
                whole = part.new_zeros(stop - start, len(columns))
                whole[top - start : bottom - start] = part[:, columns]
                used.append(columns + number * self.each)
                parts.append(whole)
        matrix = torch.cat(parts, 1)
        return _Band(torch.cat(used).to(device), (matrix.flip(0) if self.mirrored else matrix).to(device))


class _Part:
    """One view's logits of a tile, (classes, rows, columns), not yet resized: the tile is convex combinations of them."""

    def __init__(self, logits: Tensor, rows: Tensor, columns: Tensor) -> None:
        self.logits, self.rows, self.columns = logits, rows, columns

    def resized(self, classes: Tensor | None = None) -> Tensor:
        """(classes, height * width of the tile), all classes or some."""
        x = self.logits if classes is None else self.logits[classes]
        return torch.matmul(self.rows, torch.matmul(x, self.columns.T)).flatten(1)


def rows_of(logits: Tensor, used: Tensor) -> Tensor:
    """(classes, rows, w), contiguous. `index_select` of logits whose channels are last in memory would copy all of them each time."""
    first, last = int(used[0]), int(used[-1])
    rows = logits[:, first : last + 1].contiguous()
    return rows if last - first + 1 == len(used) else rows.index_select(1, used - first)


def _stripe(logits: Tensor | Rows, used: Tensor) -> Tensor:
    return rows_of(logits, used) if isinstance(logits, Tensor) else logits.take(used)


def _tiles(views: Sequence[View], size: tuple[int, int]) -> Iterator[tuple[slice, Iterator[tuple[slice, list[_Part]]]]]:
    """Rows of each band of tiles, from the top down; columns and each view's part of every tile in it."""
    device, classes = views[0].logits.device, views[0].logits.shape[0]
    side = max(8, math.isqrt(_TILE["cuda" if device.type == "cuda" else "cpu"] // classes))
    axes = [view.axes(size) for view in views]
    across = [list(columns.bands(side, device)) for _, columns in axes]

    def tiles(stripes: Sequence[Tensor], down: Sequence[_Band]) -> Iterator[tuple[slice, list[_Part]]]:
        for j, left in enumerate(range(0, size[1], side)):
            parts = [
                _Part(stripe.index_select(2, columns[j].used), rows.matrix, columns[j].matrix)
                for stripe, rows, columns in zip(stripes, down, across)
            ]
            yield slice(left, min(left + side, size[1])), parts

    for i, down in enumerate(zip(*(rows.bands(side, device) for rows, _ in axes))):
        stripes = [_stripe(view.logits, band.used).float() for view, band in zip(views, down)]
        yield slice(i * side, min((i + 1) * side, size[0])), tiles(stripes, down)


def label_bands(views: Sequence[View], size: tuple[int, int]) -> Iterator[tuple[slice, Tensor]]:
    """The most likely class at each pixel: of the largest logit, or of the largest softmax averaged over several views.

    Yields:
        Rows of the picture, from the top down, and their labels, (rows, width) uint8, or int16 above 255 classes, where the views' logits
        are.

    Examples:
        >>> import torch
        >>> from upernet_zoo.images import resample
        >>> view = resample.View(torch.zeros(3, 8, 8), via=(32, 32), align_corners=False)
        >>> sum(len(band) for rows, band in resample.label_bands([view], (32, 32)))
        32
    """
    logits = views[0].logits
    dtype = torch.uint8 if logits.shape[0] <= 255 else torch.int16
    for rows, tiles in _tiles(views, size):
        band = torch.empty(rows.stop - rows.start, size[1], dtype=dtype, device=logits.device)
        for columns, parts in tiles:
            tile = band[:, columns]
            if len(parts) > 1:
                tile.copy_(_average(parts).max(0).indices.view_as(tile))
                continue
            classes = _candidates(parts[0].logits.flatten(1))
            if len(classes) == 1:
                tile.fill_(classes[0])
            else:
                tile.copy_(classes[parts[0].resized(classes).max(0).indices].view_as(tile))
        yield rows, band


def labels(views: Sequence[View], size: tuple[int, int]) -> Tensor:
    """The most likely class at each pixel, as `label_bands` has it: (*size), where the views' logits are.

    Examples:
        >>> import torch
        >>> from upernet_zoo.images import resample
        >>> logits = torch.tensor([[[2.0, 0.0]], [[0.0, 2.0]]])  # two classes, at stride 4
        >>> resample.labels([resample.View(logits, via=(4, 8), align_corners=False)], (2, 4))[0]
        tensor([0, 0, 1, 1], dtype=torch.uint8)
    """
    out: Tensor | None = None
    for rows, band in label_bands(views, size):
        if out is None:
            out = band.new_empty(size)
        out[rows] = band
    assert out is not None  # a picture has a row at least
    return out


def probabilities(views: Sequence[View], size: tuple[int, int]) -> Tensor:
    """Softmax of each view at `size`, averaged: (num_classes, *size) float32, where the views' logits are.

    Examples:
        >>> import torch
        >>> from upernet_zoo.images import resample
        >>> view = resample.View(torch.zeros(2, 1, 2), via=(4, 8), align_corners=False)
        >>> resample.probabilities([view], (1, 2))
        tensor([[[0.5000, 0.5000]],
        <BLANKLINE>
                [[0.5000, 0.5000]]])
    """
    logits = views[0].logits
    out = torch.empty(logits.shape[0], *size, dtype=torch.float32, device=logits.device)
    for rows, tiles in _tiles(views, size):
        for columns, parts in tiles:
            tile = out[:, rows, columns]
            tile.copy_(_average(parts).view_as(tile))
    return out


def _average(parts: Sequence[_Part]) -> Tensor:
    total = parts[0].resized().softmax(0)
    for part in parts[1:]:
        total += part.resized().softmax(0)
    return total.div_(len(parts))


def _candidates(logits: Tensor) -> Tensor:
    """The classes of (classes, n) logits that can be the largest in any convex combination of the n.

    A class whose largest logit is below the smallest of another cannot win. The margin covers float32 rounding many times. NaN rules
    nothing out.
    """
    least = logits.amin(1).max() - 1e-5 * logits.abs().max()
    return (~(logits.amax(1) < least)).nonzero()[:, 0]
