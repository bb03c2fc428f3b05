"""From logits at the network's resolution to labels or probabilities at the picture's, in bounded memory.

The published evaluation resizes logits from stride 4 to the network's input size, in slide mode averages windows, resizes to the
picture's own size, takes the softmax, and averages views. All but the softmax is linear, and along each axis on its own: a view at the
picture's size is `rows @ logits @ columns.T` for each class, with one matrix per axis that holds torch's own float32 weights (weights
in float64 give other probabilities, by up to 2e-5). So the picture is done in tiles that stay in the cache, each from the few logits
that it depends on, and neither resized logits nor sums of windows ever exist as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Elements (classes x pixels) of a tile: 1 MiB, which stays in the cache. On a GPU it is calls that cost. The same for any number of
# threads, so that results do not depend on it.
_TILE = {"cpu": 1 << 18, "cuda": 1 << 24}


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
    """

    logits: Tensor
    via: tuple[int, int]
    align_corners: bool
    windows: tuple[Sequence[slice], Sequence[slice]] | None = None
    mirrored: bool = False

    def matrices(self, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(height, rows of logits) and (width, columns of logits): `rows @ logits @ columns.T` is the view at `size`. On the CPU."""
        windows = self.windows or [[slice(0, length)] for length in self.via]
        rows, columns = (
            _matrix(count, self.via[axis], size[axis], self.align_corners, windows[axis])
            for axis, count in enumerate(self.logits.shape[1:])
        )
        return rows, columns.flip(0) if self.mirrored else columns


def _matrix(count: int, via: int, size: int, align_corners: bool, windows: Sequence[slice]) -> Tensor:
    """(size, count): from the logits of all windows along an axis to the picture. Made by resizing the identity."""
    each = count // len(windows)
    one = F.interpolate(torch.eye(each)[None], windows[0].stop - windows[0].start, mode="linear", align_corners=align_corners)[0]
    if len(windows) > 1:
        placed, seen = torch.zeros(count, via), torch.zeros(via)
        for i, window in enumerate(windows):
            placed[i * each : (i + 1) * each, window] = one
            seen[window] += 1
        one = placed / seen
    return F.interpolate(one[None], size, mode="linear", align_corners=align_corners)[0].T.contiguous()


@dataclass(frozen=True, eq=False)
class _Band:
    """Some rows (or columns) of the picture: which logits they depend on, and the matrix from these to them."""

    used: Tensor
    matrix: Tensor


def _bands(matrix: Tensor, step: int, like: Tensor) -> list[_Band]:
    found = []
    for part in matrix.split(step):
        used = (part != 0).any(0).nonzero()[:, 0]
        found.append(_Band(used.to(like.device), part[:, used].to(like.device)))
    return found


class _Part:
    """One view's logits of a tile, (classes, rows, columns), not yet resized: the tile is convex combinations of them."""

    def __init__(self, logits: Tensor, rows: Tensor, columns: Tensor):
        self.logits, self.rows, self.columns = logits, rows, columns

    def resized(self, classes: Tensor | None = None) -> Tensor:
        """(classes, height * width of the tile), all classes or some."""
        x = self.logits if classes is None else self.logits[classes]
        return torch.matmul(self.rows, torch.matmul(x, self.columns.T)).flatten(1)


def _tiles(views: Sequence[View], size: tuple[int, int]) -> Iterator[tuple[slice, slice, list[_Part]]]:
    """Rows, columns and each view's part of every tile."""
    like = views[0].logits
    side = max(8, math.isqrt(_TILE["cuda" if like.is_cuda else "cpu"] // len(like)))
    matrices = [view.matrices(size) for view in views]
    down = [_bands(rows, side, like) for rows, _ in matrices]
    across = [_bands(columns, side, like) for _, columns in matrices]
    for i, top in enumerate(range(0, size[0], side)):
        stripes = [view.logits.index_select(1, bands[i].used).float() for view, bands in zip(views, down)]
        for j, left in enumerate(range(0, size[1], side)):
            parts = [
                _Part(stripe.index_select(2, columns[j].used), rows[i].matrix, columns[j].matrix)
                for stripe, rows, columns in zip(stripes, down, across)
            ]
            yield slice(top, min(top + side, size[0])), slice(left, min(left + side, size[1])), parts


def labels(views: Sequence[View], size: tuple[int, int]) -> Tensor:
    """The most likely class at each pixel: of the largest logit, or of the largest softmax averaged over several views.

    Returns:
        (*size) uint8, or int16 above 255 classes, where the views' logits are.
    """
    logits = views[0].logits
    out = torch.empty(size, dtype=torch.uint8 if len(logits) <= 255 else torch.int16, device=logits.device)
    for rows, columns, parts in _tiles(views, size):
        tile = out[rows, columns]
        if len(parts) > 1:
            tile.copy_(_average(parts).max(0).indices.view_as(tile))
            continue
        classes = _candidates(parts[0].logits.flatten(1))
        if len(classes) == 1:
            tile.fill_(classes[0])
        else:
            tile.copy_(classes[parts[0].resized(classes).max(0).indices].view_as(tile))
    return out


def probabilities(views: Sequence[View], size: tuple[int, int]) -> Tensor:
    """Softmax of each view at `size`, averaged: (num_classes, *size) float32, where the views' logits are."""
    logits = views[0].logits
    out = torch.empty(len(logits), *size, device=logits.device)
    for rows, columns, parts in _tiles(views, size):
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
