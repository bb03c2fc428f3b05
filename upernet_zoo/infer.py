"""What model a checkpoint holds, from its tensors and from the config text inside it or beside it.

Depth, widths, stem, class count and input channels are read off the tensors. What these cannot tell (align_corners, pooling scales, test
mode, scale, normalisation, classes, palette) comes from mmsegmentation's config, of 0.x or 1.x, and is assumed where that is silent.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from . import config_text, labels
from .checkpoint import Checkpoint, Description, name_list
from .config import RESNET_STAGES, Recipe, UPerNetConfig
from .errors import CheckpointError, ConfigError, shown

_DEFAULT_SCALES = (1, 2, 3, 6)

# what tensors of other models begin with; with the name, the refusal says what the file is
_OTHERS = {
    "backbone.layer1.0.downsample.2.": "a ResNet-V1d backbone (average pooling in its shortcuts)",
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
    ("backbone", "type"): ("ResNetV1c", "ResNet"),
    ("backbone", "num_stages"): (4,),
    ("backbone", "strides"): ((1, 2, 2, 2),),
    ("backbone", "dilations"): ((1, 1, 1, 1),),
    ("backbone", "out_indices"): ((0, 1, 2, 3),),
    ("backbone", "style"): ("pytorch",),
    ("backbone", "avg_down"): (False,),
    ("backbone", "multi_grid"): (None,),
    ("backbone", "dcn"): (None,),
    ("backbone", "plugins"): (None,),
    ("backbone", "conv_cfg"): (None,),
    ("backbone", "norm_cfg", "type"): ("BN", "SyncBN", "MMSyncBN"),
    ("backbone", "norm_cfg", "eps"): (1e-5,),
    ("decode_head", "type"): ("UPerHead",),
    ("decode_head", "in_index"): ((0, 1, 2, 3),),
    ("decode_head", "conv_cfg"): (None,),
    ("decode_head", "act_cfg", "type"): ("ReLU",),
    ("decode_head", "norm_cfg", "type"): ("BN", "SyncBN", "MMSyncBN"),
    ("decode_head", "norm_cfg", "eps"): (1e-5,),
}
_DATASETS = {
    "CityscapesDataset": "cityscapes",
    "ADE20KDataset": "ade20k",
    "PascalVOCDataset": "voc12aug",
}
_PIPELINES = (  # of 0.x and 1.x
    ("data", "test", "pipeline"),
    ("test_dataloader", "dataset", "pipeline"),
    ("test_pipeline",),
)
_CLASSES = (
    ("data", "test"),
    ("data", "train"),
    ("test_dataloader", "dataset", "metainfo"),
    ("train_dataloader", "dataset", "metainfo"),
    ("metainfo",),
    (),
)


@dataclass
class Report:
    """What was made of a checkpoint file, each item in words.

    Attributes:
        read: taken from the file or the config.
        assumed: said by neither.
        dropped: in the file, and not in the model.
    """

    read: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

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
        config: values of a config file (`config_text.read_file`), in place of the text in the checkpoint.

    Returns:
        The description, the tensors for it (of a network trained on BGR the first convolution is turned to RGB), and a report.

    Raises:
        CheckpointError: not a UPerNet with a ResNet or ResNet-V1c backbone; says what it is.
    """
    report = Report(dropped=list(checkpoint.dropped))
    owner = str(checkpoint.path)
    if checkpoint.description is not None:
        report.read.append("everything: the file was written by this library")
        description = dataclasses.replace(checkpoint.description, origin=checkpoint.description.origin or origin)
        return description, checkpoint.state_dict, report
    text = config if config is not None else config_text.parse(checkpoint.meta.get("config") or checkpoint.meta.get("cfg"))
    _require_settings(text, owner)
    state_dict = checkpoint.state_dict
    try:
        architecture = _infer_config(state_dict, text, owner, report)
        recipe, is_bgr = _infer_recipe(checkpoint, text, architecture.in_channels, report)
        label_set = _infer_labels(checkpoint.meta, text, architecture.num_classes, report)
    except ConfigError as error:
        raise CheckpointError(f"{owner}: {error}") from None
    if is_bgr:
        first = "backbone.stem.0.weight"
        state_dict = {**state_dict, first: state_dict[first].flip(1)}
        report.read.append(f"the network takes BGR: the channels of {first}, mean and std were turned to RGB")
    return Description(architecture, recipe, label_set, origin), state_dict, report


def _require_settings(text: Mapping[str, Any], owner: str) -> None:
    model = config_text.find(text, "model", kind=dict) or {}
    for path, values in _SETTINGS.items():
        parent = config_text.find(model, *path[:-1], kind=dict) or {}
        found = parent.get(path[-1], values[0])
        plain = tuple(found) if isinstance(found, list) else found.rsplit(".", 1)[-1] if isinstance(found, str) else found
        if plain not in values:
            known = " or ".join(repr(value) for value in values)
            raise CheckpointError(f"{owner}: its config has model.{'.'.join(path)}={shown(found)}; this library has {known} only.")


def _infer_config(state_dict: Mapping[str, Tensor], text: Mapping[str, Any], owner: str, report: Report) -> UPerNetConfig:
    """Architecture from shapes; what shapes cannot tell comes from the config text, or is assumed and listed."""

    def shape(key: str) -> tuple[int, ...]:
        if key not in state_dict or state_dict[key].dim() != 4:
            other = next((name for start, name in _OTHERS.items() if any(k.startswith(start) for k in state_dict)), None)
            heads = sorted({".".join(k.split(".")[:2]) for k in state_dict})
            raise CheckpointError(
                f"{owner}: not a UPerNet with a ResNet or ResNet-V1c backbone and an auxiliary head: it has no convolution {key!r}"
                f"{f', and looks like {other}' if other else ''}. Its tensors are in {name_list(heads, 12)}."
            )
        return tuple(state_dict[key].shape)

    first_of_stem = shape("backbone.stem.0.weight")
    deep_stem = first_of_stem[2:] != (7, 7)
    stem = shape("backbone.stem.6.weight") if deep_stem else first_of_stem
    fpn = shape("decode_head.fpn_bottleneck.conv.weight")
    first = shape("backbone.layer1.0.conv1.weight")
    if "backbone.layer2.0.downsample.2.weight" in state_dict:
        raise CheckpointError(f"{owner}: has a ResNet-V1d backbone (average pooling in its shortcuts); known are ResNet and ResNet-V1c.")
    bottleneck = "backbone.layer1.0.conv3.weight" in state_dict
    if bottleneck and shape("backbone.layer1.0.conv2.weight")[:2] != (first[0], first[0]):
        raise CheckpointError(f"{owner}: has a ResNeXt or ResNeSt backbone (grouped convolutions); known are ResNet and ResNet-V1c.")
    blocks = tuple(len({k.split(".")[2] for k in state_dict if k.startswith(f"backbone.layer{i}.")}) for i in range(1, 5))
    depth = next((d for d, stages in RESNET_STAGES.items() if stages == (bottleneck, blocks)), None)
    if depth is None:
        kind = "bottleneck" if bottleneck else "basic"
        raise CheckpointError(
            f"{owner}: a ResNet with {blocks} {kind} blocks is not known; depths are {', '.join(map(str, RESNET_STAGES))}."
        )
    head = config_text.find(text, "model", "decode_head", kind=dict) or {}
    branches = sum(bool(re.fullmatch(r"decode_head\.pyramid_pooling\.branches\.\d+\.conv\.weight", k)) for k in state_dict)
    scales = config_text.find(head, "pool_scales", kind=(list, tuple))
    assumed = []
    if scales is None:
        scales = _DEFAULT_SCALES
        assumed.append(f"pool_scales={scales}")
    if len(scales) != branches:
        none_given = ", as none were given: pass the training config (config=, --config)" if assumed else ""
        raise CheckpointError(f"{owner}: {branches} pyramid pooling branches, but pool_scales is {shown(tuple(scales))}{none_given}.")
    align_corners = config_text.find(head, "align_corners", kind=bool)
    if align_corners is None:
        align_corners = False
        assumed.append("align_corners=False (the 769x769 Cityscapes models need True)")
    config = UPerNetConfig(
        depth=depth,
        num_classes=shape("decode_head.classifier.weight")[0],
        align_corners=align_corners,
        base_channels=first[0],
        stem_channels=stem[0],
        channels=fpn[0],
        aux_channels=shape("auxiliary_head.conv.conv.weight")[0],
        pool_scales=tuple(scales),
        in_channels=first_of_stem[1],
        deep_stem=deep_stem,
    )
    if config.num_classes == 1:
        raise CheckpointError(f"{owner}: has one output channel, for a sigmoid and a threshold; this library takes the largest of several.")
    widths = f"widths {config.stem_channels} (stem), {config.base_channels} (first stage), {config.channels} (head)"
    report.read.append(
        f"from the tensors: {config.backbone_name}, {widths}, {config.aux_channels} (auxiliary head), {config.num_classes} classes"
    )
    report.read += [f"from the config: {key}={getattr(config, key)}" for key in ("pool_scales", "align_corners") if key in head]
    report.assumed += assumed
    return config


def _infer_recipe(checkpoint: Checkpoint, text: Mapping[str, Any], in_channels: int, report: Report) -> tuple[Recipe, bool]:
    """The recipe, with mean and std in RGB, and whether the network takes BGR."""
    found: dict[str, Any] = {}
    is_bgr = False
    steps = next((s for s in (config_text.find(text, *path, kind=(list, tuple)) for path in _PIPELINES) if s), ())
    for step in (step for step in steps if isinstance(step, dict)):
        # 0.x: MultiScaleFlipAug with img_scale and the other steps inside it; 1.x: Resize with scale
        for inner in (step, *(config_text.find(step, "transforms", kind=(list, tuple)) or ())):
            kind = config_text.find(inner, "type", kind=str)
            if kind == "Normalize":
                found["mean"], found["std"] = inner.get("mean"), inner.get("std")
                is_bgr = inner.get("to_rgb") is False
            if kind == "Resize" and inner.get("keep_ratio") is False:
                report.assumed.append("pictures keep their ratio, which the config's test pipeline does not let them (keep_ratio=False)")
        scale = step.get("img_scale", step.get("scale") if step.get("type") == "Resize" else None)
        if isinstance(scale, list) and scale and isinstance(scale[0], (list, tuple)):
            scale = scale[0]  # of several, the first
        if scale is not None:
            found["scale"] = scale
    preprocessor = config_text.find(text, "model", "data_preprocessor", kind=dict) or config_text.find(text, "data_preprocessor", kind=dict)
    if preprocessor is not None:  # 1.x; without a mean it leaves pixels as they are
        found["mean"], found["std"] = preprocessor.get("mean") or [0.0] * in_channels, preprocessor.get("std") or [1.0] * in_channels
        is_bgr = not preprocessor.get("bgr_to_rgb", False)
    for key, value in checkpoint.normalisation.items():
        if key in ("mean", "std"):
            found[key] = value.flatten().tolist()
    assumed = []
    if "scale" not in found:
        found["scale"] = (2048, 512)
        assumed.append("scale=(2048, 512)")
    if found.get("mean") is None or found.get("std") is None:
        mean, std = Recipe.__dataclass_fields__["mean"].default, Recipe.__dataclass_fields__["std"].default
        repeats = -(-in_channels // 3)
        found["mean"], found["std"] = (mean * repeats)[:in_channels], (std * repeats)[:in_channels]
        assumed.append("mean and std of ImageNet")
    test = config_text.find(text, "model", "test_cfg", kind=dict) or config_text.find(text, "test_cfg", kind=dict)
    if test is None or "mode" not in test:
        assumed.append("mode='whole'")
    else:
        found["mode"] = test["mode"]
        if test["mode"] == "slide":
            found.update(crop=test.get("crop_size"), stride=test.get("stride"))
    recipe = Recipe.from_dict(found, "the config text's recipe")
    if len(recipe.mean) != in_channels:
        raise ConfigError(f"the model has {in_channels} input channels, and its config a mean of {len(recipe.mean)}.")
    is_bgr = is_bgr and in_channels == 3
    if is_bgr:
        recipe = dataclasses.replace(recipe, mean=recipe.mean[::-1], std=recipe.std[::-1])
    said = " ".join(assumed)
    report.read += [f"from the config: {key}={value}" for key, value in recipe.to_dict().items() if key not in said]
    report.assumed += assumed
    return recipe, is_bgr


def _infer_labels(meta: Mapping[str, Any], text: Mapping[str, Any], num_classes: int, report: Report) -> labels.LabelSet:
    places = [(meta.get("CLASSES"), meta.get("PALETTE"))]
    in_config = (config_text.find(text, *path, kind=dict) or {} for path in _CLASSES)
    for place in (config_text.find(meta, "dataset_meta", kind=dict) or {}, *in_config):
        places.append((place.get("classes"), place.get("palette")))
    for classes, palette in places:
        if isinstance(classes, (list, tuple)) and len(classes) == num_classes:
            label_set = labels.named(classes, palette if isinstance(palette, (list, tuple)) else ())
            report.read.append(f"classes and palette of {label_set.title}" if label_set.name in labels.names() else "class names")
            return label_set
    dataset = config_text.find(text, "dataset_type", kind=str)
    known = _DATASETS.get(dataset)
    if known is not None and len(labels.get(known)) == num_classes:
        report.read.append(f"from the config: dataset_type={dataset!r}, with its classes and palette")
        return labels.get(known)
    report.assumed.append(f"class names 'class 0' to 'class {num_classes - 1}'")
    return labels.generic(num_classes)
