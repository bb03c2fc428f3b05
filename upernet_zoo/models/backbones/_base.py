"""The contract of a backbone: all that the rest of the library asks, and it asks no backbone for its kind.

A kind is one file: a `BackboneConfig` of its own and a `Backbone` that is registered with it.

    @dataclass(frozen=True, kw_only=True)
    class MyConfig(BackboneConfig):
        kind = "my_net"
        width: int = 64
        ...

    @register_backbone
    class MyNet(Backbone):
        config_class = MyConfig
        ...
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...config import BackboneConfig
from ...errors import ArgumentError, ConfigError, shown
from ...registry import BACKBONES
from ..key_tables import KeyTable
from ..layers import norms_and_biases
from ..scripting import NotScriptable

__all__ = [
    "BATCH_NORMS",
    "Backbone",
    "FeatureInfo",
    "backbone_class",
    "build_backbone",
    "count_blocks",
    "first_conv_name",
    "recognize_backbone",
    "require_settings",
]

# batch norms that compute the same for inference, as mmsegmentation's configs name them: mmcv's own, and torch's in configs in pure Python
BATCH_NORMS = ("BN", "BN2d", "SyncBN", "MMSyncBN", "BatchNorm2d", "SyncBatchNorm")


class FeatureInfo:
    """What the features of a backbone are, asked as timm's `features_only` models are asked.

    Args:
        config: of the backbone.
        modules: names of the modules that give the features.
    """

    def __init__(self, config: BackboneConfig, modules: Sequence[str]) -> None:
        numbers = zip(config.channels, config.reductions, modules)
        self.info: list[dict[str, Any]] = [
            {"num_chs": n, "reduction": r, "module": module, "index": i} for i, (n, r, module) in enumerate(numbers)
        ]

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


class Backbone(NotScriptable, nn.Module, ABC):
    """A backbone: a picture in, four features out.

    Args:
        config: its options.
        modules: names of the modules that give the four features.

    Attributes:
        config_class: class of its options.
        key_tables: names of its tensors in "mmsegmentation", "transformers", "smp" (segmentation_models_pytorch) and "authors" (the
            original code); several tables where variants differ. Names are those in a whole model, with `backbone.` in front here.
        mmseg_v1: settings of `to_mmseg` that mmsegmentation 1.x has otherwise.
        mmseg_known: names of mmsegmentation's settings that `recognize` looks at, or that change no prediction, beside those that
            `to_mmseg` writes.
        config: its options.
        feature_info: channels and strides of the features.
        grad_checkpointing: in training, keep no more than the input of each block, and compute the rest again for the gradients.

    Examples:
        >>> import torch
        >>> import upernet_zoo as uz
        >>> backbone = uz.create_backbone("demo")
        >>> [tuple(feature.shape) for feature in backbone(torch.zeros(1, 3, 64, 96))]
        [(1, 12, 16, 24), (1, 24, 8, 12), (1, 48, 4, 6), (1, 96, 2, 3)]
        >>> backbone.feature_info.reduction()
        [4, 8, 16, 32]
    """

    config_class: ClassVar[type[BackboneConfig]]
    key_tables: ClassVar[Mapping[str, tuple[KeyTable, ...]]] = {}
    mmseg_v1: ClassVar[Mapping[str, Any]] = {}
    mmseg_known: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, config: BackboneConfig, modules: Sequence[str]) -> None:
        super().__init__()
        self.config = config
        self.feature_info = FeatureInfo(config, modules)
        self.grad_checkpointing = False

    @abstractmethod
    def forward(self, x: Tensor) -> list[Tensor]:
        """Picture (N, in_channels, H, W) -> four features (N, channels[i], h, w) at strides `config.reductions`."""

    @abstractmethod
    def reset_parameters(self) -> None:
        """Initialize the weights as the original training did where it had no pretrained ones."""

    # training

    @abstractmethod
    def stages(self) -> list[list[nn.Parameter]]:
        """All parameters, each once: those before the first stage, then those of each of the stages."""

    def layers(self) -> list[list[nn.Parameter]]:
        """Parameters, each once, from the picture to the last feature, by the learning rate that they share: see `layer_decay`.

        What is in none of them learns at the full rate. An empty layer slows those before it down.
        """
        return self.stages()

    def no_decay(self) -> set[str]:
        """Names of the parameters that take no weight decay: by default those of norms, and biases."""
        return norms_and_biases(self)

    @property
    @abstractmethod
    def first_conv(self) -> nn.Conv2d:
        """The convolution that sees the picture."""

    # inference

    @abstractmethod
    def peak_values(self, pixels: int) -> float:
        """How many numbers are held at once, at most, while the features of so many pixels are computed for inference."""

    def fuse(self) -> nn.Module:
        """The same for inference, in eval mode, called in the same way, and with `peak_values`: by default itself.

        It must also work on the meta device, where it gives the structure for tensors that were fused before.
        """
        return self

    # checkpoints of others

    @classmethod
    def recognize(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], library: str) -> BackboneConfig | None:
        """The config of the backbone in a checkpoint; None if it is of another kind.

        Args:
            tensors: of the backbone alone, under our names without `backbone.`.
            settings: mmsegmentation's `model.backbone`, empty where nothing is known.
            library: whose names the file has, as in `key_tables`; what no tensor says, such as an epsilon, may depend on it.

        Raises:
            ConfigError: of this kind, and a variant that this library does not compute; says which.
        """
        return None

    @classmethod
    def to_mmseg(cls, config: Any) -> dict[str, Any]:
        """`model.backbone` of a config of mmsegmentation 0.x, plain values.

        Raises:
            ArgumentError: mmsegmentation has no such backbone.
        """
        raise ArgumentError(f"mmsegmentation has no {config.title}. Use ONNX or torch.export for it.")

    @classmethod
    def mmseg_buffers(cls, config: Any) -> dict[str, Tensor]:
        """What mmsegmentation keeps beside the weights, and is derived from the config here: by its names, without `backbone.`."""
        return {}

    @classmethod
    def known_settings(cls, config: Any) -> set[str]:
        """Names of mmsegmentation's settings that are known for such a config: those that `to_mmseg` writes, and `mmseg_known`."""
        try:
            return {*cls.to_mmseg(config), *cls.mmseg_known}
        except ArgumentError:  # there is no such backbone over there
            return {*cls.mmseg_known}

    @classmethod
    def to_transformers(cls, config: Any) -> dict[str, Any]:
        """The backbone's config in transformers, plain values: `model_type` and the options of that.

        Raises:
            ArgumentError: transformers has no such backbone; says why.
        """
        raise ArgumentError(f"transformers has no {config.title}. Use ONNX or torch.export for it.")

    @classmethod
    def to_smp(cls, config: Any) -> dict[str, Any]:
        """The encoder's options in segmentation_models_pytorch, plain values: `encoder_name`, and what timm's model of that name takes.

        Raises:
            ArgumentError: it has no such encoder, or the features of this have no layer norms, which its head begins with.
        """
        raise ArgumentError(f"smp's head begins with a layer norm for each feature, and those of {config.title} have none there")

    @classmethod
    def note_of(cls, config: Any, library: str) -> str | None:
        """What another library computes otherwise, whatever its config says, in a sentence for people; None: nothing that is known.

        Args:
            config: of the backbone.
            library: "smp", "mmsegmentation 0" or "mmsegmentation 1".
        """
        return None

    @classmethod
    def adjust_transformers(cls, config: Any, backbone: nn.Module) -> str | None:
        """Set on transformers' backbone what its config cannot say; returns a sentence about that, for people, or None."""
        return None

    @classmethod
    def from_transformers(cls, settings: Mapping[str, Any]) -> BackboneConfig | None:
        """The config of a backbone in transformers, from what `to_transformers` gives; None if it is of another kind.

        Raises:
            ConfigError: of this kind, and a variant that this library does not compute; says which.
        """
        return None


def build_backbone(config: BackboneConfig) -> Backbone:
    """The backbone of a config, initialized by its modules' own defaults."""
    cls: Any = backbone_class(config)  # a kind's own class takes its config alone
    backbone: Backbone = cls(config)
    return backbone


def backbone_class(config: BackboneConfig) -> type[Backbone]:
    """The class of a config's kind."""
    cls: type[Backbone] = BACKBONES.get(config.kind, type(config).__name__)
    return cls


def first_conv_name(config: BackboneConfig) -> str:
    """Name of the convolution that sees the picture, in the backbone."""
    with torch.device("meta"):
        backbone = build_backbone(config)
    names: dict[int, str] = {id(module): name for name, module in backbone.named_modules()}
    return names[id(backbone.first_conv)]


def recognize_backbone(tensors: Mapping[str, Tensor], settings: Mapping[str, Any], library: str) -> BackboneConfig | None:
    """The config of the backbone in a checkpoint, of whatever kind; None if no kind knows it. See `Backbone.recognize`."""
    found = (cls.recognize(tensors, settings, library) for cls in BACKBONES.classes())
    return next((config for config in found if config is not None), None)


def count_blocks(tensors: Iterable[str], prefix: str) -> int:
    """How many blocks there are: different words that follow `prefix` in names of tensors, up to the next dot."""
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})


def require_settings(settings: Mapping[str, Any], known: Mapping[tuple[str, ...], tuple[Any, ...]], where: str) -> None:
    """Refuse settings of mmsegmentation that change what is computed, and have another value than this library computes.

    Args:
        settings: a part of a config.
        known: path of a key -> the values that are known; the first is what an absent key means.
        where: the part's place in the config, for the message.

    Raises:
        ConfigError: names key and value.
    """
    for path, values in known.items():
        found: Any = settings
        for position, key in enumerate(path):
            if not isinstance(found, Mapping) or key not in found:
                break
            found = found[key]
            rest = path[position + 1 :]
            name = getattr(found, "name", found)  # of a class that the config imports
            plain = tuple(found) if isinstance(found, list) else name.rsplit(".", 1)[-1] if isinstance(name, str) else found
            if not isinstance(found, Mapping) if rest else plain not in values:  # nothing in the place of a dict is no default
                choices = " or ".join(repr(value) for value in values)
                wanted = f"{'.'.join(rest)}={choices}" if rest else choices
                raise ConfigError(
                    f"its config has {'.'.join((where, *path[: position + 1]))}={shown(found)}; this library has {wanted} only."
                )
