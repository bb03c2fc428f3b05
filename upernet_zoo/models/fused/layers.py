"""Plain layers of fused models."""

from __future__ import annotations

import contextlib
import functools
import math
import mmap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ArgumentError
from .threads import fewer_if_busy

__all__ = [
    "AT_ONCE",
    "AddedMLP",
    "DirectConv",
    "Patches",
    "Pointwise",
    "empty",
    "fold",
    "fold_norm",
    "inference",
    "parameter",
    "set_weights",
    "shares",
]

_In = TypeVar("_In")
_Out = TypeVar("_Out")

# Numbers of a block of rows where they are most, such as a perceptron's hidden channels: 6 MiB, which stay in the cache. Half of it, and
# twice as much, are as fast.
AT_ONCE = 3 << 19
_HUGE_PAGES_FROM = 1 << 25  # bytes; smaller blocks are reused by the C library once they are free


def inference(forward: Callable[[Any, _In], _Out]) -> Callable[[Any, _In], _Out]:
    """No gradients, and no autocast: results go into given tensors, which neither allows. On the CPU with as many threads as help."""

    @functools.wraps(forward)
    def wrapped(self: Any, x: _In) -> _Out:
        if isinstance(x, torch.fx.Proxy):
            raise ArgumentError("A fused model cannot be traced by torch.fx: sizes decide what it computes. Trace the plain UPerNet.")
        device = next(self.parameters()).device.type
        threads = fewer_if_busy() if device == "cpu" and not torch.compiler.is_compiling() else contextlib.nullcontext()
        with threads, torch.no_grad(), torch.autocast(device, enabled=False):
            return forward(self, x)

    return wrapped


def parameter(*shape: int) -> nn.Parameter:
    """An uninitialized one, which takes no gradient."""
    return nn.Parameter(torch.empty(shape), requires_grad=False)


def empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """An uninitialized tensor. A large one on the CPU lies in huge pages where the system has them.

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


class Pointwise(nn.Module):
    """A 1x1 convolution with bias, as a matrix product over pixels.

    Attributes:
        weight: (in_channels, out_channels).
        bias: (out_channels,).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = parameter(in_channels, out_channels)
        self.bias = parameter(out_channels)

    @staticmethod
    def transform(weight: Tensor) -> Tensor:
        """The `weight` of this module from a convolution's (out_channels, in_channels, 1, 1)."""
        return weight[:, :, 0, 0].T

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """(..., in_channels) -> (..., out_channels), written into `out` if it is given: (pixels, out_channels)."""
        if out is None:
            out = empty((*x.shape[:-1], self.bias.shape[0]), x)
        torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight, out=out.view(-1, self.bias.shape[0]))
        return out


class Patches(Pointwise):
    """A convolution whose stride is its kernel, with a bias, as a matrix product over patches. What is no whole patch is left out.

    Attributes:
        weight: (kernel * kernel * in_channels, out_channels).
        bias: (out_channels,).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__(kernel * kernel * in_channels, out_channels)
        self.kernel = kernel

    @staticmethod
    def transform(weight: Tensor) -> Tensor:
        """The `weight` of this module from a convolution's (out_channels, in_channels, kernel, kernel)."""
        return weight.permute(2, 3, 1, 0).flatten(0, 2)

    def cut(self, x: Tensor) -> Tensor:
        """(N, H, W, in_channels) -> (N, H / kernel, W / kernel, kernel * kernel * in_channels)."""
        height, width = (side // self.kernel for side in x.shape[1:3])
        x = x[:, : height * self.kernel, : width * self.kernel]
        patches: Tensor = x.unflatten(2, (width, -1)).unflatten(1, (height, -1)).transpose(2, 3).flatten(3)
        return patches

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """(N, H, W, in_channels) -> (N, H / kernel, W / kernel, out_channels), written into `out` if it is given."""
        return super().forward(self.cut(x), out)


class AddedMLP(nn.Module):
    """A transformer's perceptron behind its layer norm, scaled, and added to its shortcut: norm, linear, GELU (the exact one), linear, sum.

    The norm's weights are in the first matrix, the scale is in the second. Whoever calls it does so for one of `blocks` at a time.

    Args:
        channels, hidden: of the perceptron.
        eps: of the layer norm.
    """

    def __init__(self, channels: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.fc1 = Pointwise(channels, hidden)
        self.fc2 = Pointwise(hidden, channels)

    def blocks(self, x: Tensor) -> Iterator[slice]:
        """Rows of x (rows, ...) that are done together."""
        return shares(len(x), self.fc1.bias.shape[0], x.device)

    def add_to(self, out: Tensor, x: Tensor) -> None:
        """Do out (rows, channels) += what is made of x (rows, channels), which may be `out` itself."""
        hidden = self.fc1(F.layer_norm(x, x.shape[1:], eps=self.eps))
        torch.ops.aten.gelu_(hidden)
        out.add_(self.fc2.bias).addmm_(hidden, self.fc2.weight)

    def fill(self, norm: Any, mlp: Any, scale: Tensor | None = None) -> None:
        """Take the weights of an nn.LayerNorm, of an `MLP` and, if there is one, of the scale (channels,) behind it."""
        set_weights(self.fc1, *fold_norm(norm, mlp.fc1.weight, mlp.fc1.bias), mlp.fc1.weight)
        weight, bias = mlp.fc2.weight.double(), mlp.fc2.bias.double()
        if scale is not None:
            weight, bias = weight * scale.double()[:, None], bias * scale.double()
        set_weights(self.fc2, weight[:, :, None, None], bias, mlp.fc2.weight)


def shares(count: int, width: int, device: torch.device) -> Iterator[slice]:
    """Cut `count` rows of `width` numbers into equal blocks of up to `AT_ONCE` numbers; on a GPU, where calls cost, into one."""
    parts = 1 if device.type != "cpu" else -(-count * width // AT_ONCE)
    step = -(-count // max(parts, 1))
    return (slice(start, min(start + step, count)) for start in range(0, count, max(step, 1)))


class DirectConv(nn.Module):
    """A convolution that keeps the size (but for its stride), with a bias: torch's own.

    Attributes:
        weight: (out_channels, kernel, kernel, in_channels).
        bias: (out_channels,).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, kernel: int = 3) -> None:
        super().__init__()
        self.weight = parameter(out_channels, kernel, kernel, in_channels)
        self.bias = parameter(out_channels)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, in_channels) -> (N, ceil(H / stride), ceil(W / stride), out_channels)."""
        y = F.conv2d(x.permute(0, 3, 1, 2), self.weight.permute(0, 3, 1, 2), self.bias, self.stride, self.weight.shape[1] // 2)
        return y.permute(0, 2, 3, 1).contiguous()

    @staticmethod
    def transform(weight: Tensor) -> Tensor:
        """The `weight` of this module from a convolution's (out_channels, in_channels, kernel, kernel)."""
        return weight.permute(0, 2, 3, 1)


def fold(conv: Any, bn: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias, in float64, of the convolution that does what an nn.Conv2d and then an nn.BatchNorm2d do in eval mode."""
    scale = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
    return conv.weight.double() * scale[:, None, None, None], bn.bias.double() - bn.running_mean.double() * scale


def fold_norm(norm: Any, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weight and bias, in float64, of the convolution that does behind a norm without weights what one does behind an nn.LayerNorm.

    Args:
        norm: over the channels.
        weight: (out_channels, in_channels), or with a kernel (out_channels, in_channels, kernel, kernel).
        bias: (out_channels,).
    """
    weight = weight.double() if weight.dim() == 4 else weight.double()[:, :, None, None]
    shift = (weight * norm.bias.double()[:, None, None]).sum((1, 2, 3))
    return weight * norm.weight.double()[:, None, None], shift if bias is None else shift + bias.double()


def set_weights(module: Any, weight: Tensor, bias: Tensor | None, like: Tensor) -> None:
    """Give a fused module the weight of an ordinary convolution, and its bias if it has one, with dtype and device of `like`."""
    weight = module.transform(weight)
    module.weight = nn.Parameter(empty(weight.shape, like).copy_(weight), requires_grad=False)
    if bias is not None:
        module.bias = nn.Parameter(bias.to(like), requires_grad=False)
