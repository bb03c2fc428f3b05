"""The heads of UPerNet (Xiao et al. 2018): pyramid pooling, the decode head, and the auxiliary head that only training uses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import UPerNetConfig


class ConvBNReLU(nn.Module):
    """Convolution without bias (padded to keep the size), batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


def resize(x: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """Bilinear resize of (N, C, h, w) to (N, C, *size)."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)


def pooling_matrix(size: int, bins: int, device: torch.device) -> Tensor:
    """(bins, size) float32 matrix that averages along an axis over the bins of adaptive average pooling.

    Bin i covers floor(i * size / bins) up to, not including, ceil((i + 1) * size / bins).
    """
    i = torch.arange(bins, device=device)[:, None]
    x = torch.arange(size, device=device)[None]
    start = torch.div(i * size, bins, rounding_mode="floor")
    end = torch.div((i + 1) * size + bins - 1, bins, rounding_mode="floor")
    inside = ((x >= start) & (x < end)).float()
    return inside / inside.sum(1, keepdim=True)


def adaptive_average_pool(x: Tensor, bins: int) -> Tensor:
    """`F.adaptive_avg_pool2d(x, bins)` as two small matrix products, in float32.

    Unlike the original it exports with dynamic sizes, and it runs on devices that lack the operator for sizes that do not divide.
    """
    rows = pooling_matrix(x.shape[-2], bins, x.device)
    columns = pooling_matrix(x.shape[-1], bins, x.device)
    return (rows @ (x.float() @ columns.T)).to(x.dtype)  # in the other order torch.export cannot keep both sizes dynamic


class PyramidPooling(nn.Module):
    """Pyramid pooling (Zhao et al. 2017): the feature beside its averages over a few bins per axis, and a 3x3 bottleneck."""

    def __init__(self, in_channels: int, channels: int, scales: Sequence[int], align_corners: bool):
        super().__init__()
        self.scales = tuple(scales)
        self.align_corners = align_corners
        self.branches = nn.ModuleList(ConvBNReLU(in_channels, channels, 1) for _ in self.scales)
        self.bottleneck = ConvBNReLU(in_channels + len(self.scales) * channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> (N, channels, h, w)."""
        pooled = [branch(adaptive_average_pool(x, bins)) for bins, branch in zip(self.scales, self.branches)]
        return self.bottleneck(torch.cat([x] + [resize(p, x.shape[2:], self.align_corners) for p in pooled], 1))


class UPerHead(nn.Module):
    """The decode head: pyramid pooling on the last feature, a feature pyramid over the other three, all fused at stride 4."""

    def __init__(self, config: UPerNetConfig):
        super().__init__()
        *lower, last = config.feature_channels
        channels = config.channels
        self.align_corners = config.align_corners
        self.pyramid_pooling = PyramidPooling(last, channels, config.pool_scales, config.align_corners)
        self.lateral_convs = nn.ModuleList(ConvBNReLU(c, channels, 1) for c in lower)
        self.fpn_convs = nn.ModuleList(ConvBNReLU(channels, channels, 3) for _ in lower)
        self.fpn_bottleneck = ConvBNReLU(len(config.feature_channels) * channels, channels, 3)
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(channels, config.num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Four features at strides 4, 8, 16, 32 -> logits (N, num_classes, h, w) at stride 4."""
        maps = [conv(f) for conv, f in zip(self.lateral_convs, features)] + [self.pyramid_pooling(features[-1])]
        for i in range(len(maps) - 1, 0, -1):
            maps[i - 1] = maps[i - 1] + resize(maps[i], maps[i - 1].shape[2:], self.align_corners)
        maps = [conv(m) for conv, m in zip(self.fpn_convs, maps)] + maps[-1:]
        maps[1:] = [resize(m, maps[0].shape[2:], self.align_corners) for m in maps[1:]]
        return self.classifier(self.dropout(self.fpn_bottleneck(torch.cat(maps, 1))))


class AuxiliaryHead(nn.Module):
    """A one-convolution head on the third feature; its loss helps the backbone in training."""

    def __init__(self, config: UPerNetConfig):
        super().__init__()
        self.conv = ConvBNReLU(config.feature_channels[2], config.aux_channels, 3)
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(config.aux_channels, config.num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Four features -> logits (N, num_classes, h, w) at stride 16."""
        return self.classifier(self.dropout(self.conv(features[2])))
