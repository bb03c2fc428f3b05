"""What transformers' backbones share: stochastic depth, the perceptron, attention with an additive bias, layer norm over channels."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "MLP",
    "DropPath",
    "LayerNorm2d",
    "Windows",
    "attend",
    "drop_path_rates",
    "is_exported",
    "missing",
    "pad_to_multiple",
    "relative_positions",
    "reset_transformer",
]


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training, each picture's branch is left out with probability `rate`."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) -> the same shape; kept branches are scaled so that the expectation stays."""
        if not self.training or self.rate == 0:
            return x
        kept = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(1 - self.rate)
        return x * (kept / (1 - self.rate))

    def extra_repr(self) -> str:
        """The rate."""
        return f"{self.rate:g}"


def drop_path_rates(rate: float, depth: int) -> Iterator[float]:
    """Rates of `depth` blocks, which grow from 0 at the first to `rate` at the last, as in the published trainings."""
    return (rate * i / max(depth - 1, 1) for i in range(depth))


class MLP(nn.Module):
    """Linear, GELU (the exact one), linear, on the last axis."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(..., channels) -> the same shape."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


def attend(qkv: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """Multi-head attention of (N, T, 3 * C) queries, keys and values -> (N, T, C).

    Args:
        qkv: side by side on the last axis.
        heads: how many.
        bias: (N or 1, heads or 1, T, T), added before softmax.
    """
    count, tokens, width = qkv.shape
    q, k, v = qkv.view(count, tokens, 3, heads, width // 3 // heads).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).reshape(count, tokens, width // 3)


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape, channels last in memory."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Zeros at the right and at the bottom of (N, C, H, W), until both sides are multiples."""
    below, right = missing(x.shape[2], multiple), missing(x.shape[3], multiple)
    return F.pad(x, (0, right, 0, below)) if is_exported() or below or right else x


def missing(side: int, multiple: int) -> int:
    """What a side lacks to be a multiple; without a negative number, of which other runtimes take another remainder."""
    return (side + multiple - 1) // multiple * multiple - side


def is_exported() -> bool:
    """Whether sizes are unknown, as torch.export traces: then nothing depends on them but by arithmetic."""
    return torch.compiler.is_exporting()


def _wrapped(numbers: Tensor, length: int) -> Tensor:
    """The remainder of numbers from 0 by a length; written out, as the exporter to ONNX knows it for constants alone."""
    return numbers - numbers // length * length


class Windows:
    """How a map is padded, shifted and cut into windows, and brought back: one gather each way.

    Args:
        height, width: of the map, in tokens.
        window: side of a window.
        shift: by how much the windows are shifted to the right and down.
        device: of the map.
    """

    def __init__(self, height: int, width: int, window: int, shift: int, device: torch.device) -> None:
        self.pad = (0, 0, 0, missing(width, window), 0, missing(height, window))
        self.tokens = tokens = window * window
        high, wide = height + self.pad[5], width + self.pad[3]
        across = wide // window
        # torch would make a constant of a number of windows that may be 1: a graph has one more, which is not brought back
        place = torch.arange(high * wide + (tokens if is_exported() else 0), device=device)
        block, inside = place // tokens, place % tokens
        row = block // across * window + inside // window  # in the shifted map
        column = _wrapped(block, across) * window + inside % window
        self.order = _wrapped(row + shift, high) * wide + _wrapped(column + shift, wide)
        y = _wrapped(torch.arange(height, device=device)[:, None] + high - shift, high)
        x = _wrapped(torch.arange(width, device=device) + wide - shift, wide)
        self.back = ((y // window * across + x // window) * tokens + y % window * window + x % window).flatten()
        self.filled = (row >= height) | (column >= width)  # of every place in the windows, whether it fills up the map
        self.mask: Tensor | None = None
        if shift:  # what came around the edge is no neighbor
            rows = (row >= high - window).long() + (row >= high - shift)
            columns = (column >= wide - window).long() + (column >= wide - shift)
            self.mask = self.between(3 * rows + columns, -100.0)

    def between(self, region: Tensor, value: float) -> Tensor:
        """(windows, T, T): `value` between tokens of different regions, else 0; `region` is of every place in the windows."""
        region = region.view(-1, self.tokens)
        return (region[:, :, None] != region[:, None]) * value

    def cut(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N * windows, T, C)."""
        if is_exported() or any(self.pad):
            x = F.pad(x, self.pad)
        return x.flatten(1, 2).index_select(1, self.order).view(-1, self.tokens, x.shape[3])

    def join(self, x: Tensor, like: Tensor) -> Tensor:
        """(N * windows, T, C) -> (N, H, W, C), the shape of `like`."""
        return x.view(like.shape[0], -1, x.shape[2]).index_select(1, self.back).view_as(like)


def relative_positions(height: int, width: int, device: torch.device) -> Tensor:
    """(T, T) int64, T = height * width: a number for each distance along both axes of a query to a key, row by row of a grid."""
    y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    y, x = y.flatten(), x.flatten()
    return (y[:, None] - y + height - 1) * (2 * width - 1) + (x[:, None] - x + width - 1)


@torch.no_grad()
def reset_transformer(module: nn.Module, init_linear: Callable[[Tensor], object] | None = None) -> None:
    """Initialize as the original trainings did: linear layers and tables from N(0, 0.02) cut at two deviations, biases zero, norms one.

    Args:
        module: all of whose parts are initialized.
        init_linear: in place of the truncated normal, for the weights of linear layers.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            (init_linear or (lambda weight: nn.init.trunc_normal_(weight, std=0.02)))(part.weight)
        elif isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(part, (nn.LayerNorm, nn.BatchNorm2d)):
            nn.init.ones_(part.weight)
        else:
            continue
        if part.bias is not None:
            nn.init.zeros_(part.bias)
