"""Logits of the windows over a picture, computed row of windows by row of windows as the picture's labels are written from the top down."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .config import Recipe
from .images import preprocess
from .images.resample import rows_of

__all__ = ["Cut", "WindowLogits", "most_rows"]

Cut = Callable[[slice, slice], "np.ndarray | None"]
"""Rows and columns of a picture -> (rows, columns, channels) uint8; None where nothing of them is of use."""


class WindowLogits:
    """Logits of every window of one scale of a picture, plain and mirrored.

    Windows are cut from the picture and normalized a batch at a time, and what is kept is the logits of the rows of windows that the
    picture's rows have reached and not yet left.

    Args:
        network: (N, C, h, w) float32 input -> (N, num_classes, h / stride, w / stride) float32 logits.
        cut: gives parts of the picture in this scale, without padding.
        content: (height, width) of the picture in this scale.
        recipe: mean and std.
        rows, columns: where the windows lie over the padded picture.
        flip: also run the mirrored picture.
        batch_size: windows that the network takes at once.
        done: told of the number of windows that were computed.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        cut: Cut,
        content: tuple[int, int],
        recipe: Recipe,
        rows: Sequence[slice],
        columns: Sequence[slice],
        *,
        flip: bool,
        batch_size: int,
        done: Callable[[int], object],
    ) -> None:
        self._network, self._content, self._recipe, self._batch_size, self._done = network, content, recipe, batch_size, done
        self._cut: Cut | None = cut
        self._rows, self._columns, self._mirrored = rows, columns, (False, True) if flip else (False,)
        self._like: Tensor | None = None  # (0, num_classes, h, w) as a window's logits are, which the network alone knows
        # row of windows -> first of its rows of logits that is kept, and (views, num_classes, rows, number of columns * w)
        self._kept: dict[int, tuple[int, Tensor]] = {}
        self._keep(0)
        self.views = [_Rows(self, number) for number in range(len(self._mirrored))]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the logits of all windows, side by side."""
        _, classes, height, width = self.like.shape
        return classes, len(self._rows) * height, len(self._columns) * width

    @property
    def like(self) -> Tensor:
        """Shape and device of a window's logits: (0, num_classes, h, w)."""
        assert self._like is not None  # since the first row of windows
        return self._like

    def take(self, view: int, used: Tensor) -> Tensor:
        """Rows of one view's logits, ascending. Those above the first are not asked for again."""
        height = self.like.shape[2]
        numbers = used // height
        found = []
        for number in numbers.unique().tolist():
            if number not in self._kept:
                self._drop(int(used[0]))
                self._keep(number)
            first, logits = self._kept[number]
            found.append(rows_of(logits[view], used[numbers == number] - (number * height + first)))
        return found[0] if len(found) == 1 else torch.cat(found, 1)

    def _keep(self, number: int) -> None:
        self._kept[number] = 0, self._compute(number)
        if number == len(self._rows) - 1:
            self._cut = None  # which may hold a resized picture

    def _drop(self, least: int) -> None:
        """Forget the logits of rows above `least`, and give their memory back before more is taken."""
        height = self.like.shape[2]
        for number, (first, logits) in list(self._kept.items()):
            start = max(least - number * height, first)
            if start >= height:
                del self._kept[number]
            elif start > first:
                self._kept[number] = start, logits[:, :, start - first :].clone()

    def _compute(self, number: int) -> Tensor:
        """(views, num_classes, h, number of columns * w) of one row of windows."""
        places = [(i, c) for i in range(len(self._mirrored)) for c in range(len(self._columns))]
        total: Tensor | None = None
        for start in range(0, len(places), self._batch_size):
            batch = places[start : start + self._batch_size]
            cut = [(place, self._input(self._mirrored[place[0]], self._rows[number], self._columns[place[1]])) for place in batch]
            inputs = {place: x for place, x in cut if x is not None}
            if inputs:
                logits = self._run(list(inputs.values()))
                if len(self._columns) == 1 and len(inputs) == len(places):
                    total = logits  # there is nothing to put side by side
                else:
                    total = self._empty() if total is None else total
                    for (i, c), one in zip(inputs, logits):
                        total[i, :, :, c] = one
            self._done(len(batch))
        total = self._empty() if total is None else total
        return total if total.ndim == 4 else total.flatten(3)

    def _run(self, inputs: Sequence[np.ndarray]) -> Tensor:
        logits = self._network(torch.from_numpy(inputs[0][None] if len(inputs) == 1 else np.stack(inputs)))
        self._like = logits.new_empty(0, *logits.shape[1:])
        return logits

    def _empty(self) -> Tensor:
        """(views, num_classes, h, columns, w) zeros."""
        if self._like is None:  # nothing was of use yet
            size = (axis[0].stop - axis[0].start for axis in (self._rows, self._columns))
            self._run([np.zeros((len(self._recipe.mean), *size), np.float32)])
        _, classes, height, width = self.like.shape
        return self.like.new_zeros(len(self._mirrored), classes, height, len(self._columns), width)

    def _input(self, mirrored: bool, rows: slice, columns: slice) -> np.ndarray | None:
        """(C, h, w) float32 of one window; None where nothing of it is of use. The picture is mirrored, not its padding."""
        assert self._cut is not None
        height, width = self._content
        top, bottom, left, right = rows.start, min(rows.stop, height), columns.start, min(columns.stop, width)
        size = rows.stop - rows.start, columns.stop - columns.start
        if bottom <= top or right <= left:  # padding alone
            return np.zeros((len(self._recipe.mean), *size), np.float32)
        taken = self._cut(slice(top, bottom), slice(width - right, width - left) if mirrored else slice(left, right))
        if taken is None:
            return None
        return preprocess.normalize(taken[:, ::-1] if mirrored else taken, self._recipe, size)


class _Rows:
    """Logits of one view, as `resample.Rows`."""

    def __init__(self, logits: WindowLogits, number: int) -> None:
        self._logits, self._number = logits, number

    @property
    def device(self) -> torch.device:
        return self._logits.like.device

    @property
    def shape(self) -> tuple[int, int, int]:
        return self._logits.shape

    def take(self, used: Tensor) -> Tensor:
        return self._logits.take(self._number, used)


def most_rows(rows: Sequence[slice]) -> int:
    """How many pixels high the windows are, taken together, that are kept at once where each is kept until the next ones have left it.

    That is all of a new one, and of those before it what lies in its rows.
    """
    kept = [sum(max(0, before.stop - row.start) for before in rows[:i]) + row.stop - row.start for i, row in enumerate(rows)]
    return int(max(kept))
