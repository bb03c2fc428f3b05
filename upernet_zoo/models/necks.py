"""Necks: four other features of a backbone's four, before the heads take them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import BackboneConfig, NeckConfig, fail, require_integer
from ..errors import ArgumentError, ConfigError, shown
from ..registry import NECKS, register_neck
from .fused.layers import DirectConv, Pointwise, inference, parameter, set_weights
from .fused.resized import ResizedConv3x3, ResizedSum
from .key_tables import KeyTable
from .layers import norms_and_biases

__all__ = [
    "Feature2Pyramid",
    "FeaturePyramidConfig",
    "MultiLevelNeck",
    "MultiLevelNeckConfig",
    "Neck",
    "build_neck",
    "neck_class",
    "recognize_neck",
]


class Neck(nn.Module, ABC):
    """The contract of a neck: four features in, four out.

    A kind is a `NeckConfig` of its own and a `Neck` that is registered with it (`upernet_zoo.register_neck`).

    Args:
        config: its options.
        backbone: options of the backbone that gives the features.

    Attributes:
        config_class: class of its options.
        key_tables: as of a backbone, with `neck.` in front of our names.
        config, backbone_config: as given.

    Examples:
        >>> import torch
        >>> import upernet_zoo as uz
        >>> config = uz.model_info("upernet_vit-b16_mln_512x512_80k_ade20k").config
        >>> with torch.device("meta"):
        ...     model = uz.UPerNet(config)
        >>> [tuple(f.shape[2:]) for f in model.neck([torch.empty(1, 768, 32, 32, device="meta")] * 4)]
        [(128, 128), (64, 64), (32, 32), (16, 16)]
    """

    config_class: ClassVar[type[NeckConfig]]
    key_tables: ClassVar[Mapping[str, tuple[KeyTable, ...]]] = {}

    def __init__(self, config: NeckConfig, backbone: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone_config = backbone

    @abstractmethod
    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The backbone's four features -> four features of `config.channels` and `config.reductions`."""

    @abstractmethod
    def reset_parameters(self) -> None:
        """Initialize the weights as the original training did."""

    def no_decay(self) -> set[str]:
        """Names of the parameters that take no weight decay: by default those of norms, and biases."""
        return norms_and_biases(self)

    @abstractmethod
    def peak_values(self, pixels: int) -> float:
        """How many numbers are held at once, at most, for the features of so many pixels."""

    def fuse(self) -> nn.Module:
        """The same for inference, called in the same way, and with `peak_values`; also on the meta device. By default itself."""
        return self

    @classmethod
    def recognize(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> NeckConfig | None:
        """The config of the neck in a checkpoint; None if it is of another kind.

        Args:
            tensors: of the neck alone, under our names without `neck.`.
            settings: mmsegmentation's `model.neck`, empty where nothing is known.

        Raises:
            ConfigError: of this kind, and a variant that this library does not compute; says which.
        """
        return None

    @classmethod
    def to_mmseg(cls, config: Any, backbone: BackboneConfig) -> dict[str, Any]:
        """`model.neck` of a config of mmsegmentation 0.x, plain values.

        Raises:
            ArgumentError: mmsegmentation has no such neck.
        """
        raise ArgumentError(f"mmsegmentation has no neck of kind {config.kind!r}. Use ONNX or torch.export for it.")


@dataclass(frozen=True, kw_only=True)
class MultiLevelNeckConfig(NeckConfig):
    """Options of a `MultiLevelNeck`.

    Args:
        out_channels: of each feature that it makes.
        scales: by how much each feature is resized.

    Raises:
        ConfigError: a value that cannot be used.
    """

    kind: ClassVar[str] = "multi_level"
    out_channels: int
    scales: tuple[float, ...] = (4, 2, 1, 0.5)

    def __post_init__(self) -> None:
        require_integer("MultiLevelNeckConfig", "out_channels", self.out_channels)
        object.__setattr__(self, "scales", _scales(self.scales))

    def channels(self, backbone: BackboneConfig) -> tuple[int, ...]:
        """`out_channels`, four times."""
        return (self.out_channels,) * 4

    def reductions(self, backbone: BackboneConfig) -> tuple[int, ...]:
        """The backbone's strides over the scales."""
        return tuple(int(reduction / scale) for reduction, scale in zip(backbone.reductions, self.scales))


def _scales(scales: Any) -> tuple[float, ...]:
    good = isinstance(scales, (list, tuple)) and len(scales) == 4 and all(s in (0.25, 0.5, 1, 2, 4, 8) and s is not True for s in scales)
    if not good:
        fail("MultiLevelNeckConfig", "scales", "four powers of two from 0.25 to 8", scales)
    return tuple(scales)


@register_neck
class MultiLevelNeck(Neck):
    """mmsegmentation's MultiLevelNeck: each feature through a 1x1 convolution, resized, and through one of 3x3; both with a bias.

    Features are resized by their factor, which is the sampling step then, and not to a size: 5 rows become 2 at steps of 2, not of 2.5.
    """

    config_class = MultiLevelNeckConfig
    key_tables: ClassVar[Mapping[str, tuple[KeyTable, ...]]] = {
        "mmsegmentation": (
            KeyTable(
                ("neck.lateral_convs.{i}.", "neck.lateral_convs.{i}.conv."),
                ("neck.convs.{i}.", "neck.convs.{i}.conv."),
                ours=("neck.lateral_convs.0.weight",),
                theirs=("neck.lateral_convs.0.conv.weight",),
            ),
        ),
    }

    def __init__(self, config: MultiLevelNeckConfig, backbone: BackboneConfig) -> None:
        super().__init__(config, backbone)
        self.config: MultiLevelNeckConfig
        width = config.out_channels
        self.lateral_convs = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in backbone.channels)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in backbone.channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Four features (N, C, h, w) -> (N, out_channels, floor(h * scale), floor(w * scale))."""
        made = []
        for i, (lateral, conv, scale) in enumerate(zip(self.lateral_convs, self.convs, self.config.scales)):  # as in `UPerHead`, for fx
            made.append(conv(F.interpolate(lateral(features[i]), scale_factor=scale, mode="bilinear", align_corners=False)))
        return made

    def reset_parameters(self) -> None:
        """Xavier uniform, biases zero, as in the original training."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(cast(Tensor, module.bias))

    def peak_values(self, pixels: int) -> float:
        """The largest map resized and convolved, and the maps made before."""
        area = sum(1 / reduction**2 for reduction in self.config.reductions(self.backbone_config))
        largest = max(1 / reduction**2 for reduction in self.config.reductions(self.backbone_config))
        return self.config.out_channels * pixels * (area + 2 * largest)

    def fuse(self) -> FusedMultiLevelNeck:
        """The same without the enlarged maps."""
        return FusedMultiLevelNeck.of(self)

    @classmethod
    def recognize(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> MultiLevelNeckConfig | None:
        """The config of a checkpoint's neck. See `Neck.recognize`. Without settings the scales are the published ones."""
        if "lateral_convs.0.weight" not in tensors or "convs.0.weight" not in tensors or tensors["convs.0.weight"].dim() != 4:
            return None
        if settings.get("norm_cfg") is not None or settings.get("act_cfg") is not None:
            raise ConfigError("has a MultiLevelNeck with norms or activations; known are those without.")
        return MultiLevelNeckConfig(out_channels=tensors["convs.0.weight"].shape[0], scales=tuple(settings.get("scales", (4, 2, 1, 0.5))))

    @classmethod
    def to_mmseg(cls, config: MultiLevelNeckConfig, backbone: BackboneConfig) -> dict[str, Any]:
        """`model.neck` of a config of mmsegmentation 0.x."""
        return {
            "type": "MultiLevelNeck",
            "in_channels": list(backbone.channels),
            "out_channels": config.out_channels,
            "scales": list(config.scales),
        }


class FusedMultiLevelNeck(nn.Module):
    """A `MultiLevelNeck` for inference. The 3x3 convolution of an enlarged map is nine 1x1 products of the small one, resized and summed.

    Args:
        config, backbone: as of the neck.
    """

    def __init__(self, config: MultiLevelNeckConfig, backbone: BackboneConfig) -> None:
        super().__init__()
        self.config, self.backbone_config = config, backbone
        width = config.out_channels
        self.laterals = nn.ModuleList(Pointwise(channels, width) for channels in backbone.channels)
        self.convs = nn.ModuleList(ResizedConv3x3(width, width) if scale > 1 else DirectConv(width, width) for scale in config.scales)
        self.biases = nn.ParameterList(parameter(width) for scale in config.scales if scale > 1)

    @inference
    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Four features (N, C, h, w) -> (N, out_channels, floor(h * scale), floor(w * scale)), channels last in memory."""
        biases = iter(self.biases)
        made = []
        for x, lateral, conv, scale in zip(features, self.laterals, self.convs, self.config.scales):
            x = lateral(x.permute(0, 2, 3, 1).contiguous())
            if isinstance(conv, ResizedConv3x3):
                height, width = (int(side * scale) for side in x.shape[1:3])
                out = next(biases).repeat(len(x), height, width, 1)
                for source, target in zip(x, out):
                    ResizedSum((height, width), [(source.shape[:2], conv.products(source))], False, 3, out).add_to(target[None], 0)
            else:
                if scale < 1:
                    x = F.interpolate(x.permute(0, 3, 1, 2), scale_factor=scale, mode="bilinear", align_corners=False)
                    x = x.permute(0, 2, 3, 1).contiguous()
                out = conv(x)
            made.append(out.permute(0, 3, 1, 2))
        return made

    def peak_values(self, pixels: int) -> float:
        """The maps made, and what the largest is made of."""
        strides = self.config.reductions(self.backbone_config)
        small = 10 * self.config.out_channels * pixels / min(self.backbone_config.reductions) ** 2
        return self.config.out_channels * pixels * sum(1 / stride**2 for stride in strides) + small

    @classmethod
    @torch.no_grad()
    def of(cls, neck: MultiLevelNeck) -> FusedMultiLevelNeck:
        """That of a neck, in its dtype."""
        with torch.device("meta"):
            fused = cls(neck.config, neck.backbone_config)
        laterals, convs = ([cast(nn.Conv2d, conv) for conv in part] for part in (neck.lateral_convs, neck.convs))
        like, biases = convs[0].weight, []
        for target, lateral in zip(fused.laterals, laterals):
            set_weights(target, lateral.weight.double(), cast(Tensor, lateral.bias).double(), like)
        for target, conv in zip(fused.convs, convs):
            bias = cast(Tensor, conv.bias).detach()
            resized = isinstance(target, ResizedConv3x3)
            set_weights(target, conv.weight.double(), None if resized else bias.double(), like)
            if resized:
                biases.append(nn.Parameter(bias.clone(), requires_grad=False))
        fused.biases = nn.ParameterList(biases)
        return fused.eval()


@dataclass(frozen=True, kw_only=True)
class FeaturePyramidConfig(NeckConfig):
    """Options of a `Feature2Pyramid`: none."""

    kind: ClassVar[str] = "feature2pyramid"

    def channels(self, backbone: BackboneConfig) -> tuple[int, ...]:
        """The backbone's."""
        return tuple(backbone.channels)

    def reductions(self, backbone: BackboneConfig) -> tuple[int, ...]:
        """A quarter, half, one and twice the backbone's strides."""
        return tuple(int(reduction * factor) for reduction, factor in zip(backbone.reductions, (0.25, 0.5, 1, 2)))


def _pyramid_table(prefix: str) -> KeyTable:
    """Names of BEiT's authors, behind a prefix."""
    return KeyTable(
        ("neck.upsample_4x.", f"{prefix}fpn1."),
        ("neck.upsample_2x.", f"{prefix}fpn2."),
        ours=("neck.upsample_4x.0.weight",),
        theirs=(f"{prefix}fpn1.0.weight", f"{prefix}fpn2.0.weight"),
    )


@register_neck
class Feature2Pyramid(Neck):
    """mmsegmentation's Feature2Pyramid: four features of one stride enlarged by 4 and by 2, kept, and halved (Bao et al. 2022)."""

    config_class = FeaturePyramidConfig
    key_tables: ClassVar[Mapping[str, tuple[KeyTable, ...]]] = {
        "mmsegmentation": (KeyTable(ours=("neck.upsample_4x.0.weight",), theirs=("neck.upsample_4x.0.weight",)),),
        "transformers": (_pyramid_table(""),),
        "authors": (_pyramid_table("backbone."),),
    }

    def __init__(self, config: FeaturePyramidConfig, backbone: BackboneConfig) -> None:
        super().__init__(config, backbone)
        first, second = backbone.channels[:2]
        self.upsample_4x = nn.Sequential(
            nn.ConvTranspose2d(first, first, 2, 2), nn.BatchNorm2d(first), nn.GELU(), nn.ConvTranspose2d(first, first, 2, 2)
        )
        self.upsample_2x = nn.Sequential(nn.ConvTranspose2d(second, second, 2, 2))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Four features (N, C, h, w) -> sides 4h, 2h, h and floor(h / 2)."""
        return [self.upsample_4x(features[0]), self.upsample_2x(features[1]), features[2], F.max_pool2d(features[3], 2)]

    def reset_parameters(self) -> None:
        """As torch does, and as in the original training."""
        for module in self.modules():
            if isinstance(module, (nn.ConvTranspose2d, nn.BatchNorm2d)):
                module.reset_parameters()

    def peak_values(self, pixels: int) -> float:
        """The map enlarged by 4, and what it is made of; and the others."""
        channels, strides = self.backbone_config.channels, self.backbone_config.reductions
        return pixels * (channels[0] * (16 + 8) / strides[0] ** 2 + channels[1] * 4 / strides[1] ** 2)

    @classmethod
    def recognize(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> FeaturePyramidConfig | None:
        """The config of a checkpoint's neck. See `Neck.recognize`."""
        if "upsample_4x.0.weight" not in tensors or "upsample_2x.0.weight" not in tensors:
            return None
        if list(settings.get("rescales", (4, 2, 1, 0.5))) != [4, 2, 1, 0.5]:
            raise ConfigError(f"has a Feature2Pyramid with rescales={shown(settings['rescales'])}; known is [4, 2, 1, 0.5].")
        return FeaturePyramidConfig()

    @classmethod
    def to_mmseg(cls, config: FeaturePyramidConfig, backbone: BackboneConfig) -> dict[str, Any]:
        """`model.neck` of a config of mmsegmentation 0.x."""
        return {"type": "Feature2Pyramid", "embed_dim": backbone.channels[0], "rescales": [4, 2, 1, 0.5]}


def build_neck(config: NeckConfig, backbone: BackboneConfig) -> Neck:
    """The neck of a config, initialized by its modules' own defaults."""
    return neck_class(config)(config, backbone)


def neck_class(config: NeckConfig) -> type[Neck]:
    """The class of a config's kind."""
    cls: type[Neck] = NECKS.get(config.kind, type(config).__name__)
    return cls


def recognize_neck(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> NeckConfig | None:
    """The config of the neck in a checkpoint, of whatever kind; None if no kind knows it. See `Neck.recognize`."""
    found = (cls.recognize(tensors, settings) for cls in NECKS.classes())
    return next((config for config in found if config is not None), None)
