"""From logits at the network's resolution to labels or probabilities at the picture's.

The published evaluation resizes logits from stride 4 to the network's input size, and again to the picture's own size. A `View` holds the
small logits and the sizes on the way, so that the large arrays need never exist at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .models.heads import resize

_BLOCK = 1 << 22  # elements of one resized block of classes: small against the picture's memory, large against call overhead


@dataclass(frozen=True)
class View:
    """Logits of one view of a picture.

    Args:
        logits: (num_classes, h, w) float, already flipped back if the view was flipped.
        via: (height, width) that they are resized to before the picture's size; None if they have it already.
        align_corners: of both resizes.
    """

    logits: Tensor
    via: tuple[int, int] | None
    align_corners: bool

    def at(self, size: tuple[int, int], first: int, last: int) -> Tensor:
        """Logits of classes first to last - 1 at `size`: (classes, *size) float32."""
        x = self.logits[None, first:last].float()
        if self.via is not None:
            x = resize(x, self.via, self.align_corners)
        return resize(x, size, self.align_corners)[0]


def labels(view: View, size: tuple[int, int]) -> Tensor:
    """The class of the largest logit at each pixel: (*size) int64. A running maximum over blocks of classes."""
    count = len(view.logits)
    block = max(1, _BLOCK // (size[0] * size[1]))
    best = winner = None
    for first in range(0, count, block):
        value, index = view.at(size, first, min(first + block, count)).max(0)
        if best is None:
            best, winner = value, index
        else:
            better = value > best
            best = torch.where(better, value, best)
            winner = torch.where(better, index + first, winner)
    return winner


def probabilities(views: Sequence[View], size: tuple[int, int]) -> Tensor:
    """Softmax of each view at `size`, averaged: (num_classes, *size) float32."""
    total = None
    for view in views:
        softmax = view.at(size, 0, len(view.logits)).softmax(0)
        total = softmax if total is None else total.add_(softmax)
    return total.div_(len(views))
