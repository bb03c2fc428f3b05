"""What a model is (`UPerNetConfig`) and how it wants its pictures (`Recipe`): frozen, plain data, to JSON and back.

No torch here: an index, a `config.json` and a safetensors header are read without it.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn, TypeVar

from .errors import ConfigError, shown
from .registry import BACKBONES, NECKS, Registry
from .wording import worded

__all__ = [
    "MAX_BLOCKS",
    "AuxiliaryConfig",
    "BackboneConfig",
    "KernelUpdateConfig",
    "NeckConfig",
    "Recipe",
    "UPerNetConfig",
    "fail",
    "require_bool",
    "require_integer",
    "require_integers",
    "require_share",
]

MAX_BLOCKS = 256  # of a backbone, or of one of its stages: to build more takes long, even without memory for their weights


def fail(owner: str, key: str, expected: str, found: Any) -> NoReturn:
    """Refuse the value of a key.

    Raises:
        ConfigError: always.
    """
    raise ConfigError(f"{owner}: '{key}' must be {expected}, found {shown(found)}.")


def require_integer(owner: str, key: str, value: Any, minimum: int = 1, maximum: int = 1 << 16) -> int:
    """The value, if it is a whole number in that range.

    Raises:
        ConfigError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
        fail(owner, key, f"a whole number from {minimum} to {maximum}", value)
    return value


def require_bool(owner: str, key: str, value: Any) -> bool:
    """The value, if it is true or false.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(value, bool):
        fail(owner, key, "true or false", value)
    return value


def require_integers(owner: str, key: str, value: Any, count: int, minimum: int = 1, maximum: int = 1 << 16) -> tuple[int, ...]:
    """The value as a tuple, if it is `count` whole numbers in that range.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(value, (list, tuple)) or len(value) != count:
        fail(owner, key, f"{count} whole numbers", value)
    return tuple(require_integer(owner, key, v, minimum, maximum) for v in value)


def require_share(owner: str, **values: Any) -> None:
    """Nothing, if each value is a number from 0 up to, not including, 1.

    Raises:
        ConfigError: one is not.
    """
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
            fail(owner, key, "a number from 0 up to, not including, 1", value)


def _pair(owner: str, key: str, value: Any) -> tuple[int, int]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        fail(owner, key, "two whole numbers", value)
    return require_integer(owner, key, value[0]), require_integer(owner, key, value[1])


_Config = TypeVar("_Config")


def _from_mapping(cls: type[_Config], data: Any, owner: str) -> _Config:
    """Build dataclass `cls` from a mapping; a key it does not have, or one that it needs and does not find, is refused."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{owner}: expected a mapping, found {shown(data)}.")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]  # a dataclass
    for key in data:
        if key not in fields:
            raise ConfigError(f"{owner}: unknown key {shown(key)}; known keys are {', '.join(fields)}.")
    for name, field in fields.items():
        if field.default is field.default_factory is dataclasses.MISSING and name not in data:
            raise ConfigError(f"{owner}: key '{name}' is missing.")
    try:
        return cls(**data)
    except ConfigError as error:
        raise ConfigError(f"{owner}: {error}") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackboneConfig(ABC):
    """Options of a backbone: plain data, checked when it is made. Each kind has a class of its own, which derives from this one.

    Args:
        in_channels: channels of the picture.

    Attributes:
        kind: name of the backbone's kind, its tag in JSON and in the index.

    Examples:
        >>> import upernet_zoo as uz
        >>> config = uz.ResNetConfig(depth=50)
        >>> config.kind, config.title, config.channels, config.reductions
        ('resnet', 'ResNet-V1c-50', (256, 512, 1024, 2048), (4, 8, 16, 32))
    """

    kind: ClassVar[str]
    in_channels: int = 3

    def __post_init__(self) -> None:
        require_integer(type(self).__name__, "in_channels", self.in_channels)

    @property
    @abstractmethod
    def channels(self) -> tuple[int, ...]:
        """Channels of each of the four features."""

    @property
    @abstractmethod
    def reductions(self) -> tuple[int, ...]:
        """Stride of each of the four features: pixels of the picture to one of the feature, along each axis."""

    @property
    @abstractmethod
    def title(self) -> str:
        """The backbone in words, such as "ResNet-V1c-50"."""

    @property
    def input_size(self) -> tuple[int, int] | None:
        """(height, width) in pixels of the only pictures that are taken; None: any size."""
        return None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return _plain(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeckConfig(ABC):
    """Options of a neck, which makes four other features of a backbone's four. Each kind has a class of its own.

    Attributes:
        kind: name of the neck's kind, its tag in JSON and in the index.

    Examples:
        >>> import upernet_zoo as uz
        >>> uz.model_info("upernet_vit-b16_mln_512x512_80k_ade20k").config.neck.kind
        'multi_level'
    """

    kind: ClassVar[str]

    @abstractmethod
    def channels(self, backbone: BackboneConfig) -> tuple[int, ...]:
        """Channels of each of the four features that the neck makes."""

    @abstractmethod
    def reductions(self, backbone: BackboneConfig) -> tuple[int, ...]:
        """Stride of each of the four features that the neck makes."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return _plain(self)


def _plain(part: Any) -> dict[str, Any]:
    values = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    return {"kind": part.kind, **{key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuxiliaryConfig:
    """An auxiliary head: 3x3 convolutions on one feature, whose loss helps the backbone in training.

    Args:
        feature: which of the four features, counted from 0.
        channels: width.
        convs: how many convolutions.

    Raises:
        ConfigError: a value that cannot be used.

    Examples:
        >>> import upernet_zoo as uz
        >>> uz.UPerNetConfig(backbone=uz.ResNetConfig(depth=50), num_classes=7, auxiliary=uz.AuxiliaryConfig(channels=128)).auxiliary
        AuxiliaryConfig(feature=2, channels=128, convs=1)
    """

    feature: int = 2
    channels: int = 256
    convs: int = 1

    def __post_init__(self) -> None:
        require_integer("AuxiliaryConfig", "feature", self.feature, 0, 3)
        require_integer("AuxiliaryConfig", "channels", self.channels)
        require_integer("AuxiliaryConfig", "convs", self.convs, 1, 16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelUpdateConfig:
    """K-Net's stages on the decode head, each of which refines a kernel for each class.

    Args:
        stages: how many.
        channels: of a kernel that are updated together; the head's width is a multiple.
        num_heads: attention heads over the classes.
        hidden: channels of the perceptron.

    Raises:
        ConfigError: a value that cannot be used.
    """

    stages: int = 3
    channels: int = 256
    num_heads: int = 8
    hidden: int = 2048

    def __post_init__(self) -> None:
        require_integer("KernelUpdateConfig", "stages", self.stages, maximum=16)
        for key in ("channels", "num_heads", "hidden"):
            require_integer("KernelUpdateConfig", key, getattr(self, key))


@dataclasses.dataclass(frozen=True, kw_only=True)
class UPerNetConfig:
    """Architecture of a UPerNet.

    Args:
        backbone: options of the backbone, such as `ResNetConfig(depth=50)`.
        num_classes: channels of the logits.
        channels: width of the decode head.
        pool_scales: bins per axis of the pyramid pooling module.
        align_corners: of every bilinear resize in the heads (true for the 769x769 Cityscapes models).
        auxiliary: options of the auxiliary head; None: the model has none.
        neck: options of the neck between backbone and heads; None: the model has none.
        kernel_updates: options of K-Net's stages on the decode head; None: the model has none.

    Raises:
        ConfigError: a value outside what the modules can build.

    Examples:
        >>> import upernet_zoo as uz
        >>> config = uz.UPerNetConfig(backbone=uz.ResNetConfig(depth=18), num_classes=7)
        >>> uz.UPerNetConfig.from_dict(config.to_dict()) == config
        True
    """

    backbone: BackboneConfig
    num_classes: int
    channels: int = 512
    pool_scales: tuple[int, ...] = (1, 2, 3, 6)
    align_corners: bool = False
    auxiliary: AuxiliaryConfig | None = AuxiliaryConfig()
    neck: NeckConfig | None = None
    kernel_updates: KernelUpdateConfig | None = None

    def __post_init__(self) -> None:
        owner = "UPerNetConfig"
        if not isinstance(self.backbone, BackboneConfig):
            fail(owner, "backbone", "the config of a backbone, such as ResNetConfig(depth=50)", self.backbone)
        if self.neck is not None and not isinstance(self.neck, NeckConfig):
            fail(owner, "neck", "the config of a neck, or none", self.neck)
        if self.auxiliary is not None and not isinstance(self.auxiliary, AuxiliaryConfig):
            fail(owner, "auxiliary", "an AuxiliaryConfig, or none", self.auxiliary)
        if self.kernel_updates is not None:
            if not isinstance(self.kernel_updates, KernelUpdateConfig):
                fail(owner, "kernel_updates", "a KernelUpdateConfig, or none", self.kernel_updates)
            if self.channels % self.kernel_updates.channels or self.channels % self.kernel_updates.num_heads:
                fail(owner, "channels", "a multiple of kernel_updates' channels and num_heads", self.channels)
        for key in ("num_classes", "channels"):
            require_integer(owner, key, getattr(self, key))
        require_bool(owner, "align_corners", self.align_corners)
        if not isinstance(self.pool_scales, (list, tuple)) or not 1 <= len(self.pool_scales) <= 64:
            fail(owner, "pool_scales", "a list of 1 to 64 whole numbers", self.pool_scales)
        scales = tuple(require_integer(owner, "pool_scales", s, maximum=64) for s in self.pool_scales)
        object.__setattr__(self, "pool_scales", scales)

    @property
    def in_channels(self) -> int:
        """Channels of the picture."""
        return self.backbone.in_channels

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of the four features that the heads take: the neck's, or the backbone's own."""
        return self.backbone.channels if self.neck is None else self.neck.channels(self.backbone)

    @property
    def feature_reductions(self) -> tuple[int, ...]:
        """Stride of each of the four features that the heads take."""
        return self.backbone.reductions if self.neck is None else self.neck.reductions(self.backbone)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` gives back an equal config."""
        return {
            "backbone": self.backbone.to_dict(),
            "num_classes": self.num_classes,
            "channels": self.channels,
            "pool_scales": list(self.pool_scales),
            "align_corners": self.align_corners,
            "auxiliary": None if self.auxiliary is None else dataclasses.asdict(self.auxiliary),
            "neck": None if self.neck is None else self.neck.to_dict(),
            **({} if self.kernel_updates is None else {"kernel_updates": dataclasses.asdict(self.kernel_updates)}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], owner: str = "UPerNetConfig") -> UPerNetConfig:
        """The config in a mapping. `owner` names the file or model in errors.

        The modules of backbone and neck are imported, and torch with them.

        Raises:
            ConfigError: an unknown or missing key, a kind that does not exist, or a value out of range.
        """
        parts: dict[str, Any] = {}
        for key, registry in (("backbone", BACKBONES), ("neck", NECKS)):
            kind, options = _kind_and_options(data, key, registry, owner)
            if kind is not None:
                parts[key] = _from_mapping(registry.get(kind, f"{owner}: {key}").config_class, options, f"{owner}: {key}")
        return cls._from_parts(data, parts, owner)

    @classmethod
    def check(cls, data: Mapping[str, Any], owner: str = "UPerNetConfig") -> None:
        """Refuse a mapping that `from_dict` would refuse, as far as can be told without torch.

        The options of backbone and neck stay unread, but for the picture's channels.

        Raises:
            ConfigError: as `from_dict`.
        """
        parts: dict[str, Any] = {}
        for key, registry, unread in (("backbone", BACKBONES, _UnreadBackbone), ("neck", NECKS, _UnreadNeck)):
            kind, options = _kind_and_options(data, key, registry, owner)
            if kind is not None:
                known = {name: value for name, value in options.items() if name in {field.name for field in dataclasses.fields(unread)}}
                parts[key] = _from_mapping(unread, known, f"{owner}: {key}")
        cls._from_parts(data, parts, owner)

    @classmethod
    def _from_parts(cls, data: Mapping[str, Any], parts: Mapping[str, Any], owner: str) -> UPerNetConfig:
        for key, part in (("auxiliary", AuxiliaryConfig), ("kernel_updates", KernelUpdateConfig)):
            if isinstance(options := data.get(key), Mapping):
                parts = {**parts, key: _from_mapping(part, options, f"{owner}: {key}")}
        return _from_mapping(cls, {**data, **parts}, owner)


def _kind_and_options(data: Any, key: str, registry: Registry, owner: str) -> tuple[str | None, dict[str, Any]]:
    """Kind and options in `data[key]`, a mapping; no kind where there is none of that key."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{owner}: expected a mapping, found {shown(data)}.")
    part = data.get(key)
    if part is None:
        return None, {}
    if not isinstance(part, Mapping) or "kind" not in part:
        fail(owner, key, "a mapping with the key 'kind'", part)
    if not registry.may_have(part["kind"]):
        registry.get(part["kind"], f"{owner}: {key}")
    return part["kind"], {name: value for name, value in part.items() if name != "kind"}


class _UnreadBackbone(BackboneConfig):
    """A backbone whose options are left unread."""

    kind = "unread"
    channels = reductions = ()
    title = ""


class _UnreadNeck(NeckConfig):
    """A neck whose options are left unread."""

    kind = "unread"

    def channels(self, backbone: BackboneConfig) -> tuple[int, ...]:
        return ()

    reductions = channels


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a picture is brought to the network, and how the network is run over it, in the published evaluation.

    Args:
        scale: (long, short) side in pixels that the picture is made to fit in, keeping its ratio; None leaves it at its own size.
        mode: "whole" runs the resized picture at once, "slide" runs overlapping windows and averages their logits.
        crop: (height, width) of a window in pixels; slide mode only.
        stride: (height, width) between windows in pixels; slide mode only.
        mean: per channel, RGB, on the 0..255 scale.
        std: per channel, RGB, on the 0..255 scale.
        keep_ratio: False makes every picture exactly `scale`, which is then (width, height).
        short_edge: makes the picture fit as mmsegmentation's `ResizeShortestEdge` does, which rounds its size twice.
        min_size: the shorter side becomes the short side of `scale` or this many pixels, whichever is more, and the longer follows.
        size_divisor: zeros are added to the right of and below the normalized picture until its sides are multiples of this.
        unsupported: what else the original evaluation does to pictures, in words. While there is any, nothing is predicted.

    Raises:
        ConfigError: a value that cannot be used.

    Examples:
        >>> import upernet_zoo as uz
        >>> recipe = uz.model_info("upernet_r50_769x769_40k_cityscapes").recipe
        >>> recipe.mode, recipe.crop, recipe.stride
        ('slide', (769, 769), (513, 513))
        >>> uz.Recipe(scale=(1024, 512)).mode
        'whole'
    """

    scale: tuple[int, int] | None
    mode: str = "whole"
    crop: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    std: tuple[float, ...] = (58.395, 57.12, 57.375)
    keep_ratio: bool = True
    short_edge: bool = False
    min_size: int | None = None
    size_divisor: int = 1
    unsupported: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._check_resize()
        self._check_windows()
        owner = "Recipe"
        for key in ("mean", "std"):
            value = getattr(self, key)
            good = isinstance(value, (list, tuple)) and len(value) > 0
            good = good and all(isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < 1e9 for v in value)
            if not good or (key == "std" and min(value) <= 0):
                fail(owner, key, "a list of numbers" + (" above zero" if key == "std" else ""), value)
            object.__setattr__(self, key, tuple(float(v) for v in value))
        if len(self.mean) != len(self.std):
            raise ConfigError(f"{owner}: mean has {len(self.mean)} channels and std {len(self.std)}.")
        require_integer(owner, "size_divisor", self.size_divisor)
        if not isinstance(self.unsupported, (list, tuple)) or not all(isinstance(text, str) for text in self.unsupported):
            fail(owner, "unsupported", "a list of texts", self.unsupported)
        object.__setattr__(self, "unsupported", tuple(self.unsupported))

    def _check_resize(self) -> None:
        owner = "Recipe"
        for key in ("keep_ratio", "short_edge"):
            if not isinstance(getattr(self, key), bool):
                fail(owner, key, "true or false", getattr(self, key))
        if self.min_size is not None:
            require_integer(owner, "min_size", self.min_size)
        ways = [key for key, usual in (("keep_ratio", True), ("short_edge", False), ("min_size", None)) if getattr(self, key) != usual]
        if len(ways) > 1:
            raise ConfigError(f"{owner}: {' and '.join(ways)} are different ways to resize; take one.")
        if self.scale is not None:
            scale = _pair(owner, "scale", self.scale)
            object.__setattr__(self, "scale", (max(scale), min(scale)) if self.keep_ratio else scale)
        elif ways:
            raise ConfigError(f"{owner}: {ways[0]} goes with a scale, and this recipe leaves pictures at their own size (scale is None).")

    def _check_windows(self) -> None:
        owner = "Recipe"
        if self.mode not in ("whole", "slide"):
            fail(owner, "mode", "'whole' or 'slide'", self.mode)
        for key in ("crop", "stride"):
            value = getattr(self, key)
            if self.mode == "slide":
                if value is None:
                    raise ConfigError(f"{owner}: slide mode needs '{key}' (height, width).")
                object.__setattr__(self, key, _pair(owner, key, value))
            elif value is not None:
                raise ConfigError(f"{owner}: '{key}' belongs to slide mode, and the mode is 'whole'.")
        if self.crop is not None and self.stride is not None and any(s > c for s, c in zip(self.stride, self.crop)):
            raise ConfigError(f"{owner}: stride {self.stride} is larger than crop {self.crop}: pixels between windows would be lost.")

    @property
    def resizing(self) -> str:
        """What is done to a picture's size, in words, such as "made to fit 2048x512, keeping their ratio"."""
        if self.scale is None:
            words = "left at their own size"
        elif not self.keep_ratio:
            words = f"resized to {self.scale[0]}x{self.scale[1]} (width x height), whatever their ratio"
        elif self.short_edge:
            words = f"resized to a shorter side of {self.scale[1]} and a longer of at most {self.scale[0]}, keeping their ratio"
        elif self.min_size is not None:
            words = f"resized to a shorter side of {max(self.scale[1], self.min_size)}, keeping their ratio"
        else:
            words = f"made to fit {self.scale[0]}x{self.scale[1]}, keeping their ratio"
        return words + (f", padded to multiples of {self.size_divisor}" if self.size_divisor > 1 else "")

    @property
    def fits(self) -> bool:
        """Whether pictures are made to fit `scale` and no more is done to their size: what exported graphs and other libraries can do."""
        usual = {f.name: f.default for f in dataclasses.fields(self)}
        ways = ("keep_ratio", "short_edge", "min_size", "size_divisor", "unsupported")
        return self.scale is not None and all(getattr(self, key) == usual[key] for key in ways)

    def require_supported(self, instead: str | None = None) -> None:
        """Refuse to predict what would not be the original evaluation.

        Args:
            instead: what to do, as the message says it; None: give a recipe or a config, which whoever loads a model can.

        Raises:
            ConfigError: names what is not done.
        """
        if self.unsupported:
            instead = instead or worded(
                "Give a recipe in its place (recipe=, or model.recipe), or load the checkpoint with a config that does without (config=).",
                "Load the checkpoint with a config that does without: upernet-zoo convert FILE --config CONFIG --out FOLDER.",
            )
            what = "; ".join(self.unsupported)
            raise ConfigError(
                f"The model's own evaluation does what this library does not, so its answers would be others: {what}. {instead}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without those that are as usual; `from_dict` gives back an equal recipe."""
        data = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}
        usual = {f.name: f.default for f in dataclasses.fields(self) if f.name not in ("scale", "mode", "mean", "std")}
        return {k: v for k, v in data.items() if k not in usual or getattr(self, k) != usual[k]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], owner: str = "Recipe") -> Recipe:
        """The recipe in a mapping. `owner` names the file or model in errors.

        Raises:
            ConfigError: an unknown or missing key, or a value that cannot be used.
        """
        return _from_mapping(cls, data, owner)
