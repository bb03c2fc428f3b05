"""Which auxiliary head of a checkpoint a model takes. Training alone needs one: what does not fit is left out, and said."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..config import AuxiliaryConfig, UPerNetConfig
from ..errors import ConfigError
from ..models.backbones._base import BATCH_NORMS, require_settings
from . import mmseg_config

__all__ = ["choose"]

_NAME = re.compile(r"auxiliary_head\.(?:(\d+)\.)?(.+)")  # mmsegmentation numbers them where the config has a list of heads
_CONV = re.compile(r"convs\.(\d+)\.conv\.weight")
_IN_CONV = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "bn.num_batches_tracked")
_IN_CLASSIFIER = ("weight", "bias")
# settings of mmsegmentation that change what is computed, and the values that this library computes
_SETTINGS: dict[tuple[str, ...], tuple[Any, ...]] = {
    ("type",): ("FCNHead",),
    ("dilation",): (1,),
    ("conv_cfg",): (None,),
    ("input_transform",): (None,),
    ("act_cfg", "type"): ("ReLU",),
    ("norm_cfg", "type"): BATCH_NORMS,
    ("norm_cfg", "eps"): (1e-5,),
}


def choose(
    state_dict: Mapping[str, Tensor], config: UPerNetConfig, settings: Any
) -> tuple[dict[str, Tensor], AuxiliaryConfig | None, list[str]]:
    """The auxiliary head that fits a model: of several, one on the feature that is usual, else the first.

    Args:
        state_dict: of a whole checkpoint, under native names.
        config: of the model, whatever it says of an auxiliary head.
        settings: mmsegmentation's `model.auxiliary_head`: a dict, a list of them, or anything else where nothing is known.

    Returns:
        The tensors with those of this head alone, its config (None: there is none that fits), and the heads that were left out, in words.
    """
    kept: dict[str, Tensor] = {}
    heads: dict[int | None, dict[str, Tensor]] = {}
    for name, value in state_dict.items():
        if match := _NAME.fullmatch(name):
            number = None if match[1] is None else int(match[1])
            heads.setdefault(number, {})[re.sub(r"^conv_seg\.", "classifier.", match[2])] = value
        else:
            kept[name] = value
    fitting: dict[int | None, AuxiliaryConfig] = {}
    dropped = []
    for number, tensors in heads.items():
        try:
            fitting[number] = _recognize(tensors, config, _settings_of(settings, number))
        except ConfigError as error:
            dropped.append(f"{_title(number)} ({error})")
    if not fitting:
        return kept, None, dropped
    usual = AuxiliaryConfig().feature
    chosen = min(fitting, key=lambda number: fitting[number].feature != usual)
    dropped += [f"{_title(number)} (a model has one auxiliary head)" for number in fitting if number != chosen]
    kept |= {f"auxiliary_head.{name}": value for name, value in heads[chosen].items()}
    return kept, fitting[chosen], dropped


def _title(number: int | None) -> str:
    return "auxiliary_head" if number is None else f"auxiliary_head.{number}"


def _settings_of(settings: Any, number: int | None) -> Mapping[str, Any]:
    if isinstance(settings, (list, tuple)):
        settings = settings[number or 0] if (number or 0) < len(settings) else None
    return settings if isinstance(settings, dict) else {}


def _recognize(tensors: Mapping[str, Tensor], config: UPerNetConfig, settings: Mapping[str, Any]) -> AuxiliaryConfig:
    """The config of a head: width and convolutions from the tensors; the feature from the settings, else the usual one if it fits.

    Raises:
        ConfigError: it is of another form; says which.
    """
    require_settings(settings, _SETTINGS, "model.auxiliary_head")
    convs = sorted(int(match[1]) for name in tensors if (match := _CONV.fullmatch(name)))
    expected = {f"convs.{i}.{name}" for i in range(len(convs)) for name in _IN_CONV} | {f"classifier.{name}" for name in _IN_CLASSIFIER}
    if not convs or tensors.keys() != expected:
        other = sorted(tensors.keys() ^ expected)
        raise ConfigError(f"not of 3x3 convolutions with batch norms and a classifier: {', '.join(other[:3])}")
    weights = [tensors[f"convs.{i}.conv.weight"] for i in convs]
    channels = weights[0].shape[0]
    shapes = [tuple(weight.shape) for weight in weights]
    if shapes != [(channels, shape[1] if i == 0 else channels, 3, 3) for i, shape in enumerate(shapes) if len(shape) == 4]:
        raise ConfigError(f"its convolutions are of {', '.join(map(str, shapes))}")
    if tuple(tensors["classifier.weight"].shape) != (config.num_classes, channels, 1, 1):
        raise ConfigError(f"its classifier is of {tuple(tensors['classifier.weight'].shape)}, and there are {config.num_classes} classes")
    return AuxiliaryConfig(feature=_feature(shapes[0][1], config, settings), channels=channels, convs=len(convs))


def _feature(in_channels: int, config: UPerNetConfig, settings: Mapping[str, Any]) -> int:
    features = config.feature_channels
    fitting = [i for i, channels in enumerate(features) if channels == in_channels]
    usual = AuxiliaryConfig().feature
    feature: int | None = mmseg_config.find(settings, "in_index", kind=int)
    if feature is None:
        feature = usual if usual in fitting else next(iter(fitting), None)
    elif feature < 0:
        feature += len(features)
    if feature is None or feature not in fitting:
        raise ConfigError(f"it takes {in_channels} channels, and the features have {', '.join(map(str, features))}")
    return feature
