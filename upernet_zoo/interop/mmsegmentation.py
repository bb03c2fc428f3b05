"""To mmsegmentation: a checkpoint in the published format, and the config that goes with it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .. import files, labels
from ..checkpoints.names import to_published
from ..config import KernelUpdateConfig, Recipe
from ..errors import ArgumentError
from ..labels import LabelSet
from ..models.backbones._base import backbone_class
from ..models.necks import neck_class
from ..models.upernet import UPerNet
from ..version import __version__
from ..wording import worded
from ..written import CONFIG_LINE, VERSION_KEY, require_replaceable

__all__ = ["VERSIONS", "to_mmsegmentation"]

VERSIONS = (0, 1)


def to_mmsegmentation(model: UPerNet, path: str | os.PathLike[str], *, version: int = 0, overwrite: bool = False) -> Path:
    """Write a `.pth` file that mmsegmentation loads with strict=True, and beside it the config, a `.py` file of the same name.

    `init_segmentor("model.py", "model.pth")` of 0.x runs it there, `init_model` of 1.x; the config is in the checkpoint's `meta` too,
    as in published ones. The tensors are the same for both. It warns of what this version computes otherwise, such as of an epsilon.

    Args:
        model: in any dtype; float32 is written.
        path: ends in ".pth".
        version: of mmsegmentation that the config is for: 0 or 1.
        overwrite: replace files that are there and were not written by this library.

    Raises:
        ArgumentError: another name or version, no `UPerNet`, or a recipe that this version cannot be asked for.
        ConfigError: a recipe with steps that this library does not know (`Recipe.unsupported`).
        ExistingFileError: a file of either name is there, and was not written by this library.
        WriteError: a file cannot be written.

    Examples:
        >>> import upernet_zoo as uz
        >>> from upernet_zoo.interop.mmsegmentation import to_mmsegmentation
        >>> to_mmsegmentation(uz.create_model("demo"), "theirs.pth", version=1).with_suffix(".py").is_file()
        True
    """
    if not isinstance(model, UPerNet):
        raise ArgumentError(f"to_mmsegmentation takes a UPerNet, found {type(model).__name__}. create_model and load_checkpoint make one.")
    if isinstance(version, bool) or version not in VERSIONS:
        raise ArgumentError(f"to_mmsegmentation: version is 0 or 1, found {version!r}.")
    path = files.expanded(path)
    if path.suffix != ".pth":
        raise ArgumentError(f"{path}: a checkpoint for mmsegmentation is a .pth file. Name one.")
    config = path.with_suffix(".py")
    for file in (path, config):
        require_replaceable(file, overwrite)
    model.recipe.require_supported()
    note = backbone_class(model.config.backbone).note_of(model.config.backbone, f"mmsegmentation {version}")
    if note is not None:
        warnings.warn(note, stacklevel=2)
    values = _config_of_v1(model) if version else _config_of_v0(model)
    text = "".join(f"{name} = {value!r}\n" for name, value in values.items())
    label_set = model.label_set
    palette = [list(color) for color in label_set.palette]
    meta: dict[str, Any] = {
        "cfg" if version else "config": text,
        "CLASSES": label_set.classes,
        "PALETTE": palette,
        "dataset_meta": _masks(label_set) | {"classes": label_set.classes, "palette": palette},
        VERSION_KEY: __version__,
    }
    state = {key: value.detach().cpu() for key, value in to_published(model.state_dict()).items()}
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    buffers = backbone_class(model.config.backbone).mmseg_buffers(model.config.backbone)
    state |= {f"backbone.{key}": value for key, value in buffers.items()}

    def save(temporary: Path) -> None:
        with files.writing(temporary) as file:
            torch.save({"meta": meta, "state_dict": state}, file)

    head = f"{CONFIG_LINE} {__version__}, for {path.name}.\n"
    files.write_together([(path, save), (config, lambda temporary: temporary.write_text(head + text, encoding="utf-8"))])
    return path


def _masks(label_set: LabelSet) -> dict[str, Any]:
    """What the ids of masks mean, as mmsegmentation's `dataset_meta` says it.

    Of a known data set, those that mmsegmentation reads: Cityscapes' files of train ids, not those of label ids.
    """
    count = len(label_set)
    is_known = label_set.name in labels.names() and label_set == labels.get(label_set.name)
    is_reduced = label_set.dataset_ids == tuple(range(1, count + 1))
    if is_known or is_reduced or label_set.dataset_ids == tuple(range(count)):
        return {"reduce_zero_label": is_reduced, "label_map": None}
    ids = {old: new for new, old in enumerate(label_set.dataset_ids)}
    return {"reduce_zero_label": False, "label_map": ids | {old: 255 for old in label_set.void_ids if old != 255}}


def _config_of_v0(model: UPerNet) -> dict[str, Any]:
    """A model and test pipeline as mmsegmentation 0.x wants them, as plain values."""
    recipe = model.recipe
    if recipe.short_edge:
        raise _not_in(0, recipe)
    resize = {"type": "Resize", "keep_ratio": recipe.keep_ratio}
    if recipe.min_size is not None:
        resize["min_size"] = recipe.min_size
    steps: list[dict[str, Any]] = [resize, {"type": "RandomFlip"}]
    steps.append({"type": "Normalize", "mean": list(recipe.mean), "std": list(recipe.std), "to_rgb": True})
    if recipe.size_divisor > 1:
        steps.append({"type": "Pad", "size_divisor": recipe.size_divisor})
    steps += [{"type": "ImageToTensor", "keys": ["img"]}, {"type": "Collect", "keys": ["img"]}]
    view: dict[str, Any] = {"type": "MultiScaleFlipAug", "img_scale": recipe.scale, "flip": False, "transforms": steps}
    if recipe.scale is None:  # the picture's own, times each ratio
        view["img_ratios"] = [1.0]
    pipeline = [{"type": "LoadImageFromFile"}, view]
    test: dict[str, Any] = {"pipeline": pipeline}
    if _masks(model.label_set)["reduce_zero_label"]:
        test["reduce_zero_label"] = True
    network = _model(model)
    return {**_imports(network), "model": network, "test_pipeline": pipeline, "data": {"test": test}}


def _config_of_v1(model: UPerNet) -> dict[str, Any]:
    """A model and test pipeline as mmsegmentation 1.x wants them, as plain values."""
    recipe, label_set = model.recipe, model.label_set
    if len(recipe.mean) not in (1, 3):
        raise ArgumentError(
            f"mmsegmentation 1.x normalizes pictures of 1 or 3 channels, and this model takes {len(recipe.mean)}. Write it for 0.x."
        )
    preprocessor = {
        "type": "SegDataPreProcessor",
        "mean": list(recipe.mean),
        "std": list(recipe.std),
        "bgr_to_rgb": True,
        "pad_val": 0,
        "seg_pad_val": 255,
    }
    if recipe.size_divisor > 1:
        preprocessor["test_cfg"] = {"size_divisor": recipe.size_divisor}
    pipeline = [{"type": "LoadImageFromFile"}, *_resize_of_v1(recipe), {"type": "PackSegInputs"}]
    metainfo = {"classes": label_set.classes, "palette": [list(color) for color in label_set.palette]}
    reduced = _masks(label_set)["reduce_zero_label"]
    dataset = {"type": "BaseSegDataset", "metainfo": metainfo, "reduce_zero_label": reduced, "pipeline": pipeline}
    network = _model(model)
    network["backbone"].update(backbone_class(model.config.backbone).mmseg_v1)
    return {
        "default_scope": "mmseg",
        **_imports(network),
        "model": {**network, "data_preprocessor": preprocessor},
        "test_pipeline": pipeline,
        "test_dataloader": {"dataset": dataset},
    }


def _imports(network: Mapping[str, Any]) -> dict[str, Any]:
    """The statement that imports the package of a backbone that is another one's, such as "mmcls.ConvNeXt"."""
    package, _, name = network["backbone"]["type"].rpartition(".")
    return {"custom_imports": {"imports": [f"{package}.models"], "allow_failed_imports": False}} if package and name else {}


def _resize_of_v1(recipe: Recipe) -> list[dict[str, Any]]:
    if recipe.min_size is not None:
        raise _not_in(1, recipe)
    if recipe.scale is None:
        return []
    if recipe.short_edge:
        return [{"type": "ResizeShortestEdge", "scale": recipe.scale[1], "max_size": recipe.scale[0]}]
    return [{"type": "Resize", "scale": recipe.scale, "keep_ratio": recipe.keep_ratio}]


def _not_in(version: int, recipe: Recipe) -> ArgumentError:
    other = worded(f"version={1 - version}", f"--mmseg-version {1 - version}")
    return ArgumentError(
        f"mmsegmentation {version}.x has no step for this model's recipe, whose pictures are {recipe.resizing}. Write it for the "
        f"other: {other}."
    )


def _model(model: UPerNet) -> dict[str, Any]:
    """The network, as both versions take it."""
    config, recipe = model.config, model.recipe
    norm = {"type": "BN", "requires_grad": True}  # SyncBN of one process; runs without a GPU
    shared = {"num_classes": config.num_classes, "norm_cfg": norm, "align_corners": config.align_corners, "dropout_ratio": 0.1}
    channels = list(config.feature_channels)
    backbone = backbone_class(config.backbone).to_mmseg(config.backbone)
    neck = {} if config.neck is None else {"neck": neck_class(config.neck).to_mmseg(config.neck, config.backbone)}
    head = {
        "type": "UPerHead",
        "in_channels": channels,
        "in_index": [0, 1, 2, 3],
        "pool_scales": config.pool_scales,
        "channels": config.channels,
        **shared,
        "loss_decode": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
    }
    auxiliary = config.auxiliary and {
        "type": "FCNHead",
        "in_channels": channels[config.auxiliary.feature],
        "in_index": config.auxiliary.feature,
        "channels": config.auxiliary.channels,
        "num_convs": config.auxiliary.convs,
        "concat_input": False,
        **shared,
        "loss_decode": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 0.4},
    }
    test: dict[str, Any] = {"mode": recipe.mode}
    if recipe.mode == "slide":
        test.update(crop_size=recipe.crop, stride=recipe.stride)
    return {
        "type": "EncoderDecoder",
        "pretrained": None,
        "backbone": backbone,
        **neck,
        "decode_head": head if config.kernel_updates is None else _knet_head(head, config.kernel_updates),
        "auxiliary_head": auxiliary,
        "train_cfg": {},
        "test_cfg": test,
    }


def _knet_head(head: dict[str, Any], updates: KernelUpdateConfig) -> dict[str, Any]:
    """K-Net's decode head around that of UPerNet."""
    relu = {"type": "ReLU", "inplace": True}
    update = {
        "type": "KernelUpdateHead",
        "num_classes": head["num_classes"],
        "num_ffn_fcs": 2,
        "num_heads": updates.num_heads,
        "num_mask_fcs": 1,
        "feedforward_channels": updates.hidden,
        "in_channels": head["channels"],
        "out_channels": head["channels"],
        "dropout": 0.0,
        "conv_kernel_size": 1,
        "ffn_act_cfg": relu,
        "with_ffn": True,
        "feat_transform_cfg": {"conv_cfg": {"type": "Conv2d"}, "act_cfg": None},
        "kernel_updator_cfg": {
            "type": "KernelUpdator",
            "in_channels": updates.channels,
            "feat_channels": updates.channels,
            "out_channels": updates.channels,
            "act_cfg": relu,
            "norm_cfg": {"type": "LN"},
        },
    }
    stages = [update] * updates.stages
    return {"type": "IterativeDecodeHead", "num_stages": updates.stages, "kernel_update_head": stages, "kernel_generate_head": head}
