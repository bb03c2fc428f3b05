"""To mmsegmentation: a checkpoint in the published format, and the config that goes with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from . import sources
from .checkpoint import to_published
from .errors import ArgumentError
from .models import UPerNet
from .version import __version__


def to_mmsegmentation(model: UPerNet, path: str | os.PathLike) -> Path:
    """Write a `.pth` file that mmsegmentation 0.x loads with strict=True, and beside it the config, a `.py` file of the same name.

    `init_segmentor("model.py", "model.pth")` runs it there; the config stands in the checkpoint's `meta` too, as in published ones.
    mmsegmentation 1.x has the same tensors under the same names; its configs are other ones.

    Args:
        model: in any dtype; float32 is written.
        path: ends in ".pth".

    Raises:
        ArgumentError: another name, or no `UPerNet`.
        CacheError: a file cannot be written.
    """
    if not isinstance(model, UPerNet):
        raise ArgumentError(f"to_mmsegmentation takes a UPerNet, found {type(model).__name__}. create_model and load_checkpoint make one.")
    path = Path(path).expanduser()
    if path.suffix != ".pth":
        raise ArgumentError(f"{path}: a checkpoint for mmsegmentation is a .pth file. Name one.")
    text = "".join(f"{name} = {value!r}\n" for name, value in _config(model).items())
    label_set = model.label_set
    meta = {
        "config": text,
        "CLASSES": label_set.classes,
        "PALETTE": [list(colour) for colour in label_set.palette],
        "upernet_zoo_version": __version__,
    }
    state = {key: value.detach().cpu() for key, value in to_published(model.state_dict()).items()}
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    sources.write_atomically(path, lambda temporary: torch.save({"meta": meta, "state_dict": state}, temporary))
    sources.write_atomically(path.with_suffix(".py"), lambda temporary: temporary.write_text(text, encoding="utf-8") and None)
    return path


def _config(model: UPerNet) -> dict[str, Any]:
    """A model and test pipeline as mmsegmentation 0.x wants them, as plain values."""
    config, recipe = model.config, model.recipe
    norm = {"type": "BN", "requires_grad": True}  # SyncBN of one process; runs without a GPU
    shared = {"num_classes": config.num_classes, "norm_cfg": norm, "align_corners": config.align_corners, "dropout_ratio": 0.1}
    channels = list(config.feature_channels)
    test = {"mode": recipe.mode}
    if recipe.mode == "slide":
        test.update(crop_size=recipe.crop, stride=recipe.stride)
    normalize = {"type": "Normalize", "mean": list(recipe.mean), "std": list(recipe.std), "to_rgb": True}
    steps = [
        {"type": "Resize", "keep_ratio": True},
        {"type": "RandomFlip"},
        normalize,
        {"type": "ImageToTensor", "keys": ["img"]},
        {"type": "Collect", "keys": ["img"]},
    ]
    view = {"type": "MultiScaleFlipAug", "img_scale": recipe.scale, "flip": False, "transforms": steps}
    return {
        "model": {
            "type": "EncoderDecoder",
            "pretrained": None,
            "backbone": {
                "type": "ResNetV1c" if config.deep_stem else "ResNet",
                "depth": config.depth,
                "in_channels": config.in_channels,
                "stem_channels": config.stem_channels,
                "base_channels": config.base_channels,
                "num_stages": 4,
                "out_indices": (0, 1, 2, 3),
                "dilations": (1, 1, 1, 1),
                "strides": (1, 2, 2, 2),
                "norm_cfg": norm,
                "norm_eval": False,
                "style": "pytorch",
                "contract_dilation": True,
            },
            "decode_head": {
                "type": "UPerHead",
                "in_channels": channels,
                "in_index": [0, 1, 2, 3],
                "pool_scales": config.pool_scales,
                "channels": config.channels,
                **shared,
                "loss_decode": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
            },
            "auxiliary_head": {
                "type": "FCNHead",
                "in_channels": channels[2],
                "in_index": 2,
                "channels": config.aux_channels,
                "num_convs": 1,
                "concat_input": False,
                **shared,
                "loss_decode": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 0.4},
            },
            "train_cfg": {},
            "test_cfg": test,
        },
        "test_pipeline": [{"type": "LoadImageFromFile"}, view],
        "data": {"test": {"pipeline": [{"type": "LoadImageFromFile"}, view]}},
    }
