"""ResNet-V1c: a ResNet whose 7x7 stem is three 3x3 convolutions (He et al. 2019, "Bag of Tricks", model C).

The stride of a bottleneck sits on its 3x3 convolution ("pytorch" style). Modules are named as in torchvision.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

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


class ResNetV1c(nn.Module):
    """ResNet-V1c of depth 18, 34, 50 or 101 and any width, without a classifier.

    Args:
        config: `depth`, `in_channels`, `stem_channels` and `base_channels` are used.
    """

    def __init__(self, config: UPerNetConfig):
        super().__init__()
        bottleneck, blocks = RESNET_STAGES[config.depth]
        block = Bottleneck if bottleneck else BasicBlock
        stem, half = config.stem_channels, config.stem_channels // 2
        self.stem = nn.Sequential(
            *self._stem_layer(config.in_channels, half, 2), *self._stem_layer(half, half, 1), *self._stem_layer(half, stem, 1)
        )
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

    def forward(self, x: Tensor) -> list[Tensor]:
        """Picture (N, in_channels, H, W) -> features at strides 4, 8, 16, 32; a side of n pixels becomes ceil(n / stride)."""
        x = self.maxpool(self.stem(x))
        features = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
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
