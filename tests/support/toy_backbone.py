"""A backbone and a neck of somebody else's, registered the public way: unlike a ResNet in all that the contract allows.

LayerNorm and no batch norm; parameters that belong to no layer; four features at one stride; widths that do not grow; and a neck.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

import upernet_zoo as uz


@dataclass(frozen=True, kw_only=True)
class ToyConfig(uz.BackboneConfig):
    kind = "toy"
    width: int = 12
    blocks: int = 1  # of a stage
    side: int | None = None  # of the only pictures that are taken

    @property
    def channels(self):
        return (self.width,) * 4

    @property
    def reductions(self):
        return (8,) * 4

    @property
    def title(self):
        return f"Toy-{self.width}"

    @property
    def input_size(self):
        return None if self.side is None else (self.side, self.side)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x + self.gamma * F.gelu(self.linear(self.norm(x)))


@uz.register_backbone
class Toy(uz.Backbone):
    config_class = ToyConfig

    def __init__(self, config):
        super().__init__(config, [f"blocks.{i}" for i in range(4)])
        self.embed = nn.Conv2d(config.in_channels, config.width, 8, 8)
        self.offset = nn.Parameter(torch.zeros(config.width))
        self.blocks = nn.ModuleList(nn.Sequential(*(Block(config.width) for _ in range(config.blocks))) for _ in range(4))

    def forward(self, x):
        x = F.pad(x, (0, -x.shape[3] % 8, 0, -x.shape[2] % 8))
        x = self.embed(x).permute(0, 2, 3, 1) + self.offset
        features = []
        for stage in self.blocks:
            x = stage(x)
            features.append(x.permute(0, 3, 1, 2))
        return features

    def reset_parameters(self):
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.trunc_normal_(module.weight, std=0.1)

    def stages(self):
        return [[*self.embed.parameters(), self.offset], *(list(stage.parameters()) for stage in self.blocks)]

    def no_decay(self):
        return super().no_decay() | {"offset"}  # and not `gamma`, though it is a vector

    @classmethod
    def recognize(cls, tensors, settings, library):
        if "embed.weight" not in tensors or "offset" not in tensors:
            return None
        width, in_channels = tensors["embed.weight"].shape[:2]
        blocks = len({key.split(".")[2] for key in tensors if key.startswith("blocks.0.")})
        return ToyConfig(width=width, blocks=blocks, in_channels=in_channels)

    @property
    def first_conv(self):
        return self.embed

    def peak_values(self, pixels):
        return 6 * self.config.width * pixels / 64


@dataclass(frozen=True, kw_only=True)
class ToyNeckConfig(uz.NeckConfig):
    kind = "toy_pyramid"
    width: int = 8

    def channels(self, backbone):
        return (self.width,) * 4

    def reductions(self, backbone):
        return backbone.reductions


@uz.register_neck
class ToyNeck(uz.Neck):
    config_class = ToyNeckConfig

    def __init__(self, config, backbone):
        super().__init__(config, backbone)
        self.laterals = nn.ModuleList(nn.Conv2d(channels, config.width, 1) for channels in backbone.channels)

    @classmethod
    def recognize(cls, tensors, settings):
        return ToyNeckConfig(width=len(tensors["laterals.0.weight"])) if "laterals.0.weight" in tensors else None

    def forward(self, features):
        return [lateral(feature) for lateral, feature in zip(self.laterals, features)]

    def reset_parameters(self):
        for lateral in self.laterals:
            nn.init.trunc_normal_(lateral.weight, std=0.1)

    def peak_values(self, pixels):
        return 4 * self.config.width * pixels / 64
