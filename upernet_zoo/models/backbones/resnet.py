"""ResNet (He et al. 2016) and ResNet-V1c, whose stem is three 3x3 convolutions in place of one of 7x7 (He et al. 2019, "Bag of Tricks",
model C).

The stride of a bottleneck sits on its 3x3 convolution ("pytorch" style). Modules are named as in torchvision.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ...config import RESNET_STAGES, UPerNetConfig


def _downsample(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (depths 18 and 34)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 convolutions and a shortcut (depths 50 and 101)."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(in_channels, width * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + shortcut)


@contextlib.contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Let batch norms train without counting what they see: when a block is computed again, its pictures have been counted already."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm) and module.training]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(batches)


def _checkpointed(block: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(block, x, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), _statistics_kept(block)))


class FeatureInfo:
    """What the features of a backbone are, asked as timm's `features_only` models are asked.

    Args:
        channels: of each feature.
    """

    def __init__(self, channels: Sequence[int]):
        self.info = [{"num_chs": n, "reduction": 4 * 2**i, "module": f"layer{i + 1}", "index": i} for i, n in enumerate(channels)]

    def channels(self) -> list[int]:
        """Channels of each feature."""
        return [feature["num_chs"] for feature in self.info]

    def reduction(self) -> list[int]:
        """Stride of each feature: pixels of the picture to one of the feature, along each axis."""
        return [feature["reduction"] for feature in self.info]

    def module_name(self) -> list[str]:
        """Name of the module that gives each feature."""
        return [feature["module"] for feature in self.info]

    def __len__(self) -> int:
        return len(self.info)


class ResNet(nn.Module):
    """ResNet or ResNet-V1c of depth 18, 34, 50 or 101 and any width, without a classifier.

    Args:
        config: `depth`, `in_channels`, `deep_stem`, `stem_channels` and `base_channels` are used.

    Attributes:
        feature_info: channels and strides of the features.
        grad_checkpointing: in training, keep no more than the input of each block, and compute the rest again for the gradients.
    """

    def __init__(self, config: UPerNetConfig):
        super().__init__()
        bottleneck, blocks = RESNET_STAGES[config.depth]
        block = Bottleneck if bottleneck else BasicBlock
        stem, half = config.stem_channels, config.stem_channels // 2
        if config.deep_stem:
            self.stem = nn.Sequential(
                *self._stem_layer(config.in_channels, half, 2), *self._stem_layer(half, half, 1), *self._stem_layer(half, stem, 1)
            )
        else:
            conv = nn.Conv2d(config.in_channels, stem, 7, 2, 3, bias=False)
            self.stem = nn.Sequential(conv, nn.BatchNorm2d(stem), nn.ReLU(inplace=True))
        self.grad_checkpointing = False
        self.feature_info = FeatureInfo(config.feature_channels)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        in_channels = stem
        for i, (count, stride) in enumerate(zip(blocks, (1, 2, 2, 2))):
            width = config.base_channels * 2**i
            layers = []
            for j in range(count):
                layers.append(block(in_channels, width, stride if j == 0 else 1))
                in_channels = width * block.expansion
            self.add_module(f"layer{i + 1}", nn.Sequential(*layers))

    @staticmethod
    def _stem_layer(in_channels: int, out_channels: int, stride: int) -> tuple[nn.Module, ...]:
        conv = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        return conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)

    @property
    def first_conv(self) -> nn.Conv2d:
        """The convolution that sees the picture."""
        return self.stem[0]

    def _layers(self) -> tuple[nn.Sequential, ...]:
        return self.layer1, self.layer2, self.layer3, self.layer4

    def freeze(self, stages: int) -> None:
        """Take no gradients for the stem and the first `stages` stages."""
        for module in (self.stem, *self._layers()[:stages]):
            module.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Picture (N, in_channels, H, W) -> features at strides 4, 8, 16, 32; a side of n pixels becomes ceil(n / stride)."""
        x = self.maxpool(self.stem(x))
        features = []
        for layer in self._layers():
            if self.grad_checkpointing and self.training and torch.is_grad_enabled():
                for block in layer:
                    x = _checkpointed(block, x)
            else:
                x = layer(x)
            features.append(x)
        return features

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Kaiming normal (fan out), and zero for the last batch norm of each block, as in the original training."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, (BasicBlock, Bottleneck)):
                nn.init.zeros_((module.bn3 if isinstance(module, Bottleneck) else module.bn2).weight)
