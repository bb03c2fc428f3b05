"""3x3 convolutions by Winograd's F(4x4, 3x3)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from .layers import empty, parameter

__all__ = ["TILE", "TILES_PER_BAND", "WINOGRAD_CHANNELS", "Rows", "WinogradConv3x3", "store_band", "winograd_matrices"]

# F(4x4, 3x3) from the points 0, 1, -1, 1/2, -2 and infinity. With 1/2 in place of the usual 2 the float32 error is a third
# (measured; the choice of points is that of Barabasz et al. 2020, "Error analysis and improving the accuracy of Winograd convolution").
TILE = 4
_POINTS = (0.0, 1.0, -1.0, 0.5, -2.0)
_ONE = _POINTS.index(1.0)
# Measured on 2 AVX2 cores with 512 KiB + 16 MiB of cache each; near these numbers the time hardly changes.
TILES_PER_BAND = 256  # tiles that go through a Winograd convolution together
# From this width on Winograd beats torch's own convolution: 2.1 to 2.3 times as fast at 256 and 512 channels, 1.0 times at 128, half at 64
# (results/winograd.json). In the backbone, whose maps are smaller, its 1.4 times would save 1 % of R-50's time and 2 % of R-101's, for 92
# and 213 MB more weights: left out.
WINOGRAD_CHANNELS = 256


@functools.cache
def winograd_matrices() -> tuple[Tensor, Tensor, Tensor]:
    """B^T (6, 6), G (6, 3) and A^T (4, 6) of F(4, 3) in float64: `conv(d, g) = A^T ((G g) * (B^T d))` (Cook and Toom's construction)."""

    def polynomial(roots: Sequence[float]) -> list[float]:
        coefficients = [1.0]
        for root in roots:
            coefficients = [a - root * b for a, b in zip([0.0, *coefficients], [*coefficients, 0.0])]
        return coefficients

    bt, g, at = [], [], []
    for i, point in enumerate(_POINTS):
        others = _POINTS[:i] + _POINTS[i + 1 :]
        scale = math.prod(point - other for other in others)
        bt.append([*polynomial(others), 0.0])
        g.append([point**k / scale for k in range(3)])
        at.append([point**k for k in range(TILE)])
    bt.append(polynomial(_POINTS))
    g.append([0.0, 0.0, 1.0])
    at.append([0.0] * (TILE - 1) + [1.0])
    first, second, third = (torch.tensor(rows, dtype=torch.float64, device="cpu") for rows in (bt, g, at))
    return first, second, third.T.contiguous()


class WinogradConv3x3(nn.Module):
    """A 3x3 convolution with stride 1, padding 1 and a bias as Winograd's F(4x4, 3x3), in float32.

    Tiles of 6x6 pixels overlap by two; each gives 4x4 output pixels. Both transforms are separable: the input's goes along the
    columns first, for whole rows at once, then along the rows, tile by tile; the output's the other way round.

    Attributes:
        weight: (6, 6, in_channels, out_channels), the transformed kernel G g G^T.
        bias: (out_channels,).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = parameter(TILE + 2, TILE + 2, in_channels, out_channels)
        self.bias = parameter(out_channels)

    @staticmethod
    def transform(weight: Tensor) -> Tensor:
        """The `weight` of this module from a convolution's (out_channels, in_channels, 3, 3)."""
        g = winograd_matrices()[1].to(weight)
        return (g @ weight @ g.T).permute(2, 3, 1, 0)

    def band_rows(self, width: int) -> int:
        """How many rows of tiles go through `bands` together for maps of this width."""
        return max(1, TILES_PER_BAND // -(-width // TILE))

    def bands(self, rows: Callable[[int, int], Tensor], size: tuple[int, int], like: Tensor, more: int = 0) -> Iterator[tuple[int, Tensor]]:
        """The convolution of one picture and its bias, a few rows of tiles at a time.

        Args:
            rows: gives rows low to high (not included) of the picture, (high - low, W * in_channels), contiguous; asked from the top down.
            size: (H, W).
            like: device; the dtype is float32.
            more: rows of tiles that the first band has more than the others.

        Yields:
            The band's first pixel row, and (4, rows, 4 * ceil(W / 4), out_channels): of pixel row `first + 4 * row + a`, [a, row]. It
            lies in memory that the next band overwrites, and what is beyond the borders of the picture is of no use.
        """
        n = TILE + 2
        bt, _, at = (matrix.to(like) for matrix in winograd_matrices())
        height, width = size
        channels, out_channels = self.weight.shape[2:]
        down, across = -(-height // TILE), -(-width // TILE)
        pitch = across * TILE
        step = self.band_rows(width)
        tall = min(step + more, down)
        buffers = [
            empty(shape, like)
            for shape in (
                (n * tall * pitch, channels),
                (tall * across, n, channels),
                (n, tall * across, out_channels),
                (n, tall * across, TILE, out_channels),
                (TILE, tall * pitch, out_channels),
            )
        ]
        for first in (0, *range(step + more, down, step)):
            count = min(step if first else tall, down - first)
            tiles = count * across
            columns, patches, products, halves, out = buffers
            columns = columns[: n * count * pitch].view(n, count, pitch, channels)
            patches, products = patches[:tiles], products.view(-1)[: n * tiles * out_channels].view(n, tiles, out_channels)
            halves = halves.view(-1)[: n * tiles * TILE * out_channels].view(n, tiles, TILE, out_channels)
            out = out.view(-1)[: TILE * tiles * TILE * out_channels].view(TILE, count, pitch, out_channels)
            columns[:, :, width:] = 0
            above = first * TILE - 1
            source_top = max(above, 0)
            source = rows(source_top, min((first + count) * TILE + 1, height))
            for row in range(count):
                top = above + row * TILE
                low, high = max(top, 0), min(top + n, height)
                target = columns[:, row, :width].view(n, width * channels)
                torch.mm(bt[:, low - top : high - top], source[low - source_top : high - source_top], out=target)
            for i in range(n):
                self._patches(columns[i], bt, patches)
                torch.bmm(patches.transpose(0, 1), self.weight[i], out=products)
                if i == _ONE:  # what is added to the product of point 1 along both axes is added to every output
                    products[_ONE] += self.bias
                torch.bmm(at.expand(tiles, TILE, n), products.transpose(0, 1), out=halves[i])
            torch.mm(at, halves.view(n, -1), out=out.view(TILE, -1))
            yield first * TILE, out

    @staticmethod
    def _patches(rows: Tensor, bt: Tensor, out: Tensor) -> None:
        """B^T along each row: (rows, pitch, C) -> (rows * pitch / 4, 6, C). A row has zeros at its left and right."""
        n = bt.shape[0]
        count, pitch, channels = rows.shape
        tiles = out.shape[0]
        if tiles > 2:  # tile t needs pixels 4t - 1 to 4t + 4; all rows in one go, wrong only at the ends of a row
            size, stride = (tiles - 2, n, channels), (TILE * channels, channels, 1)
            overlapping = rows.as_strided(size, stride, rows.storage_offset() + (TILE - 1) * channels)
            torch.bmm(bt.expand(tiles - 2, n, n), overlapping, out=out[1:-1])
        out = out.view(count, -1, n, channels)
        end = min(n - 1, pitch)
        out[:, 0] = torch.matmul(bt[:, 1 : end + 1], rows[:, :end])
        if pitch > TILE:
            out[:, -1] = torch.matmul(bt[:, :-1], rows[:, -end:])

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, in_channels) -> (N, H, W, out_channels)."""
        out = empty((*x.shape[:3], self.bias.shape[0]), x)
        for picture, target in zip(x, out):
            for first, band in self.bands(_rows_of(picture.view(picture.shape[0], -1)), (picture.shape[0], picture.shape[1]), x):
                store_band(target, first, band)
        return out


def _rows_of(x: Tensor) -> Callable[[int, int], Tensor]:
    return lambda low, high: x[low:high]


def store_band(out: Tensor, first: int, band: Tensor) -> None:
    """Copy a band (see `WinogradConv3x3.bands`) to its place in (H, W, C)."""
    for row in range(band.shape[1]):
        rows = out[first + row * TILE : first + (row + 1) * TILE]
        rows.copy_(band[: rows.shape[0], row, : out.shape[1]])


class Rows:
    """Rows of a map, made from the top down a few at a time and forgotten once they are behind.

    Args:
        shape: (planes, H, length of a row).
        at_once: how many rows are made together, about; none that nobody has asked for.
        fill: `fill(low, high, out)` writes rows low to high into (planes, high - low, length), of which each plane is contiguous.
        like: device and dtype.
        more: rows come in bands of exactly `at_once`, and the first has so many more; fewer only at the end of the map.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        at_once: int,
        fill: Callable[[int, int, Tensor], None],
        like: Tensor,
        more: int | None = None,
    ) -> None:
        self.planes, self.height, self.length = shape
        self.at_once, self.fill, self.more = at_once, fill, more
        self.buffer = like.new_empty(self.planes, 0, self.length)
        self.start = self.stop = 0

    def __call__(self, low: int, high: int) -> Tensor:
        """Rows low to high (not included), (planes, high - low, length), valid until the next call; intervals move downwards."""
        if high > self.stop:
            begin = max(low, self.stop)
            ends = self._ends(begin, high)
            end = ends[-1]
            kept = self.buffer[:, low - self.start : self.stop - self.start].clone()
            if self.buffer.shape[1] < end - low:
                self.buffer = empty((self.planes, end - low, self.length), self.buffer)
            self.buffer[:, : kept.shape[1]] = kept
            for row, last in zip((begin, *ends), ends):
                self.fill(row, last, self.buffer[:, row - low : last - low])
            self.start, self.stop = low, end
        return self.buffer[:, low - self.start : high - self.start]

    def _ends(self, begin: int, high: int) -> list[int]:
        """Where the rows end that are made together, of those from `begin` until there are all below `high`."""
        if self.more is None:
            parts = max(1, (high - begin) // self.at_once)
            return [begin + (high - begin) * (i + 1) // parts for i in range(parts)]
        ends = [begin + self.at_once + (0 if begin else self.more)]
        while ends[-1] < high:
            ends.append(ends[-1] + self.at_once)
        return [min(end, self.height) for end in ends]
