"""What several parts of a model share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils.checkpoint import checkpoint

__all__ = ["ConvBNReLU", "checkpointed", "norms_and_biases", "resize"]

_NORMS = (_BatchNorm, _InstanceNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class ConvBNReLU(nn.Module):
    """Convolution without bias (padded to keep the size), batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> (N, out_channels, h, w)."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


def resize(x: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """Bilinear resize of (N, C, h, w) to (N, C, *size)."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)


def norms_and_biases(module: nn.Module) -> set[str]:
    """Names of the parameters that are a norm's, or a bias."""
    found = set()
    for prefix, part in module.named_modules():
        for name, _ in part.named_parameters(recurse=False):
            if isinstance(part, _NORMS) or name.endswith("bias"):
                found.add(f"{prefix}.{name}" if prefix else name)
    return found


@contextlib.contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Let batch norms train without counting what they see: when a block is computed again, its pictures have been counted already."""
    norms: list[Any] = [module for module in block.modules() if isinstance(module, _BatchNorm) and module.training]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(batches)


def checkpointed(block: nn.Module, x: Tensor, enable: bool, *more: Any) -> Tensor:
    """`block(x, *more)`; if `enable`, and gradients are taken in training, what is inside is computed again for the gradients, not kept."""
    if not (enable and block.training and torch.is_grad_enabled()):
        out: Tensor = block(x, *more)
    else:
        out = checkpoint(block, x, *more, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), _statistics_kept(block)))
    return out
