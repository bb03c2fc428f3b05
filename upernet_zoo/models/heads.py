"""The heads of UPerNet (Xiao et al. 2018): pyramid pooling, the decode head, and the auxiliary head that only training uses."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.fx
from torch import Tensor, nn

from ..config import AuxiliaryConfig, UPerNetConfig
from .layers import ConvBNReLU, resize

__all__ = ["AuxiliaryHead", "PyramidPooling", "UPerHead", "adaptive_average_pool", "at_least_float32", "feature_values", "pooling_matrix"]

# leaves for torch.fx: what they do depends on sizes that are not known while it traces (by name, in the module that calls them)
torch.fx.wrap("resize")
torch.fx.wrap("adaptive_average_pool")


def pooling_matrix(size: int, bins: int, like: Tensor) -> Tensor:
    """(bins, size) matrix that averages along an axis over the bins of adaptive average pooling, with dtype and device of `like`.

    Bin i covers floor(i * size / bins) up to, not including, ceil((i + 1) * size / bins).
    """
    i = torch.arange(bins, device=like.device)[:, None]
    x = torch.arange(size, device=like.device)[None]
    start = torch.div(i * size, bins, rounding_mode="floor")
    end = torch.div((i + 1) * size + bins - 1, bins, rounding_mode="floor")
    inside = ((x >= start) & (x < end)).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


def at_least_float32(x: Tensor) -> Tensor:
    """The same in float32 if it is of a narrower type."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def adaptive_average_pool(x: Tensor, bins: int) -> Tensor:
    """`F.adaptive_avg_pool2d(x, bins)` as two small matrix products, in float32 at least.

    Unlike the original it exports with dynamic sizes, and it runs on devices that lack the operator for sizes that do not divide.
    """
    wide = at_least_float32(x)
    rows = pooling_matrix(x.shape[-2], bins, wide)
    columns = pooling_matrix(x.shape[-1], bins, wide)
    return (rows @ (wide @ columns.T)).to(x.dtype)  # in the other order torch.export cannot keep both sizes dynamic


class PyramidPooling(nn.Module):
    """Pyramid pooling (Zhao et al. 2017): the feature beside its averages over a few bins per axis, and a 3x3 bottleneck."""

    def __init__(self, in_channels: int, channels: int, scales: Sequence[int], align_corners: bool) -> None:
        super().__init__()
        self.scales = tuple(scales)
        self.align_corners = align_corners
        self.branches = nn.ModuleList(ConvBNReLU(in_channels, channels, 1) for _ in self.scales)
        self.bottleneck = ConvBNReLU(in_channels + len(self.scales) * channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> (N, channels, h, w)."""
        pooled = [branch(adaptive_average_pool(x, bins)) for bins, branch in zip(self.scales, self.branches)]
        out: Tensor = self.bottleneck(torch.cat([x] + [resize(p, x.shape[2:], self.align_corners) for p in pooled], 1))
        return out


class UPerHead(nn.Module):
    """The decode head: pyramid pooling on the last feature, a feature pyramid over the other three, all fused at the first one's size."""

    def __init__(self, config: UPerNetConfig) -> None:
        super().__init__()
        self.config = config
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
        """Four features (N, C, h, w) -> logits (N, num_classes, h, w) at the first one's size."""
        logits: Tensor = self.classifier(self.dropout(self.fuse_features(features)))
        return logits

    def training_logits(self, features: Sequence[Tensor]) -> list[Tensor]:
        """All logits that have a loss in training, the model's own last."""
        return [self(features)]

    def fuse_features(self, features: Sequence[Tensor]) -> Tensor:
        """Four features (N, C, h, w) -> (N, channels, h, w) at the first one's size, which the classifier takes."""
        # by index, as torch.fx cannot iterate over what a leaf gives
        maps = [conv(features[i]) for i, conv in enumerate(self.lateral_convs)] + [self.pyramid_pooling(features[-1])]
        for i in range(len(maps) - 1, 0, -1):
            maps[i - 1] = maps[i - 1] + resize(maps[i], maps[i - 1].shape[2:], self.align_corners)
        maps = [conv(m) for conv, m in zip(self.fpn_convs, maps)] + maps[-1:]
        maps[1:] = [resize(m, maps[0].shape[2:], self.align_corners) for m in maps[1:]]
        out: Tensor = self.fpn_bottleneck(torch.cat(maps, 1))
        return out

    def reset_parameters(self) -> None:
        """Kaiming normal, as in the original training."""
        _reset_convolutions(self)

    def peak_values(self, pixels: int) -> float:
        """How many numbers are held at once, at most, for the logits of so many pixels, logits left out.

        At the first feature's stride: the features; their maps, these resized, all of them concatenated and once more in the
        convolution's own layout.
        """
        return feature_values(self.config, pixels) + 14 * self.config.channels * pixels / self.config.feature_reductions[0] ** 2


def feature_values(config: UPerNetConfig, pixels: int) -> float:
    """How many numbers the four features have that the heads take of so many pixels."""
    return pixels * sum(channels / stride**2 for channels, stride in zip(config.feature_channels, config.feature_reductions))


class AuxiliaryHead(nn.Module):
    """A few 3x3 convolutions on one feature; their loss helps the backbone in training.

    Args:
        in_channels: of that feature.
        config: which feature, width and number of convolutions.
        num_classes: channels of the logits.
    """

    def __init__(self, in_channels: int, config: AuxiliaryConfig, num_classes: int) -> None:
        super().__init__()
        self.feature = config.feature
        widths = [in_channels, *[config.channels] * config.convs]
        self.convs = nn.Sequential(*(ConvBNReLU(before, after, 3) for before, after in itertools.pairwise(widths)))
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(config.channels, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Four features -> logits (N, num_classes, h, w) at the size of the one that it takes."""
        logits: Tensor = self.classifier(self.dropout(self.convs(features[self.feature])))
        return logits

    def reset_parameters(self) -> None:
        """Kaiming normal, as in the original training."""
        _reset_convolutions(self)


def _reset_convolutions(head: nn.Module) -> None:
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
