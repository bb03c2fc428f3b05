"""What a model is (`UPerNetConfig`) and how it wants its pictures (`Recipe`): frozen, plain data, to JSON and back.

No torch here: an index, a `config.json` and a safetensors header are read without it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from .errors import ConfigError, shown

# depth -> (bottleneck blocks?, blocks per stage); He et al. 2016, table 1
RESNET_STAGES: dict[int, tuple[bool, tuple[int, int, int, int]]] = {
    18: (False, (2, 2, 2, 2)),
    34: (False, (3, 4, 6, 3)),
    50: (True, (3, 4, 6, 3)),
    101: (True, (3, 4, 23, 3)),
}


def _fail(owner: str, key: str, expected: str, found: Any) -> None:
    raise ConfigError(f"{owner}: '{key}' must be {expected}, found {shown(found)}.")


def _integer(owner: str, key: str, value: Any, minimum: int = 1, maximum: int = 1 << 16) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
        _fail(owner, key, f"a whole number from {minimum} to {maximum}", value)
    return value


def _pair(owner: str, key: str, value: Any) -> tuple[int, int]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        _fail(owner, key, "two whole numbers", value)
    return tuple(_integer(owner, key, v) for v in value)


def _from_mapping(cls, data: Any, owner: str):
    """Build dataclass `cls` from a mapping; a key it does not have, or one that it needs and does not find, is refused."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{owner}: expected a mapping, found {shown(data)}.")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in data:
        if key not in fields:
            raise ConfigError(f"{owner}: unknown key {shown(key)}; known keys are {', '.join(fields)}.")
    for name, field in fields.items():
        if field.default is dataclasses.MISSING and name not in data:
            raise ConfigError(f"{owner}: key '{name}' is missing.")
    try:
        return cls(**data)
    except ConfigError as error:
        raise ConfigError(f"{owner}: {error}") from None


@dataclasses.dataclass(frozen=True)
class UPerNetConfig:
    """Architecture of a UPerNet on a ResNet or ResNet-V1c backbone.

    Args:
        depth: layers of the backbone: 18, 34, 50 or 101.
        num_classes: channels of the logits.
        align_corners: of every bilinear resize inside the model (true for the 769x769 Cityscapes models).
        base_channels: width of the first stage's 3x3 convolutions; stage i has `base_channels * 2**i` (times 4 with bottlenecks).
        stem_channels: width of the stem's output; the first two convolutions of a deep stem have half of it.
        channels: width of the decode head.
        aux_channels: width of the auxiliary head.
        pool_scales: bins per axis of the pyramid pooling module.
        in_channels: channels of the picture.
        deep_stem: three 3x3 convolutions (ResNet-V1c) in place of the plain ResNet's one of 7x7.

    Raises:
        ConfigError: a value outside what the modules can build.
    """

    depth: int
    num_classes: int
    align_corners: bool = False
    base_channels: int = 64
    stem_channels: int = 64
    channels: int = 512
    aux_channels: int = 256
    pool_scales: tuple[int, ...] = (1, 2, 3, 6)
    in_channels: int = 3
    deep_stem: bool = True

    def __post_init__(self):
        owner = "UPerNetConfig"
        if type(self.depth) is not int or self.depth not in RESNET_STAGES:
            _fail(owner, "depth", f"one of {', '.join(map(str, RESNET_STAGES))}", self.depth)
        for key in ("num_classes", "base_channels", "channels", "aux_channels", "in_channels"):
            _integer(owner, key, getattr(self, key))
        for key in ("align_corners", "deep_stem"):
            if not isinstance(getattr(self, key), bool):
                _fail(owner, key, "true or false", getattr(self, key))
        if _integer(owner, "stem_channels", self.stem_channels) % 2 and self.deep_stem:
            _fail(owner, "stem_channels", "even (the stem's first convolutions have half of it)", self.stem_channels)
        if not isinstance(self.pool_scales, (list, tuple)) or not self.pool_scales:
            _fail(owner, "pool_scales", "a list of whole numbers", self.pool_scales)
        scales = tuple(_integer(owner, "pool_scales", s, maximum=64) for s in self.pool_scales)
        object.__setattr__(self, "pool_scales", scales)

    @property
    def backbone_name(self) -> str:
        """The backbone in words, such as "ResNet-V1c-50"."""
        return f"ResNet-V1c-{self.depth}" if self.deep_stem else f"ResNet-{self.depth}"

    @property
    def feature_channels(self) -> tuple[int, int, int, int]:
        """Channels of the backbone's four features, at strides 4, 8, 16 and 32."""
        expansion = 4 if RESNET_STAGES[self.depth][0] else 1
        return tuple(self.base_channels * expansion * 2**i for i in range(4))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` gives back an equal config."""
        return {**dataclasses.asdict(self), "pool_scales": list(self.pool_scales)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], owner: str = "UPerNetConfig") -> UPerNetConfig:
        """The config in a mapping. `owner` names the file or model in errors.

        Raises:
            ConfigError: an unknown or missing key, or a value out of range.
        """
        return _from_mapping(cls, data, owner)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a picture is brought to the network, and how the network is run over it, in the published evaluation.

    Args:
        scale: (long, short) side in pixels that the picture is made to fit in, keeping its ratio.
        mode: "whole" runs the resized picture at once, "slide" runs overlapping windows and averages their logits.
        crop: (height, width) of a window in pixels; slide mode only.
        stride: (height, width) between windows in pixels; slide mode only.
        mean: per channel, RGB, on the 0..255 scale.
        std: per channel, RGB, on the 0..255 scale.

    Raises:
        ConfigError: a value that cannot be used.
    """

    scale: tuple[int, int]
    mode: str = "whole"
    crop: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    std: tuple[float, ...] = (58.395, 57.12, 57.375)

    def __post_init__(self):
        owner = "Recipe"
        scale = _pair(owner, "scale", self.scale)
        object.__setattr__(self, "scale", (max(scale), min(scale)))
        if self.mode not in ("whole", "slide"):
            _fail(owner, "mode", "'whole' or 'slide'", self.mode)
        for key in ("crop", "stride"):
            value = getattr(self, key)
            if self.mode == "slide":
                if value is None:
                    raise ConfigError(f"{owner}: slide mode needs '{key}' (height, width).")
                object.__setattr__(self, key, _pair(owner, key, value))
            elif value is not None:
                raise ConfigError(f"{owner}: '{key}' belongs to slide mode, and the mode is 'whole'.")
        if self.mode == "slide" and any(s > c for s, c in zip(self.stride, self.crop)):
            raise ConfigError(f"{owner}: stride {self.stride} is larger than crop {self.crop}: pixels between windows would be lost.")
        for key in ("mean", "std"):
            value = getattr(self, key)
            good = isinstance(value, (list, tuple)) and len(value) > 0
            good = good and all(isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < 1e9 for v in value)
            if not good or (key == "std" and min(value) <= 0):
                _fail(owner, key, "a list of numbers" + (" above zero" if key == "std" else ""), value)
            object.__setattr__(self, key, tuple(float(v) for v in value))
        if len(self.mean) != len(self.std):
            raise ConfigError(f"{owner}: mean has {len(self.mean)} channels and std {len(self.std)}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the keys that are None; `from_dict` gives back an equal recipe."""
        data = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}
        return {k: v for k, v in data.items() if v is not None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], owner: str = "Recipe") -> Recipe:
        """The recipe in a mapping. `owner` names the file or model in errors.

        Raises:
            ConfigError: an unknown or missing key, or a value that cannot be used.
        """
        return _from_mapping(cls, data, owner)
