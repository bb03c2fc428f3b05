"""ResNet (He et al. 2016) and ResNet-V1c.

V1c's stem is three 3x3 convolutions in place of one of 7x7 (He et al. 2019, "Bag of Tricks", model C). The stride of a bottleneck sits on
its 3x3 convolution ("pytorch" style). Modules are named as in torchvision.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import BackboneConfig, fail, require_bool, require_integer
from ...errors import ArgumentError, ConfigError
from ...registry import register_backbone
from ..fused.layers import DirectConv, Pointwise, fold, inference, set_weights
from ..key_tables import KeyTable
from ..layers import checkpointed
from ._base import BATCH_NORMS, Backbone, count_blocks, require_settings

__all__ = ["STAGES", "BasicBlock", "Bottleneck", "FusedBlock", "FusedResNet", "ResNet", "ResNetConfig"]

# depth -> (bottleneck blocks?, blocks per stage); He et al. 2016, table 1
STAGES: dict[int, tuple[bool, tuple[int, int, int, int]]] = {
    18: (False, (2, 2, 2, 2)),
    34: (False, (3, 4, 6, 3)),
    50: (True, (3, 4, 6, 3)),
    101: (True, (3, 4, 23, 3)),
}
# settings of mmsegmentation that change what is computed, and the values that this module computes
_SETTINGS: dict[tuple[str, ...], tuple[Any, ...]] = {
    ("type",): ("ResNetV1c", "ResNet"),
    ("num_stages",): (4,),
    ("strides",): ((1, 2, 2, 2),),
    ("dilations",): ((1, 1, 1, 1),),
    ("out_indices",): ((0, 1, 2, 3),),
    ("style",): ("pytorch",),
    ("avg_down",): (False,),
    ("multi_grid",): (None,),
    ("dcn",): (None,),
    ("plugins",): (None,),
    ("conv_cfg",): (None,),
    ("norm_cfg", "type"): BATCH_NORMS,
    ("norm_cfg", "eps"): (1e-5,),
}
_TIMM_WIDTH = 64  # of the stem and of the first stage in timm's ResNets, which transformers uses
# (deep stem?, depth) -> timm's name
_TIMM = {
    (True, 50): "resnet50c",
    (True, 101): "resnet101c",
    (False, 18): "resnet18",
    (False, 34): "resnet34",
    (False, 50): "resnet50",
    (False, 101): "resnet101",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetConfig(BackboneConfig):
    """Options of a ResNet or ResNet-V1c.

    Args:
        depth: layers: 18, 34, 50 or 101.
        base_channels: width of the first stage's 3x3 convolutions; stage i has `base_channels * 2**i` (times 4 with bottlenecks).
        stem_channels: width of the stem's output; the first two convolutions of a deep stem have half of it.
        deep_stem: three 3x3 convolutions (ResNet-V1c) in place of the plain ResNet's one of 7x7.
        in_channels: channels of the picture.

    Raises:
        ConfigError: a value outside what the modules can build.

    Examples:
        >>> import upernet_zoo as uz
        >>> uz.ResNetConfig(depth=18, base_channels=16).channels
        (16, 32, 64, 128)
    """

    kind: ClassVar[str] = "resnet"
    depth: int
    base_channels: int = 64
    stem_channels: int = 64
    deep_stem: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = "ResNetConfig"
        if type(self.depth) is not int or self.depth not in STAGES:
            fail(owner, "depth", f"one of {', '.join(map(str, STAGES))}", self.depth)
        require_integer(owner, "base_channels", self.base_channels)
        require_bool(owner, "deep_stem", self.deep_stem)
        if require_integer(owner, "stem_channels", self.stem_channels) % 2 and self.deep_stem:
            fail(owner, "stem_channels", "even (the stem's first convolutions have half of it)", self.stem_channels)

    @property
    def title(self) -> str:
        """Such as "ResNet-V1c-50"."""
        return f"ResNet-V1c-{self.depth}" if self.deep_stem else f"ResNet-{self.depth}"

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the four features."""
        expansion = 4 if STAGES[self.depth][0] else 1
        return tuple(self.base_channels * expansion * 2**i for i in range(4))

    @property
    def reductions(self) -> tuple[int, ...]:
        """4, 8, 16 and 32."""
        return 4, 8, 16, 32


def _downsample(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (depths 18 and 34)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, width, ceil(H / stride), ceil(W / stride))."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.relu(self.bn2(self.conv2(x)) + shortcut)
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 convolutions and a shortcut (depths 50 and 101)."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
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
        """(N, in_channels, H, W) -> (N, 4 * width, ceil(H / stride), ceil(W / stride))."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        out: Tensor = self.relu(self.bn3(self.conv3(x)) + shortcut)
        return out


@register_backbone
class ResNet(Backbone):
    """ResNet or ResNet-V1c of depth 18, 34, 50 or 101 and any width, without a classifier.

    Args:
        config: its options.
    """

    config_class = ResNetConfig
    mmseg_known = frozenset(["avg_down", "multi_grid", "dcn", "stage_with_dcn", "plugins", "conv_cfg", "zero_init_residual", "deep_stem"])
    config: ResNetConfig
    key_tables: ClassVar[Mapping[str, tuple[KeyTable, ...]]] = {
        "mmsegmentation": (
            KeyTable(ours=("backbone.stem.3.weight", "backbone.layer1.0.conv1.weight"), theirs=("backbone.stem.3.weight",)),
            KeyTable(
                ("backbone.stem.0.", "backbone.conv1."),
                ("backbone.stem.1.", "backbone.bn1."),
                ours=("backbone.stem.0.weight", "backbone.layer1.0.conv1.weight"),
                theirs=("backbone.conv1.weight", "backbone.layer1.0.conv1.weight"),
            ),
        ),
        "transformers": (
            KeyTable(
                ("backbone.stem.7.", "backbone._backbone.bn1."),
                ("backbone.stem.", "backbone._backbone.conv1."),
                ("backbone.", "backbone._backbone."),
                ours=("backbone.stem.3.weight", "backbone.layer1.0.conv1.weight"),
                theirs=("backbone._backbone.conv1.3.weight",),
            ),
            KeyTable(
                ("backbone.stem.0.", "backbone._backbone.conv1."),
                ("backbone.stem.1.", "backbone._backbone.bn1."),
                ("backbone.", "backbone._backbone."),
                ours=("backbone.stem.0.weight", "backbone.layer1.0.conv1.weight"),
                theirs=("backbone._backbone.conv1.weight", "backbone._backbone.layer1.0.conv1.weight"),
            ),
        ),
    }

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__(config, [f"layer{i}" for i in (1, 2, 3, 4)])
        bottleneck, blocks = STAGES[config.depth]
        block = Bottleneck if bottleneck else BasicBlock
        stem, half = config.stem_channels, config.stem_channels // 2
        if config.deep_stem:
            self.stem = nn.Sequential(
                *self._stem_layer(config.in_channels, half, 2), *self._stem_layer(half, half, 1), *self._stem_layer(half, stem, 1)
            )
        else:
            conv = nn.Conv2d(config.in_channels, stem, 7, 2, 3, bias=False)
            self.stem = nn.Sequential(conv, nn.BatchNorm2d(stem), nn.ReLU(inplace=True))
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

    def _layers(self) -> tuple[nn.Sequential, ...]:
        return cast(tuple[nn.Sequential, ...], (self.layer1, self.layer2, self.layer3, self.layer4))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Picture (N, in_channels, H, W) -> features at strides 4, 8, 16, 32; a side of n pixels becomes ceil(n / stride)."""
        x = self.maxpool(self.stem(x))
        features = []
        for layer in self._layers():
            for block in layer:
                x = checkpointed(block, x, self.grad_checkpointing)
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

    def stages(self) -> list[list[nn.Parameter]]:
        """The stem's parameters, then those of each of the four stages."""
        return [list(module.parameters()) for module in (self.stem, *self._layers())]

    @property
    def first_conv(self) -> nn.Conv2d:
        """The convolution that sees the picture."""
        return cast(nn.Conv2d, self.stem[0])

    def peak_values(self, pixels: int) -> float:
        """In the stem, at stride 2: a map, the next, and one in the convolution's own layout."""
        return 3 * self.config.stem_channels * pixels / 4

    def fuse(self) -> FusedResNet:
        """Batch norm folded, and 1x1 convolutions as matrix products."""
        return FusedResNet.of(self)

    @classmethod
    def recognize(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], library: str) -> ResNetConfig | None:
        """The config of a checkpoint's ResNet. See `Backbone.recognize`."""
        convs = [tensors.get(key) for key in ("stem.0.weight", "layer1.0.conv1.weight", "layer4.0.conv1.weight")]
        if any(conv is None or conv.dim() != 4 for conv in convs):
            return None
        require_settings(settings, _SETTINGS, "model.backbone")
        width = tensors["layer1.0.conv1.weight"].shape[0]
        known = "known are ResNet and ResNet-V1c"
        if "layer2.0.downsample.2.weight" in tensors:
            raise ConfigError(f"has a ResNet-V1d backbone (average pooling in its shortcuts); {known}.")
        bottleneck = "layer1.0.conv3.weight" in tensors
        if bottleneck and tensors["layer1.0.conv2.weight"].shape[:2] != (width, width):
            raise ConfigError(f"has a ResNeXt or ResNeSt backbone (grouped convolutions); {known}.")
        blocks = tuple(count_blocks(tensors, f"layer{i}.") for i in range(1, 5))
        depth = next((depth for depth, stages in STAGES.items() if stages == (bottleneck, blocks)), None)
        if depth is None:
            kind = "bottleneck" if bottleneck else "basic"
            raise ConfigError(f"a ResNet with {blocks} {kind} blocks is not known; depths are {', '.join(map(str, STAGES))}.")
        first = tensors["stem.0.weight"]
        deep_stem = first.shape[2:] != (7, 7)
        stem = tensors.get("stem.6.weight") if deep_stem else first
        if stem is None:
            raise ConfigError(f"has a ResNet whose stem is one convolution of {tuple(first.shape[2:])}; {known}.")
        return ResNetConfig(depth=depth, base_channels=width, stem_channels=stem.shape[0], deep_stem=deep_stem, in_channels=first.shape[1])

    @classmethod
    def to_mmseg(cls, config: ResNetConfig) -> dict[str, Any]:
        """`model.backbone` of a config of mmsegmentation 0.x."""
        return {
            "type": "ResNetV1c" if config.deep_stem else "ResNet",
            "depth": config.depth,
            "in_channels": config.in_channels,
            "stem_channels": config.stem_channels,
            "base_channels": config.base_channels,
            "num_stages": 4,
            "out_indices": (0, 1, 2, 3),
            "dilations": (1, 1, 1, 1),
            "strides": (1, 2, 2, 2),
            "norm_cfg": {"type": "BN", "requires_grad": True},  # SyncBN of one process; runs without a GPU
            "norm_eval": False,
            "style": "pytorch",
            "contract_dilation": True,
        }

    @classmethod
    def to_transformers(cls, config: ResNetConfig) -> dict[str, Any]:
        """A ResNet of timm, of which transformers makes a backbone."""
        if (config.base_channels, config.stem_channels) != (_TIMM_WIDTH, _TIMM_WIDTH):
            widths = f"{config.stem_channels} and {config.base_channels}"
            raise ArgumentError(f"its backbone has widths {widths}, and timm's have {_TIMM_WIDTH}")
        if (config.deep_stem, config.depth) not in _TIMM:
            raise ArgumentError(f"timm has no {config.title}")
        return {"model_type": "timm_backbone", "backbone": _TIMM[config.deep_stem, config.depth], "out_indices": (1, 2, 3, 4)}

    @classmethod
    def from_transformers(cls, settings: Mapping[str, Any]) -> ResNetConfig | None:
        """The config of timm's ResNet."""
        found = next((key for key, name in _TIMM.items() if name == settings.get("backbone")), None)
        if found is None:
            return None
        return ResNetConfig(deep_stem=found[0], depth=found[1], in_channels=settings.get("num_channels", 3))


class FusedBlock(nn.Module):
    """A basic block or bottleneck of the backbone, batch norm folded."""

    def __init__(self, bottleneck: bool, in_channels: int, width: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bottleneck = bottleneck
        self.stride = stride
        self.conv1: nn.Module
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
            out: Tensor = y.add_(shortcut).relu_()
            return out
        y = y.relu_().view(-1, y.shape[-1])
        flat = shortcut.view(-1, shortcut.shape[-1])
        return flat.addmm_(y, self.conv3.weight).add_(self.conv3.bias).relu_().view(shortcut.shape)


class FusedResNet(nn.Module):
    """The backbone, batch norm folded."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        bottleneck, blocks = STAGES[config.depth]
        stem, half = config.stem_channels, config.stem_channels // 2
        self.config = config
        if config.deep_stem:
            self.stem = nn.ModuleList([DirectConv(config.in_channels, half, 2), DirectConv(half, half), DirectConv(half, stem)])
        else:
            self.stem = nn.ModuleList([DirectConv(config.in_channels, stem, 2, kernel=7)])
        in_channels = stem
        for i, (count, out_channels) in enumerate(zip(blocks, config.channels)):
            layer = nn.ModuleList()
            for j in range(count):
                stride = 2 if i > 0 and j == 0 else 1
                layer.append(FusedBlock(bottleneck, in_channels, config.base_channels * 2**i, out_channels, stride))
                in_channels = out_channels
            self.add_module(f"layer{i + 1}", layer)

    @inference
    def forward(self, x: Tensor) -> list[Tensor]:
        """Picture (N, in_channels, H, W) -> features (N, C, h, w) at strides 4, 8, 16, 32, channels last in memory."""
        x = x.permute(0, 2, 3, 1).contiguous()
        for conv in self.stem:
            x = conv(x).relu_()
        x = F.max_pool2d(x.permute(0, 3, 1, 2), 3, 2, 1).permute(0, 2, 3, 1).contiguous()
        features = []
        layers: Any = (self.layer1, self.layer2, self.layer3, self.layer4)
        for layer in layers:
            for block in layer:
                x = block(x)
            features.append(x.permute(0, 3, 1, 2))
        return features

    def peak_values(self, pixels: int) -> float:
        """In the stem, at stride 2: a map, the next, and one in the convolution's own layout."""
        return 3 * self.config.stem_channels * pixels / 4

    @classmethod
    @torch.no_grad()
    def of(cls, plain: ResNet) -> FusedResNet:
        """That of a ResNet, computed in float64."""
        with torch.device("meta"):
            fused = cls(plain.config)
        like = plain.first_conv.weight
        for i, conv in enumerate(fused.stem):
            set_weights(conv, *fold(plain.stem[3 * i], plain.stem[3 * i + 1]), like)
        for layer in ("layer1", "layer2", "layer3", "layer4"):
            for target, block in zip(getattr(fused, layer), getattr(plain, layer)):
                for k in (1, 2, 3) if target.bottleneck else (1, 2):
                    set_weights(getattr(target, f"conv{k}"), *fold(getattr(block, f"conv{k}"), getattr(block, f"bn{k}")), like)
                if target.downsample is not None:
                    set_weights(target.downsample, *fold(*block.downsample), like)
        return fused.eval()
