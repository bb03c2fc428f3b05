"""The fast inference twin of `UPerNet`: the same answers with a fifth of the multiplications in the head.

What is different from the plain modules, none of which it replaces:

- Batch norm is folded into its convolution; there is no auxiliary head and no dropout.
- A 1x1 convolution and a bilinear resize commute (they act on different axes), and a 3x3 convolution is nine shifted 1x1
  convolutions. So a 3x3 convolution over [x, resize(y), ...] is computed as conv3x3(x) plus, for each smaller map y, nine 1x1
  products at y's own size whose results are resized and summed: `sum over ky, kx of A_ky (W[ky, kx] y) A_kx^T` with the resize
  matrices of both axes, shifted by one row for each tap (`ResizedConv3x3`). Neither the resized maps nor their concatenation exist.
- Wide 3x3 convolutions in float32 on the CPU run as Winograd's F(4x4, 3x3): 36 multiplications where there were 144 (Lavin & Gray
  2016, "Fast Algorithms for Convolutional Neural Networks"), a few rows of tiles at a time so that the transforms stay in cache.
- Maps are kept pixel by pixel, (N, H, W, C): a 1x1 convolution is then one matrix product, and rows of a map are rows of a matrix.

It needs nothing but plain torch. On CUDA, and in float16 or bfloat16, the 3x3 convolutions are torch's own; the rest is the same.
Speed has been measured on CPUs only.
"""

from __future__ import annotations

import contextlib
import functools
import math
import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import RESNET_STAGES, Recipe, UPerNetConfig
from ..errors import ArgumentError, CheckpointError
from ..labels import LabelSet
from .backbones.resnet import Bottleneck
from .heads import pooling_matrix
from .upernet import UPerNet

# F(4x4, 3x3) from the points 0, 1, -1, 1/2, -2 and infinity. With 1/2 in place of the usual 2 the float32 error is a third
# (measured; the choice of points is that of Barabasz et al. 2020, "Error analysis and improving the accuracy of Winograd convolution").
TILE = 4
_POINTS = (0.0, 1.0, -1.0, 0.5, -2.0)
_ONE = _POINTS.index(1.0)
# Measured on 2 AVX2 cores with 512 KiB + 16 MiB of cache each; near these numbers the time hardly changes.
_TILES_PER_BAND = 256  # tiles that go through a Winograd convolution together
_BLOCK = 16  # columns that are resized together: resize matrices stay small however wide the picture is
_PIXELS_AT_ONCE = 1024  # of a small map, in one matrix product of its taps
# From this width on Winograd beats torch's own convolution: 2.1 to 2.3 times as fast at 256 and 512 channels, 1.0 times at 128, half at 64
# (results/winograd.json). In the backbone, whose maps are smaller, its 1.4 times would save 1 % of R-50's time and 2 % of R-101's, for 92
# and 213 MB more weights: left out.
_WINOGRAD_CHANNELS = 256
_TAPS_KEPT = 1 << 20  # numbers in a resize matrix
_HUGE_PAGES_FROM = 1 << 25  # bytes; smaller blocks are reused by the C library once they are free


def _inference(forward):
    """No gradients, and no autocast: results go into given tensors, which neither allows."""

    @functools.wraps(forward)
    def wrapped(self, x):
        with torch.no_grad(), torch.autocast(next(self.parameters()).device.type, enabled=False):
            return forward(self, x)

    return wrapped


def _parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape), requires_grad=False)


def _empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """An uninitialised tensor. A large one on the CPU lies in huge pages where the system has them.

    Touching new memory in small pages costs as much as computing what is written there: 160 ms against 33 ms for the last resize of
    a 512x512 picture with 150 classes.
    """
    size = math.prod(shape) * like.element_size()
    if size < _HUGE_PAGES_FROM or like.device.type != "cpu" or not hasattr(mmap, "MADV_HUGEPAGE"):
        return like.new_empty(shape)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=like.dtype, count=math.prod(shape)).view(shape)


@functools.cache
def _winograd_matrices() -> tuple[Tensor, Tensor, Tensor]:
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
    bt, g, at = (torch.tensor(rows, dtype=torch.float64, device="cpu") for rows in (bt, g, at))
    return bt, g, at.T.contiguous()


class Pointwise(nn.Module):
    """A 1x1 convolution with bias, as a matrix product over pixels.

    Attributes:
        weight: (in_channels, out_channels).
        bias: (out_channels,).
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.weight = _parameter(in_channels, out_channels)
        self.bias = _parameter(out_channels)

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """(..., in_channels) -> (..., out_channels), written into `out` if it is given: (pixels, out_channels)."""
        if out is None:
            out = _empty((*x.shape[:-1], self.bias.shape[0]), x)
        torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight, out=out.view(-1, self.bias.shape[0]))
        return out


class DirectConv(nn.Module):
    """A convolution that keeps the size (but for its stride), with a bias: torch's own.

    Attributes:
        weight: (out_channels, kernel, kernel, in_channels).
        bias: (out_channels,).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, kernel: int = 3):
        super().__init__()
        self.weight = _parameter(out_channels, kernel, kernel, in_channels)
        self.bias = _parameter(out_channels)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, in_channels) -> (N, ceil(H / stride), ceil(W / stride), out_channels)."""
        y = F.conv2d(x.permute(0, 3, 1, 2), self.weight.permute(0, 3, 1, 2), self.bias, self.stride, self.weight.shape[1] // 2)
        return y.permute(0, 2, 3, 1).contiguous()

    @staticmethod
    def transform(weight: Tensor) -> Tensor:
        """The `weight` of this module from a convolution's (out_channels, in_channels, kernel, kernel)."""
        return weight.permute(0, 2, 3, 1)


class WinogradConv3x3(nn.Module):
    """A 3x3 convolution with stride 1, padding 1 and a bias as Winograd's F(4x4, 3x3), in float32.

    Tiles of 6x6 pixels overlap by two; each gives 4x4 output pixels. Both transforms are separable: the input's goes along the
    columns first, for whole rows at once, then along the rows, tile by tile; the output's the other way round.

    Attributes:
        weight: (6, 6, in_channels, out_channels), the transformed kernel G g G^T.
        bias: (out_channels,).
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.weight = _parameter(TILE + 2, TILE + 2, in_channels, out_channels)
        self.bias = _parameter(out_channels)

    @staticmethod
    def transform(weight: Tensor) -> Tensor:
        """The `weight` of this module from a convolution's (out_channels, in_channels, 3, 3)."""
        g = _winograd_matrices()[1].to(weight)
        return (g @ weight @ g.T).permute(2, 3, 1, 0)

    def band_rows(self, width: int) -> int:
        """How many rows of tiles go through `bands` together for maps of this width."""
        return max(1, _TILES_PER_BAND // -(-width // TILE))

    def bands(self, rows: Callable[[int, int], Tensor], size: tuple[int, int], like: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The convolution of one picture and its bias, a few rows of tiles at a time.

        Args:
            rows: gives rows low to high (not included) of the picture, (high - low, W * in_channels), contiguous; asked from the top down.
            size: (H, W).
            like: device; the dtype is float32.

        Yields:
            The band's first pixel row, and (4, rows, 4 * ceil(W / 4), out_channels): of pixel row `first + 4 * row + a`, [a, row]. It
            lies in memory that the next band overwrites, and what is beyond the borders of the picture is of no use.
        """
        n = TILE + 2
        bt, _, at = (matrix.to(like) for matrix in _winograd_matrices())
        height, width = size
        channels, out_channels = self.weight.shape[2:]
        down, across = -(-height // TILE), -(-width // TILE)
        pitch = across * TILE
        step = min(self.band_rows(width), down)
        buffers = [
            _empty(shape, like)
            for shape in (
                (n * step * pitch, channels),
                (step * across, n, channels),
                (n, step * across, out_channels),
                (n, step * across, TILE, out_channels),
                (TILE, step * pitch, out_channels),
            )
        ]
        for first in range(0, down, step):
            count = min(step, down - first)
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
        """B^T along each row: (rows, pitch, C) -> (rows * pitch / 4, 6, C). Zeros stand left and right of a row."""
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
        out = _empty((*x.shape[:3], self.bias.shape[0]), x)
        for picture, target in zip(x, out):
            flat = picture.view(picture.shape[0], -1)
            for first, band in self.bands(lambda low, high, flat=flat: flat[low:high], picture.shape[:2], x):
                store_band(target, first, band)
        return out


def store_band(out: Tensor, first: int, band: Tensor) -> None:
    """Copy a band (see `WinogradConv3x3.bands`) to its place in (H, W, C)."""
    for row in range(band.shape[1]):
        rows = out[first + row * TILE : first + (row + 1) * TILE]
        rows.copy_(band[: rows.shape[0], row, : out.shape[1]])


class _Rows:
    """Rows of a map, made from the top down a few at a time and forgotten once they are behind.

    Args:
        shape: (planes, H, length of a row).
        at_once: how many rows are made together; fewer only at the end of the map.
        fill: `fill(low, high, out)` writes rows low to high into (planes, high - low, length), of which each plane is contiguous.
        like: device and dtype.
    """

    def __init__(self, shape: tuple[int, int, int], at_once: int, fill: Callable[[int, int, Tensor], None], like: Tensor):
        self.planes, self.height, self.length = shape
        self.at_once, self.fill = at_once, fill
        self.buffer = like.new_empty(self.planes, 0, self.length)
        self.start = self.stop = 0

    def __call__(self, low: int, high: int) -> Tensor:
        """Rows low to high (not included), (planes, high - low, length), valid until the next call; intervals move downwards."""
        if high > self.stop:
            begin = max(low, self.stop)
            end = min(self.height, begin + -(-(high - begin) // self.at_once) * self.at_once)
            kept = self.buffer[:, low - self.start : self.stop - self.start].clone()
            if self.buffer.shape[1] < end - low:
                self.buffer = _empty((self.planes, end - low, self.length), self.buffer)
            self.buffer[:, : kept.shape[1]] = kept
            for row in range(begin, end, self.at_once):
                last = min(row + self.at_once, end)
                self.fill(row, last, self.buffer[:, row - low : last - low])
            self.start, self.stop = low, end
        return self.buffer[:, low - self.start : high - self.start]


def resize_matrix(size: int, out_size: int, align_corners: bool, device: torch.device) -> Tensor:
    """(out_size, size) matrix that resizes an axis bilinearly, with torch's own float32 weights: made by resizing the identity."""
    identity = torch.eye(size, dtype=torch.float32, device=device).view(1, size, size, 1)
    matrix = F.interpolate(identity, size=(out_size, 1), mode="bilinear", align_corners=align_corners)
    return matrix.view(size, out_size).T


class _Taps:
    """Of one axis: the resize matrix, or three of it, each shifted by one row for a tap of a 3x3 convolution (zeros enter).

    Attributes:
        matrix: (out_size, taps, size).
        first, last: for each output row the first and last input row that it needs, lists of out_size.
    """

    def __init__(self, size: int, out_size: int, align_corners: bool, taps: int, device: torch.device):
        matrix = resize_matrix(size, out_size, align_corners, device)
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


def _taps(size: int, out_size: int, align_corners: bool, taps: int, device: torch.device) -> _Taps:
    """Those of an axis, which are kept for the next picture if they are small."""
    kept = taps * size * out_size <= _TAPS_KEPT
    return (_kept_taps if kept else _Taps)(size, out_size, align_corners, taps, device)


class ResizedConv3x3(nn.Module):
    """A 3x3 convolution (padding 1, no bias) of a map that is resized bilinearly, computed without the resized map.

    Attributes:
        weight: (3, in_channels, 3 * out_channels): for each ky the three kx beside each other.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.weight = _parameter(3, in_channels, 3 * out_channels)

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

        made = _Rows((taps, height, width * columns), max(1, _PIXELS_AT_ONCE // width), fill, x)
        return lambda low, high: made(low, high).unflatten(2, (width * taps, columns // taps))


class _ResizedSum:
    """Adds the resizes of several smaller maps to rows of a map: `out += sum over maps and taps of A_ky y[ky, kx] A_kx^T`.

    Args:
        out_size: (H, W) of the map.
        maps: of each smaller map its size (h, w), and a function (low, high) -> (taps, high - low, w * taps, C) that gives its rows.
        taps: 3, or 1 for a plain resize.
        like: device and dtype.
    """

    def __init__(self, out_size, maps: Sequence[tuple[tuple[int, int], Callable]], align_corners: bool, taps: int, like: Tensor):
        self.out_size, self.taps, self.like = out_size, taps, like
        self.rows = [rows for _, rows in maps]
        self.down = [_taps(size[0], out_size[0], align_corners, taps, like.device) for size, _ in maps]
        across = [_taps(size[1], out_size[1], align_corners, taps, like.device) for size, _ in maps]
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
            resized = _empty((matrix.shape[1], stop - start, channels), self.like)
            at = 0
            for source, (low, high, across) in zip(sources, parts):
                count = source.shape[1]
                for k in range(self.taps):
                    torch.bmm(across.expand(count, *across.shape), source[k][:, low:high], out=resized[at : at + count])
                    at += count
            flat[:, start * channels : stop * channels].addmm_(matrix, resized.view(matrix.shape[1], -1))


def _add_resized(out: Tensor, x: Tensor, align_corners: bool) -> None:
    """out (N, H, W, C) += x (N, h, w, C) resized bilinearly, a few rows at a time."""
    rows = max(1, _TILES_PER_BAND * TILE * TILE // out.shape[2])
    for target, source in zip(out, x):
        flat = source.unsqueeze(0)
        resized = _ResizedSum(out.shape[1:3], [(source.shape[:2], lambda low, high, y=flat: y[:, low:high])], align_corners, 1, out)
        for top in range(0, out.shape[1], rows):
            resized.add_to(target[None, top : top + rows], top)


class FusedBlock(nn.Module):
    """A basic block or bottleneck of the backbone, batch norm folded."""

    def __init__(self, bottleneck: bool, in_channels: int, width: int, out_channels: int, stride: int):
        super().__init__()
        self.bottleneck = bottleneck
        self.stride = stride
        if bottleneck:
            self.conv1 = Pointwise(in_channels, width)
            self.conv2 = DirectConv(width, width, stride)
            self.conv3 = Pointwise(width, out_channels)
        else:
            self.conv1 = DirectConv(in_channels, width, stride)
            self.conv2 = DirectConv(width, out_channels)
        self.downsample = Pointwise(in_channels, out_channels) if stride > 1 or in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, in_channels) -> (N, H / stride, W / stride, out_channels); x is overwritten if the shortcut is the identity."""
        shortcut = x if self.downsample is None else self.downsample(x[:, :: self.stride, :: self.stride])
        y = self.conv2(self.conv1(x).relu_())
        if not self.bottleneck:
            return y.add_(shortcut).relu_()
        y = y.relu_().view(-1, y.shape[-1])
        flat = shortcut.view(-1, shortcut.shape[-1])
        return flat.addmm_(y, self.conv3.weight).add_(self.conv3.bias).relu_().view(shortcut.shape)


class FusedResNet(nn.Module):
    """The backbone, batch norm folded."""

    def __init__(self, config: UPerNetConfig):
        super().__init__()
        bottleneck, blocks = RESNET_STAGES[config.depth]
        stem, half = config.stem_channels, config.stem_channels // 2
        if config.deep_stem:
            self.stem = nn.ModuleList([DirectConv(config.in_channels, half, 2), DirectConv(half, half), DirectConv(half, stem)])
        else:
            self.stem = nn.ModuleList([DirectConv(config.in_channels, stem, 2, kernel=7)])
        in_channels = stem
        for i, (count, out_channels) in enumerate(zip(blocks, config.feature_channels)):
            layer = nn.ModuleList()
            for j in range(count):
                stride = 2 if i > 0 and j == 0 else 1
                layer.append(FusedBlock(bottleneck, in_channels, config.base_channels * 2**i, out_channels, stride))
                in_channels = out_channels
            self.add_module(f"layer{i + 1}", layer)

    @_inference
    def forward(self, x: Tensor) -> list[Tensor]:
        """Picture (N, in_channels, H, W) -> features (N, C, h, w) at strides 4, 8, 16, 32, channels last in memory."""
        weight = self.stem[0].weight
        if x.dim() != 4 or x.shape[1] != weight.shape[3] or x.dtype != weight.dtype:
            raise ArgumentError(
                f"The fused model takes (N, {weight.shape[3]}, H, W) pictures in {weight.dtype}, found {tuple(x.shape)} in {x.dtype}."
            )
        x = x.permute(0, 2, 3, 1).contiguous()
        for conv in self.stem:
            x = conv(x).relu_()
        x = F.max_pool2d(x.permute(0, 3, 1, 2), 3, 2, 1).permute(0, 2, 3, 1).contiguous()
        features = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in layer:
                x = block(x)
            features.append(x.permute(0, 3, 1, 2))
        return features


class FusedUPerHead(nn.Module):
    """The decode head without concatenations and resized maps, batch norm folded."""

    def __init__(self, config: UPerNetConfig, winograd: bool):
        super().__init__()
        *lower, last = config.feature_channels
        channels = config.channels
        conv3x3 = WinogradConv3x3 if winograd and channels >= _WINOGRAD_CHANNELS else DirectConv
        self.align_corners = config.align_corners
        self.pool_scales = config.pool_scales
        self.pool_convs = nn.ModuleList(Pointwise(last, channels) for _ in config.pool_scales)
        self.pool_bias = _parameter(channels)
        self.pool_bottleneck = nn.ModuleList(ResizedConv3x3(c, channels) for c in (last, *[channels] * len(config.pool_scales)))
        self.lateral_convs = nn.ModuleList(Pointwise(c, channels) for c in lower)
        self.fpn_convs = nn.ModuleList(conv3x3(channels, channels) for _ in lower)
        self.fpn_bottleneck = conv3x3(channels, channels)
        self.fpn_resized = nn.ModuleList(ResizedConv3x3(channels, channels) for _ in lower)
        self.classifier = Pointwise(channels, config.num_classes)

    @_inference
    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Four features (N, C, h, w) at strides 4, 8, 16, 32 -> logits (N, num_classes, h, w) at stride 4, channels last in memory."""
        finest, *features = (f.permute(0, 2, 3, 1).contiguous() for f in features)
        maps = [self._pyramid_pooling(features.pop())]
        for lateral, feature in zip(self.lateral_convs[:0:-1], features[::-1]):
            x = lateral(feature).relu_()
            _add_resized(x, maps[0], self.align_corners)
            maps.insert(0, x)
        above = maps[0]
        maps = [conv(m).relu_() for conv, m in zip(self.fpn_convs[1:], maps)] + maps[-1:]
        fuse = self._fuse_whole if isinstance(self.fpn_bottleneck, DirectConv) else self._fuse_in_bands
        return fuse(finest, above, maps).permute(0, 3, 1, 2)

    def _pyramid_pooling(self, x: Tensor) -> Tensor:
        """(N, h, w, in_channels) -> (N, h, w, channels)."""
        maps = [x] + [conv(_pool(x, bins)).relu_() for bins, conv in zip(self.pool_scales, self.pool_convs)]
        out = self.pool_bias.repeat(*x.shape[:3], 1)
        for n, target in enumerate(out):
            self._resized_sum(self.pool_bottleneck, [m[n] for m in maps], target).add_to(target[None], 0)
        return out.relu_()

    def _fuse_whole(self, feature: Tensor, above: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """The finest feature, the map that is to be added to its lateral, and the other three maps -> logits at the feature's size."""
        x = self.lateral_convs[0](feature).relu_()
        _add_resized(x, above, self.align_corners)
        out = self.fpn_bottleneck(self.fpn_convs[0](x).relu_())
        for n, target in enumerate(out):
            self._resized_sum(self.fpn_resized, [m[n] for m in maps], target).add_to(target[None], 0)
        return self.classifier(out.relu_())

    def _fuse_in_bands(self, feature: Tensor, above: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """The same, a few rows at a time, so that no map with all channels exists at the finest stride."""
        logits = _empty((*feature.shape[:3], self.classifier.bias.shape[0]), feature)
        for n, target in enumerate(logits):
            resized = self._resized_sum(self.fpn_resized, [m[n] for m in maps], target)
            rows = self._finest_rows(feature[n], above[n])
            for first, band in self.fpn_bottleneck.bands(rows, target.shape[:2], target):
                resized.add_to(band, first, TILE)
                store_band(target, first, self.classifier(band.relu_()))
        return logits

    def _finest_rows(self, feature: Tensor, above: Tensor) -> Callable[[int, int], Tensor]:
        """Rows of the finest map, ready for `fpn_bottleneck`: lateral, plus the map above, and its 3x3 convolution."""
        height, width, _ = feature.shape
        lateral, conv = self.lateral_convs[0], self.fpn_convs[0]
        channels = lateral.bias.shape[0]
        flat = above[None]
        size = (above.shape[:2], lambda low, high: flat[:, low:high])
        resized = _ResizedSum((height, width), [size], self.align_corners, 1, feature)

        def add_lateral(low: int, high: int, out: Tensor) -> None:
            lateral(feature[low:high], out.view(-1, channels)).relu_()
            resized.add_to(out.view(1, high - low, width, channels), low)

        at_once = TILE * conv.band_rows(width)
        sums = _Rows((1, height, width * channels), at_once, add_lateral, feature)
        bands = conv.bands(lambda low, high: sums(low, high)[0], (height, width), feature)

        def convolve(low: int, high: int, out: Tensor) -> None:
            _, band = next(bands)
            store_band(out.view(high - low, width, channels), 0, band.relu_())

        rows = _Rows((1, height, width * channels), at_once, convolve, feature)
        return lambda low, high: rows(low, high)[0]

    def _resized_sum(self, convs: Sequence[ResizedConv3x3], maps: Sequence[Tensor], out: Tensor) -> _ResizedSum:
        """Of maps (h, w, channels) of one picture, to be added to the 3x3 convolution `out` (H, W, channels)."""
        maps = [(m.shape[:2], conv.products(m)) for m, conv in zip(maps, convs)]
        return _ResizedSum(out.shape[:2], maps, self.align_corners, 3, out)


def _pool(x: Tensor, bins: int) -> Tensor:
    """Adaptive average pooling, (N, h, w, C) -> (N, bins, bins, C), computed in float32."""
    count, height, width, channels = x.shape
    rows = pooling_matrix(height, bins, x.device) @ x.float().view(count, height, width * channels)
    return (pooling_matrix(width, bins, x.device) @ rows.view(count, bins, width, channels)).to(x.dtype)


class FusedUPerNet(nn.Module):
    """A `UPerNet` for inference only, made by `optimize_for_inference`.

    It is called like the plain model: `model(x)`, or `model.decode_head(model.backbone(x))` for the logits at stride 4. Its tensors are
    not those of the plain model; `upernet_zoo.optimized` saves and loads them. Its dtype is settled: of another one is the twin of a
    plain model in that dtype. For torch.compile, torch.export and ONNX take the plain model: which products are computed here is
    decided by each picture's size.

    Args:
        config, recipe, label_set: of the plain model.
        winograd: wide 3x3 convolutions of the head as Winograd's, which needs float32; else torch's own.

    Attributes:
        config, recipe, label_set, origin: as of the plain model.
        backbone: `backbone(x)` -> four features at strides 4, 8, 16, 32.
        decode_head: `decode_head(features)` -> logits at stride 4.
    """

    def __init__(self, config: UPerNetConfig, recipe: Recipe, label_set: LabelSet, winograd: bool):
        super().__init__()
        self.config = config
        self.recipe = recipe
        self.label_set = label_set
        self.origin: dict[str, str] = {}
        self.backbone = FusedResNet(config)
        self.decode_head = FusedUPerHead(config, winograd)

    @_inference
    def forward(self, x: Tensor) -> Tensor:
        """Normalised picture (N, in_channels, H, W), H and W from 32 up -> logits (N, num_classes, H, W), channels last in memory."""
        logits = self.decode_head(self.backbone(x))
        count, classes = logits.shape[:2]
        out = _empty((count, *x.shape[2:], classes), logits).permute(0, 3, 1, 2)
        return torch.ops.aten.upsample_bilinear2d.out(logits, x.shape[2:], self.config.align_corners, None, None, out=out)

    def _apply(self, fn, recurse=True):
        own = self.decode_head.classifier.weight.dtype
        if fn(torch.empty(0, dtype=own)).dtype != own:  # Winograd's form is for float32 alone
            raise ArgumentError(f"A fused model stays in {own}. Convert the plain model, then call optimize_for_inference.")
        return super()._apply(fn, recurse)

    @classmethod
    def from_state(
        cls,
        config: UPerNetConfig,
        recipe: Recipe,
        label_set: LabelSet,
        state_dict: Mapping[str, Tensor],
        origin: Mapping[str, str] | None = None,
    ) -> FusedUPerNet:
        """The model with the tensors of a `state_dict`, taken as they are (mapped from a file, for instance), in eval mode.

        Raises:
            CheckpointError: the tensors are not those of this architecture.
        """
        bottleneck = state_dict.get("decode_head.fpn_bottleneck.weight")
        winograd = bottleneck is not None and bottleneck.shape[:2] == (TILE + 2, TILE + 2)
        with torch.device("meta"):
            model = cls(config, recipe, label_set, winograd)
        try:
            model.load_state_dict(state_dict, assign=True)
        except RuntimeError as error:
            raise CheckpointError(f"Not the state of a fused UPerNet of this config; optimise the plain model anew. {error}") from None
        model.origin = dict(origin or {})
        return model.requires_grad_(False).eval()


def optimize_for_inference(model: UPerNet) -> FusedUPerNet:
    """The fast twin of a model: the same answers (in float32 to about 1e-6 of the largest logit), with tensors of its own.

    The plain model is not changed and can be freed. The form is chosen for the device and dtype that it has now: to change them, change
    the plain model first. On the CPU in float32 the head runs as Winograd convolutions; elsewhere as torch's own. Later changes of the
    plain model's weights are not seen.

    Args:
        model: a plain `UPerNet` with weights, in train or eval mode.

    Returns:
        A `FusedUPerNet` in eval mode; its outputs carry no gradient.

    Raises:
        ArgumentError: something else than a `UPerNet`, or one on the meta device.
    """
    if not isinstance(model, UPerNet):
        compiled = " Pass what was compiled, model._orig_mod." if hasattr(model, "_orig_mod") else ""
        raise ArgumentError(f"optimize_for_inference takes a UPerNet, found {type(model).__name__}.{compiled}")
    weight = model.decode_head.classifier.weight
    if weight.device.type == "meta":
        raise ArgumentError("optimize_for_inference: the model is on the meta device and has no weights. Load them first.")
    if len(weight) != model.config.num_classes:
        raise ArgumentError(
            f"optimize_for_inference: the classifier has {len(weight)} classes and the model's config {model.config.num_classes}. Replace "
            "it with model.reset_classifier(label_set), which keeps the two together."
        )
    winograd = weight.device.type == "cpu" and weight.dtype == torch.float32
    with torch.device("meta"):
        fused = FusedUPerNet(model.config, model.recipe, model.label_set, winograd)
    state = _fuse_state(model, fused)
    return FusedUPerNet.from_state(model.config, model.recipe, model.label_set, state, model.origin)


@torch.no_grad()
def _fuse_state(model: UPerNet, fused: FusedUPerNet) -> dict[str, Tensor]:
    """The tensors of `fused`, computed in float64 from those of `model`."""
    state: dict[str, Tensor] = {}
    modules = dict(fused.named_modules())

    def put(name: str, weight: Tensor, bias: Tensor | None) -> None:
        module = modules[name]
        weight = weight[:, :, 0, 0].T if isinstance(module, Pointwise) else module.transform(weight)
        state[f"{name}.weight"] = _empty(weight.shape, like).copy_(weight)
        if bias is not None:
            state[f"{name}.bias"] = bias.to(like)

    like = model.decode_head.classifier.weight
    plain = model.backbone
    for i in range(len(fused.backbone.stem)):
        put(f"backbone.stem.{i}", *_fold(plain.stem[3 * i], plain.stem[3 * i + 1]))
    for i in (1, 2, 3, 4):
        for j, block in enumerate(getattr(plain, f"layer{i}")):
            name = f"backbone.layer{i}.{j}"
            for k in (1, 2, 3) if isinstance(block, Bottleneck) else (1, 2):
                put(f"{name}.conv{k}", *_fold(getattr(block, f"conv{k}"), getattr(block, f"bn{k}")))
            if block.downsample is not None:
                put(f"{name}.downsample", *_fold(*block.downsample))

    head, config = model.decode_head, model.config
    for i, branch in enumerate(head.pyramid_pooling.branches):
        put(f"decode_head.pool_convs.{i}", *_fold(branch.conv, branch.bn))
    for i, (lateral, conv) in enumerate(zip(head.lateral_convs, head.fpn_convs)):
        put(f"decode_head.lateral_convs.{i}", *_fold(lateral.conv, lateral.bn))
        put(f"decode_head.fpn_convs.{i}", *_fold(conv.conv, conv.bn))
    weight, bias = _fold(head.pyramid_pooling.bottleneck.conv, head.pyramid_pooling.bottleneck.bn)
    state["decode_head.pool_bias"] = bias.to(like)
    for i, part in enumerate(weight.split([config.feature_channels[-1]] + [config.channels] * len(config.pool_scales), 1)):
        put(f"decode_head.pool_bottleneck.{i}", part, None)
    weight, bias = _fold(head.fpn_bottleneck.conv, head.fpn_bottleneck.bn)
    own, *resized = weight.split(config.channels, 1)
    put("decode_head.fpn_bottleneck", own, bias)
    for i, part in enumerate(resized):
        put(f"decode_head.fpn_resized.{i}", part, None)
    put("decode_head.classifier", head.classifier.weight.double(), head.classifier.bias.double())
    return state


def _fold(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias, in float64, of the convolution that does what `conv` and then `bn` do in eval mode."""
    scale = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
    return conv.weight.double() * scale[:, None, None, None], bn.bias.double() - bn.running_mean.double() * scale
