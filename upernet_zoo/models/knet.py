"""K-Net's decode head (Zhang et al. 2021, "K-Net: Towards Unified Image Segmentation") on that of UPerNet.

The classifier's weights are the first kernels, one for each class; each stage mixes into every kernel what it has selected, and classifies
again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import KernelUpdateConfig, UPerNetConfig
from .blocks import attend
from .heads import UPerHead

__all__ = ["KNetHead", "KernelAttention", "KernelUpdate", "KernelUpdator", "refine"]


class KernelUpdator(nn.Module):
    """Mixes what a kernel has selected into the kernel, through two gates (equations 4 and 5 of the paper).

    Args:
        channels: that are taken together; a kernel of twice as many is two, with the same weights.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dynamic_layer = nn.Linear(channels, 2 * channels)
        self.input_layer = nn.Linear(channels, 2 * channels)
        self.input_gate = nn.Linear(channels, channels)
        self.update_gate = nn.Linear(channels, channels)
        self.norm_in = nn.LayerNorm(channels)
        self.norm_out = nn.LayerNorm(channels)
        self.input_norm_in = nn.LayerNorm(channels)
        self.input_norm_out = nn.LayerNorm(channels)
        self.fc_layer = nn.Linear(channels, channels)
        self.fc_norm = nn.LayerNorm(channels)

    def forward(self, selected: Tensor, kernels: Tensor) -> Tensor:
        """What was selected and the kernels, (N, classes, C) each, C a multiple of `channels` -> new kernels (N, classes, C)."""
        shape, channels = kernels.shape, self.fc_norm.weight.shape[0]
        dynamic_in, dynamic_out = self.dynamic_layer(selected.reshape(-1, channels)).chunk(2, -1)
        kernel_in, kernel_out = self.input_layer(kernels.reshape(-1, channels)).chunk(2, -1)
        gate = kernel_in * dynamic_in
        x = self.norm_in(self.update_gate(gate)).sigmoid() * self.norm_out(dynamic_out)
        x = x + self.input_norm_in(self.input_gate(gate)).sigmoid() * self.input_norm_out(kernel_out)
        return F.relu(self.fc_norm(self.fc_layer(x))).view(shape)


class KernelAttention(nn.Module):
    """Multi-head attention over the classes."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(channels, 3 * channels)
        self.out_proj = nn.Linear(channels, channels)

    def forward(self, kernels: Tensor) -> Tensor:
        """(N, classes, C) -> the same shape."""
        attended: Tensor = self.out_proj(attend(self.in_proj(kernels), self.heads))
        return attended


class KernelUpdate(nn.Module):
    """One stage: new kernels, and the logits that they give."""

    def __init__(self, channels: int, config: KernelUpdateConfig) -> None:
        super().__init__()
        self.feat_transform = nn.Conv2d(channels, channels, 1)
        self.updator = KernelUpdator(config.channels)
        self.attention = KernelAttention(channels, config.num_heads)
        self.attention_norm = nn.LayerNorm(channels)
        self.ffn = nn.Sequential(nn.Linear(channels, config.hidden), nn.ReLU(), nn.Linear(config.hidden, channels))
        self.ffn_norm = nn.LayerNorm(channels)
        self.mask_fc = nn.Sequential(nn.Linear(channels, channels, bias=False), nn.LayerNorm(channels), nn.ReLU())
        self.fc_mask = nn.Linear(channels, channels)

    def forward(self, feature: Tensor, kernels: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Feature (N, C, h, w), kernels (N, classes, C) and logits (N, classes, h, w) -> new logits and new kernels."""
        x = self.feat_transform(feature)
        selected = torch.einsum("nkhw,nchw->nkc", logits.softmax(1), x)
        kernels = self.updator(selected, kernels)
        kernels = self.attention_norm(kernels + self.attention(kernels))
        kernels = self.ffn_norm(kernels + self.ffn(kernels))
        return torch.einsum("nkc,nchw->nkhw", self.fc_mask(self.mask_fc(kernels)), x), kernels


def refine(updates: nn.ModuleList, feature: Tensor, logits: Tensor, weight: Tensor) -> list[Tensor]:
    """Logits of each stage, (N, classes, h, w).

    Args:
        updates: the stages.
        feature: (N, C, h, w), what the classifier has seen.
        logits: the classifier's.
        weight: the classifier's, (classes, C): the first kernels.
    """
    kernels = weight[None].expand(feature.shape[0], -1, -1)
    found = []
    for update in updates:
        logits, kernels = update(feature, kernels, logits)
        found.append(logits)
    return found


class KNetHead(UPerHead):
    """UPerNet's decode head, and stages that refine its kernels. Each stage's logits have a loss in training."""

    def __init__(self, config: UPerNetConfig, updates: KernelUpdateConfig) -> None:
        super().__init__(config)
        self.updates = nn.ModuleList(KernelUpdate(config.channels, updates) for _ in range(updates.stages))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Four features (N, C, h, w) -> logits (N, num_classes, h, w) at the first one's size: those of the last stage."""
        return self.training_logits(features)[-1]

    def training_logits(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The same, of the classifier and of every stage."""
        feature = self.fuse_features(features)
        logits = self.classifier(self.dropout(feature))
        return [logits, *refine(self.updates, feature, logits, self.classifier.weight.flatten(1))]

    def reset_parameters(self) -> None:
        """As UPerNet's, and the stages' weights Xavier uniform, as in the original training."""
        super().reset_parameters()
        for parameter in self.updates.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def peak_values(self, pixels: int) -> float:
        """As UPerNet's; or the feature, the transformed one, and logits and masks of two stages."""
        stride = self.config.feature_reductions[0]
        return max(super().peak_values(pixels), (3 * self.config.channels + 4 * self.config.num_classes) * pixels / stride**2)
