"""Small models, whose constructor's keywords are here alone."""

import dataclasses

import torch

import upernet_zoo as uz

_BACKBONE = {field.name for field in dataclasses.fields(uz.ResNetConfig)}


def small_config(aux_channels=4, **options):
    """A UPerNet of widths 4 and 8 with five classes on a ResNet-V1c-18; `options` are those of `ResNetConfig` and `UPerNetConfig`.

    Args:
        aux_channels: width of the auxiliary head; None: no such head.
    """
    backbone = dict(depth=18, base_channels=4, stem_channels=4) | {k: v for k, v in options.items() if k in _BACKBONE}
    auxiliary = None if aux_channels is None else uz.AuxiliaryConfig(channels=aux_channels)
    heads = dict(num_classes=5, channels=8, auxiliary=auxiliary) | {k: v for k, v in options.items() if k not in _BACKBONE}
    return uz.UPerNetConfig(backbone=uz.ResNetConfig(**backbone), **heads)


def changed(config, **options):
    """The config with other options of its backbone, or of its own."""
    backbone = dataclasses.replace(config.backbone, **{k: v for k, v in options.items() if k in _BACKBONE})
    return dataclasses.replace(config, backbone=backbone, **{k: v for k, v in options.items() if k not in _BACKBONE})


def small_model(recipe=None, label_set=None, seed=0, **options):
    """A freshly initialized model of `small_config(**options)`, in eval mode."""
    torch.manual_seed(seed)
    return uz.UPerNet(small_config(**options), recipe, label_set).eval()
