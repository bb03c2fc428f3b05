"""What model a checkpoint holds, from its tensors and from the config text inside it or beside it.

Depth, widths, stem, class count and input channels are read off the tensors. What these cannot tell (align_corners, pooling scales, test
mode, scale, normalization, classes, palette) comes from mmsegmentation's config, of 0.x or 1.x, and is assumed where that is silent.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..config import KernelUpdateConfig, NeckConfig, Recipe, UPerNetConfig
from ..description import Description
from ..errors import CheckpointError, ConfigError, shown
from ..models.backbones._base import BATCH_NORMS, backbone_class, first_conv_name, recognize_backbone, require_settings
from ..models.necks import recognize_neck
from ..registry import BACKBONES, NECKS
from ..tables import name_list
from ..wording import option
from . import auxiliary, mmseg_config
from .mmseg_labels import infer_labels
from .mmseg_recipe import infer_recipe
from .read import Checkpoint

__all__ = ["Report", "infer"]

_DEFAULT_SCALES = (1, 2, 3, 6)

# what tensors of other models begin with; with the name, the refusal says what the file is
_OTHERS = {
    "backbone.stages.0.blocks.0.attn.": "a Swin backbone",
    "backbone.patch_embed.": "a Swin or ViT backbone",
    "backbone.downsample_layers.": "a ConvNeXt backbone",
    "backbone.layers.0.": "a transformer (MiT or ViT) backbone",
    "backbone.stage2.": "an HRNet backbone",
    "decode_head.aspp_modules.": "a DeepLab head",
    "decode_head.image_pool.": "a DeepLab head",
    "decode_head.fusion_conv.": "a SegFormer head",
    "decode_head.scale_heads.": "an FPN head",
    "decode_head.transformer_decoder.": "a mask-transformer head",
    "decode_head.convs.": "an FCN head",
    "decode_head.psp_modules.": "a PSPNet head",
    "decode_head.pyramid_pooling.": "a PSPNet head",  # as PSPNet's names are renamed
}
# settings of the config that change what is computed, and the values that this library computes
_SETTINGS: dict[tuple[str, ...], tuple[Any, ...]] = {
    ("type",): ("EncoderDecoder",),
    ("decode_head", "type"): ("UPerHead",),
    ("decode_head", "in_index"): ((0, 1, 2, 3),),
    ("decode_head", "conv_cfg"): (None,),
    ("decode_head", "act_cfg", "type"): ("ReLU",),
    ("decode_head", "norm_cfg", "type"): BATCH_NORMS,
    ("decode_head", "norm_cfg", "eps"): (1e-5,),
}
# of K-Net's stages
_UPDATE_SETTINGS: dict[tuple[str, ...], tuple[Any, ...]] = {
    ("type",): ("KernelUpdateHead",),
    ("num_ffn_fcs",): (2,),
    ("num_mask_fcs",): (1,),
    ("conv_kernel_size",): (1,),
    ("with_ffn",): (True,),
    ("feat_gather_stride",): (1,),
    ("mask_transform_stride",): (1,),
    ("act_cfg", "type"): ("ReLU",),
    ("ffn_act_cfg", "type"): ("ReLU",),
    ("feat_transform_cfg", "act_cfg"): (None,),
    ("feat_transform_cfg", "kernel_size"): (1,),
    ("kernel_updator_cfg", "type"): ("KernelUpdator",),
    ("kernel_updator_cfg", "gate_sigmoid"): (True,),
    ("kernel_updator_cfg", "gate_norm_act"): (False,),
    ("kernel_updator_cfg", "activate_out"): (False,),
    ("kernel_updator_cfg", "act_cfg", "type"): ("ReLU",),
    ("kernel_updator_cfg", "norm_cfg", "type"): ("LN",),
}
# and those that change no prediction, or that the tensors tell
_WITHOUT_EFFECT: dict[tuple[str, ...], str] = {
    (): "pretrained init_cfg train_cfg",
    ("backbone",): "pretrained init_cfg frozen_stages norm_eval with_cp drop_rate attn_drop_rate drop_path_rate convert_weights",
    ("decode_head",): "init_cfg in_channels channels num_classes out_channels dropout_ratio loss_decode ignore_index sampler "
    "input_transform threshold",
}
# and those that are read elsewhere
_READ: dict[tuple[str, ...], str] = {
    (): "backbone neck decode_head auxiliary_head test_cfg data_preprocessor",
    ("decode_head",): "pool_scales align_corners kernel_update_head",
}
_SCOPE = "_scope_"


@dataclass
class Report:
    """What was made of a checkpoint file, each item in words.

    Attributes:
        read: taken from the file or the config.
        assumed: said by neither.
        dropped: in the file, and not in the model.
        lost: of `dropped`, weights that the model goes without.
    """

    read: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = {"read": self.read, "assumed": self.assumed, "dropped": self.dropped}
        return "\n".join(f"{name + ':':<9}{item}" for name, items in parts.items() for item in items or ["nothing"])


def infer(
    checkpoint: Checkpoint, origin: Mapping[str, str], config: Mapping[str, Any] | None = None
) -> tuple[Description, dict[str, Tensor], Report]:
    """What model a checkpoint holds.

    Args:
        checkpoint: as read.
        origin: where the weights come from, for the description.
        config: values of a config file (`mmseg_config.read_file`), in place of the text in the checkpoint.

    Returns:
        The description, the tensors for it (of a network trained on BGR the first convolution is turned to RGB), and a report.

    Raises:
        CheckpointError: not a UPerNet with a backbone that is known; says what it is.
    """
    report = Report(list(checkpoint.found), dropped=list(checkpoint.dropped), lost=list(checkpoint.lost))
    owner = str(checkpoint.path)
    if checkpoint.description is not None:
        report.read.append("everything: the file was written by this library")
        description = dataclasses.replace(checkpoint.description, origin=checkpoint.description.origin or origin)
        return description, checkpoint.state_dict, report
    text = config
    if text is None:
        within = checkpoint.meta.get("config") or checkpoint.meta.get("cfg")
        text = found = mmseg_config.parse(within)
        if within and not (found or found.unread):
            report.assumed.append("nothing of the config in the file, which cannot be read")
    state_dict = checkpoint.state_dict
    try:
        text = _with_plain_head(text)
        require_settings(mmseg_config.find(text, "model", kind=dict) or {}, _SETTINGS, "model")
        architecture, state_dict = _infer_config(checkpoint, text, report)
        recipe, is_bgr, *said = infer_recipe(text, checkpoint.normalization, architecture.in_channels)
        label_set, *also = infer_labels(checkpoint.meta, text, architecture.num_classes)
    except ConfigError as error:
        raise CheckpointError(f"{owner}: {error}") from None
    recipe = _for_one_size(recipe, architecture.backbone.input_size, report)
    report.assumed += _unknown_settings(text, architecture)
    for read, assumed in (said, also):
        report.read += read
        report.assumed += assumed
    if is_bgr:
        first = f"backbone.{first_conv_name(architecture.backbone)}.weight"
        state_dict = {**state_dict, first: state_dict[first].flip(1)}
        report.read.append(f"the network takes BGR: the channels of {first}, mean and std were turned to RGB")
    return Description(architecture, recipe, label_set, origin), state_dict, report


def _for_one_size(recipe: Recipe, size: tuple[int, int] | None, report: Report) -> Recipe:
    """The recipe for a backbone that takes pictures of one size only: no picture may become smaller than the windows.

    mmsegmentation says so in its configs for several scales alone, where it matters for every picture.
    """
    if size is None or recipe.min_size is not None or recipe.scale is None or not recipe.keep_ratio or recipe.short_edge:
        return recipe
    report.assumed.append(f"min_size={max(size)}: no side of a resized picture is shorter than the windows, which cannot be smaller")
    return dataclasses.replace(recipe, min_size=max(size))


def _unknown_settings(text: Mapping[str, Any], architecture: UPerNetConfig) -> list[str]:
    """Settings of the model that could not be read, or are not known here, in words."""
    said, backbone = [], architecture.backbone
    for where, cause in mmseg_config.unread(text, "model").items():
        *place, key = where.split(".")[1:] or [""]
        in_recipe = [*place, key][0] in ("test_cfg", "data_preprocessor")
        if not in_recipe and key not in _WITHOUT_EFFECT.get(tuple(place), "").split():
            said.append(f"nothing for {where} (line {cause.line}, `{cause.text}`, is not read)")
    for path, free in _WITHOUT_EFFECT.items():
        known = {*free.split(), *_READ.get(path, "").split(), _SCOPE}
        known |= {setting[len(path)] for setting in _SETTINGS if setting[: len(path)] == path}
        if path == ("backbone",):
            known |= backbone_class(backbone).known_settings(backbone)
        settings = mmseg_config.find(text, "model", *path, kind=dict) or {}
        unknown = {key: value for key, value in settings.items() if isinstance(key, str) and key not in known}
        said += [
            f"no effect of {'.'.join(('model', *path, key))}={shown(value)}, which is not known here" for key, value in unknown.items()
        ]
    return said


def _infer_config(checkpoint: Checkpoint, text: Mapping[str, Any], report: Report) -> tuple[UPerNetConfig, dict[str, Tensor]]:
    """Architecture from shapes, and the tensors for it; what shapes cannot tell comes from the config text, or is assumed and listed."""
    state_dict, owner = checkpoint.state_dict, str(checkpoint.path)
    model = mmseg_config.find(text, "model", kind=dict) or {}
    settings = mmseg_config.find(model, "backbone", kind=dict) or {}
    backbone = recognize_backbone(_part(state_dict, "backbone"), settings, checkpoint.library)
    if backbone is None:
        raise _no_upernet(owner, f"its backbone is of no kind that is known ({', '.join(BACKBONES.kinds())})", state_dict, "backbone.")
    neck = _infer_neck(state_dict, model, owner)

    def shape(key: str) -> tuple[int, ...]:
        if key not in state_dict or state_dict[key].dim() != 4:
            raise _no_upernet(owner, f"it has no convolution {key!r}", state_dict, "decode_head.")
        return tuple(state_dict[key].shape)

    fpn = shape("decode_head.fpn_bottleneck.conv.weight")
    head = mmseg_config.find(model, "decode_head", kind=dict) or {}
    scales, assumed = _infer_pool_scales(state_dict, head, owner)
    align_corners = mmseg_config.find(head, "align_corners", kind=bool)
    if align_corners is None:
        align_corners = False
        assumed.append("align_corners=False (the 769x769 Cityscapes models need True)")
    config = UPerNetConfig(
        backbone=backbone,
        num_classes=shape("decode_head.classifier.weight")[0],
        channels=fpn[0],
        pool_scales=scales,
        align_corners=align_corners,
        neck=neck,
        kernel_updates=_infer_kernel_updates(state_dict, model),
    )
    state_dict, head_config, left_out = auxiliary.choose(state_dict, config, model.get("auxiliary_head"))
    config = dataclasses.replace(config, auxiliary=head_config)
    report.dropped += left_out
    report.lost += left_out
    if config.num_classes == 1:
        raise CheckpointError(f"{owner}: has one output channel, for a sigmoid and a threshold; this library takes the largest of several.")
    _report(config, assumed, report)
    return config, state_dict


def _infer_pool_scales(state_dict: Mapping[str, Tensor], head: Mapping[str, Any], owner: str) -> tuple[tuple[int, ...], list[str]]:
    """The bins of the pyramid pooling, as many as there are branches; and what was assumed of them, in words."""
    branches = sum(bool(re.fullmatch(r"decode_head\.pyramid_pooling\.branches\.\d+\.conv\.weight", k)) for k in state_dict)
    scales = mmseg_config.find(head, "pool_scales", kind=(list, tuple))
    assumed = [f"pool_scales={_DEFAULT_SCALES}"] if scales is None else []
    scales = _DEFAULT_SCALES if scales is None else tuple(scales)
    if len(scales) != branches:
        none_given = f", as none were given: pass the training config ({option('config')})" if assumed else ""
        raise CheckpointError(f"{owner}: {branches} pyramid pooling branches, but pool_scales is {shown(scales)}{none_given}.")
    return scales, assumed


def _report(config: UPerNetConfig, assumed: list[str], report: Report) -> None:
    """Say what was read and assumed of an architecture."""
    backbone = config.backbone
    options = ", ".join(f"{key}={value}" for key, value in backbone.to_dict().items() if key not in ("kind", "in_channels"))
    other = "no auxiliary head" if config.auxiliary is None else f"auxiliary head of width {config.auxiliary.channels}"
    heads = f"head of width {config.channels}, {other}, {config.num_classes} classes"
    report.read.append(f"from the tensors: {backbone.title} ({options}), {heads}")
    from_config = (key for key in ("pool_scales", "align_corners") if not any(item.startswith(f"{key}=") for item in assumed))
    report.read += [f"from the config: {key}={getattr(config, key)}" for key in from_config]
    report.assumed += assumed


def _with_plain_head(text: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same settings; of K-Net's decode head those of the UPerHead in it, with those of the stages as `kernel_update_head`."""
    model = mmseg_config.find(text, "model", kind=dict)
    head = mmseg_config.find(model, "decode_head", kind=dict)
    inner = mmseg_config.find(head, "kernel_generate_head", kind=dict)
    if model is None or head is None or inner is None or head.get("type") != "IterativeDecodeHead":
        return text
    return {**text, "model": {**model, "decode_head": {**inner, "kernel_update_head": head.get("kernel_update_head")}}}


def _infer_kernel_updates(state_dict: Mapping[str, Tensor], model: Mapping[str, Any]) -> KernelUpdateConfig | None:
    """K-Net's stages: widths from the tensors; the number of attention heads from the config, else the published one."""
    stages = {key.split(".")[2] for key in state_dict if key.startswith("decode_head.updates.")}
    norm, hidden = (state_dict.get(f"decode_head.updates.0.{key}.weight") for key in ("updator.fc_norm", "ffn.0"))
    if not stages or norm is None or hidden is None:
        return None
    settings = mmseg_config.find(mmseg_config.find(model, "decode_head", kind=dict) or {}, "kernel_update_head", kind=(list, tuple)) or ()
    for one in settings:
        require_settings(one, _UPDATE_SETTINGS, "model.decode_head.kernel_update_head")
    heads = {one.get("num_heads", KernelUpdateConfig.num_heads) for one in settings if isinstance(one, dict)}
    if len(heads) > 1:
        raise ConfigError(f"its kernel update heads have different numbers of attention heads {sorted(heads)}; known are those with one.")
    return KernelUpdateConfig(
        stages=len(stages),
        channels=norm.shape[0],
        num_heads=next(iter(heads), KernelUpdateConfig.num_heads),
        hidden=hidden.shape[0],
    )


def _part(state_dict: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    prefix = f"{name}."
    return {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}


def _infer_neck(state_dict: Mapping[str, Tensor], model: Mapping[str, Any], owner: str) -> NeckConfig | None:
    tensors, settings = _part(state_dict, "neck"), mmseg_config.find(model, "neck", kind=dict) or {}
    if not tensors and not settings:
        return None
    neck = recognize_neck(tensors, settings)
    if neck is None:
        raise _no_upernet(owner, f"its neck is of no kind that is known ({', '.join(NECKS.kinds()) or 'none'})", state_dict, "neck.")
    return neck


def _no_upernet(owner: str, why: str, state_dict: Mapping[str, Tensor], part: str) -> CheckpointError:
    known = {start: name for start, name in _OTHERS.items() if start.startswith(part)}
    if any(key.startswith("decode_head.fpn_bottleneck.") for key in state_dict):  # a UPerNet's, whose pyramid pooling is PSPNet's
        known = {start: name for start, name in known.items() if not start.startswith("decode_head.")}
    other = next((name for start, name in known.items() if any(k.startswith(start) for k in state_dict)), None)
    parts = sorted({".".join(k.split(".")[:2]) for k in state_dict})
    return CheckpointError(
        f"{owner}: not a UPerNet that this library knows: {why}{f', and looks like {other}' if other else ''}. Its tensors are in "
        f"{name_list(parts, 12)}."
    )
