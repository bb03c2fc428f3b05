"""Convolutions of resized maps, computed at the low resolution."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import winograd
from .layers import empty, parameter
from .winograd import TILE, Rows

__all__ = ["ResizedConv3x3", "ResizedSum", "add_resized", "resize_matrix"]

_BLOCK = 16  # columns that are resized together: resize matrices stay small however wide the picture is
_PIXELS_AT_ONCE = 1024  # of a small map, in one matrix product of its taps
_TAPS_KEPT = 1 << 20  # numbers in a resize matrix


def resize_matrix(size: int, out_size: int, align_corners: bool, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """(out_size, size) matrix that resizes an axis bilinearly, with torch's own weights: made by resizing the identity."""
    identity = torch.eye(size, dtype=dtype, device=device).view(1, size, size, 1)
    matrix = F.interpolate(identity, size=(out_size, 1), mode="bilinear", align_corners=align_corners)
    return matrix.view(size, out_size).T


class _Taps:
    """Of one axis: the resize matrix, or three of it, each shifted by one row for a tap of a 3x3 convolution (zeros enter).

    Attributes:
        matrix: (out_size, taps, size).
        first, last: for each output row the first and last input row that it needs, lists of out_size.
    """

    def __init__(self, size: int, out_size: int, align_corners: bool, taps: int, device: torch.device, dtype: torch.dtype) -> None:
        matrix = resize_matrix(size, out_size, align_corners, device, dtype)
        reach = taps // 2
        padded = F.pad(matrix, (0, 0, reach, reach))
        self.matrix = torch.stack([padded[k : k + out_size] for k in range(taps)], 1)
        used = self.matrix.sum(1) > 0
        self.first = used.int().argmax(1).tolist()
        self.last = (size - 1 - used.flip(1).int().argmax(1)).tolist()

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """The input rows low to high (not included) that output rows start to stop need."""
        return min(self.first[start:stop]), max(self.last[start:stop]) + 1


_kept_taps = functools.lru_cache(maxsize=64)(_Taps)  # every picture of a size needs the same few; a megabyte each for 1024x2048


def _taps(size: int, out_size: int, align_corners: bool, taps: int, like: Tensor) -> _Taps:
    """Those of an axis, in float32 at least, which are kept for the next picture if they are small."""
    kept = taps * size * out_size <= _TAPS_KEPT
    return (_kept_taps if kept else _Taps)(size, out_size, align_corners, taps, like.device, torch.promote_types(like.dtype, torch.float32))


class ResizedConv3x3(nn.Module):
    """A 3x3 convolution (padding 1, no bias) of a map that is resized bilinearly, computed without the resized map.

    Attributes:
        weight: (3, in_channels, 3 * out_channels): for each ky the three kx beside each other.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = parameter(3, in_channels, 3 * out_channels)

    @staticmethod
    def transform(weight: Tensor) -> Tensor:
        """The `weight` of this module from a convolution's (out_channels, in_channels, 3, 3)."""
        out_channels, in_channels = weight.shape[:2]
        return weight.permute(2, 1, 3, 0).reshape(3, in_channels, 3 * out_channels)

    def products(self, x: Tensor) -> Callable[[int, int], Tensor]:
        """The nine 1x1 products of x (h, w, in_channels), made as they are asked for.

        Returns:
            A function (low, high) -> (3, high - low, w * 3, out_channels) of rows low to high, for intervals that move downwards.
        """
        height, width, channels = x.shape
        taps, _, columns = self.weight.shape

        def fill(low: int, high: int, out: Tensor) -> None:
            for weight, target in zip(self.weight, out):
                torch.mm(x[low:high].view(-1, channels), weight, out=target.view(-1, columns))

        made = Rows((taps, height, width * columns), max(1, _PIXELS_AT_ONCE // width), fill, x)
        return lambda low, high: made(low, high).unflatten(2, (width * taps, columns // taps))


class ResizedSum:
    """Adds the resizes of several smaller maps to rows of a map: `out += sum over maps and taps of A_ky y[ky, kx] A_kx^T`.

    Args:
        out_size: (H, W) of the map.
        maps: of each smaller map its size (h, w), and a function (low, high) -> (taps, high - low, w * taps, C) that gives its rows.
        taps: 3, or 1 for a plain resize.
        like: device and dtype.
    """

    def __init__(
        self,
        out_size: Sequence[int],
        maps: Sequence[tuple[Sequence[int], Callable[[int, int], Tensor]]],
        align_corners: bool,
        taps: int,
        like: Tensor,
    ) -> None:
        self.out_size, self.taps, self.like = out_size, taps, like
        self.rows = [rows for _, rows in maps]
        self.down = [_taps(size[0], out_size[0], align_corners, taps, like) for size, _ in maps]
        across = [_taps(size[1], out_size[1], align_corners, taps, like) for size, _ in maps]
        self.blocks = []
        for start in range(0, out_size[1], _BLOCK):
            stop = min(start + _BLOCK, out_size[1])
            parts = []
            for taps_across in across:
                low, high = taps_across.span(start, stop)
                matrix = taps_across.matrix[start:stop, :, low:high].transpose(1, 2).reshape(stop - start, -1)
                parts.append((low * taps, high * taps, matrix.to(like.dtype)))
            self.blocks.append((start, stop, parts))

    def add_to(self, out: Tensor, top: int, tile: int = 1) -> None:
        """Add to the rows of `out` (tile, rows, pitch, C), contiguous: [a, row] is row `top + tile * row + a` of the map."""
        pitch, channels = out.shape[2:]
        flat = out.view(-1, pitch * channels)
        bottom = min(top + flat.shape[0], self.out_size[0])
        sources, matrices = [], []
        for rows, down in zip(self.rows, self.down):
            low, high = down.span(top, bottom)
            matrix = F.pad(down.matrix[top:bottom, :, low:high], (0, 0, 0, 0, 0, flat.shape[0] - (bottom - top)))
            sources.append(rows(low, high))
            matrices.append(matrix.view(-1, tile, self.taps * (high - low)).transpose(0, 1).reshape(flat.shape[0], -1))
        matrix = torch.cat(matrices, 1).to(out.dtype)
        for start, stop, parts in self.blocks:
            resized = empty((matrix.shape[1], stop - start, channels), self.like)
            at = 0
            for source, (low, high, across) in zip(sources, parts):
                count = source.shape[1]
                for k in range(self.taps):
                    torch.bmm(across.expand(count, *across.shape), source[k][:, low:high], out=resized[at : at + count])
                    at += count
            flat[:, start * channels : stop * channels].addmm_(matrix, resized.view(matrix.shape[1], -1))


def _rows_of(x: Tensor) -> Callable[[int, int], Tensor]:
    return lambda low, high: x[:, low:high]


def add_resized(out: Tensor, x: Tensor, align_corners: bool) -> None:
    """Do out (N, H, W, C) += x (N, h, w, C) resized bilinearly, a few rows at a time."""
    rows = max(1, winograd.TILES_PER_BAND * TILE * TILE // out.shape[2])
    for target, source in zip(out, x):
        resized = ResizedSum(out.shape[1:3], [(source.shape[:2], _rows_of(source.unsqueeze(0)))], align_corners, 1, out)
        for top in range(0, out.shape[1], rows):
            resized.add_to(target[None, top : top + rows], top)
