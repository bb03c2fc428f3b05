"""To and from transformers' `UperNetForSemanticSegmentation`, with timm's ResNets as its backbone. Needs the extra `transformers`.

Both sides have the same tensors under other names. There is no `align_corners` over there, timm's ResNets have one width, and the
pipeline runs no windows: a model that needs one of these is refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import labels
from .checkpoint import Description, KeyTable, build
from .config import Recipe, UPerNetConfig
from .errors import ArgumentError, CheckpointError, ConfigError, MissingFileError
from .models import UPerNet

if TYPE_CHECKING:
    from transformers import SegformerImageProcessor, UperNetForSemanticSegmentation

_WIDTH = 64  # of the stem and of the first stage in timm's ResNets
# (deep stem?, depth) -> timm's name
_BACKBONES = {
    (True, 50): "resnet50c",
    (True, 101): "resnet101c",
    (False, 18): "resnet18",
    (False, 34): "resnet34",
    (False, 50): "resnet50",
    (False, 101): "resnet101",
}
_DESCRIPTION_KEY = "upernet_zoo"  # in the config over there: what it has no place for (palette, recipe, origin)

# native name <-> transformers' name
_HEADS = (
    ("decode_head.pyramid_pooling.branches.{i}.conv.", "decode_head.psp_modules.{i}.1.conv."),
    ("decode_head.pyramid_pooling.branches.{i}.bn.", "decode_head.psp_modules.{i}.1.batch_norm."),
    ("decode_head.pyramid_pooling.bottleneck.conv.", "decode_head.bottleneck.conv."),
    ("decode_head.pyramid_pooling.bottleneck.bn.", "decode_head.bottleneck.batch_norm."),
    ("decode_head.lateral_convs.{i}.bn.", "decode_head.lateral_convs.{i}.batch_norm."),
    ("decode_head.fpn_convs.{i}.bn.", "decode_head.fpn_convs.{i}.batch_norm."),
    ("decode_head.fpn_bottleneck.bn.", "decode_head.fpn_bottleneck.batch_norm."),
    ("auxiliary_head.conv.conv.", "auxiliary_head.convs.0.conv."),
    ("auxiliary_head.conv.bn.", "auxiliary_head.convs.0.batch_norm."),
)
_KEYS = {
    True: KeyTable(
        *_HEADS,
        ("backbone.stem.7.", "backbone._backbone.bn1."),
        ("backbone.stem.", "backbone._backbone.conv1."),
        ("backbone.", "backbone._backbone."),
    ),
    False: KeyTable(
        *_HEADS,
        ("backbone.stem.0.", "backbone._backbone.conv1."),
        ("backbone.stem.1.", "backbone._backbone.bn1."),
        ("backbone.", "backbone._backbone."),
    ),
}


def _transformers():
    try:
        import timm  # noqa: F401  transformers asks for it only when a backbone is built
        import transformers
    except ImportError as error:
        raise ArgumentError(f"This needs the package {error.name}: pip install 'upernet-zoo[transformers]'.") from None
    return transformers


def to_transformers(model: UPerNet) -> tuple[UperNetForSemanticSegmentation, SegformerImageProcessor]:
    """The same model as transformers' `UperNetForSemanticSegmentation` in eval mode, on the CPU, and its image processor.

    `pipeline("image-segmentation", model=..., image_processor=...)` runs them. The processor resizes to the recipe's scale with
    Pillow's or torchvision's smoothing bilinear filter, and rounds sizes down: label maps agree with ours but for some pixels at borders.

    Raises:
        ArgumentError: transformers cannot represent the model; says why. Or a package is missing.
    """
    if not isinstance(model, UPerNet):
        raise ArgumentError(f"to_transformers takes a UPerNet, found {type(model).__name__}. create_model and load_checkpoint make one.")
    transformers = _transformers()
    config, recipe, label_set = model.config, model.recipe, model.label_set
    faults = []
    if config.align_corners:
        faults.append("it resizes with align_corners=True, and transformers always with False, which gives other logits")
    if recipe.mode != "whole":
        faults.append("it is run in sliding windows, and the pipeline runs pictures whole")
    if (config.base_channels, config.stem_channels) != (_WIDTH, _WIDTH):
        faults.append(f"its backbone has widths {config.stem_channels} and {config.base_channels}, and timm's have {_WIDTH}")
    if (config.deep_stem, config.depth) not in _BACKBONES:
        faults.append(f"timm has no {config.backbone_name}")
    if config.in_channels != 3:
        faults.append(f"it takes {config.in_channels} channels, and the image processor RGB")
    if faults:
        raise ArgumentError(f"transformers cannot represent this model: {'; '.join(faults)}. Use ONNX or torch.export for it.")
    backbone = transformers.TimmBackboneConfig(backbone=_BACKBONES[config.deep_stem, config.depth], out_indices=(1, 2, 3, 4))
    theirs = transformers.UperNetForSemanticSegmentation(
        transformers.UperNetConfig(
            backbone_config=backbone,
            hidden_size=config.channels,
            pool_scales=list(config.pool_scales),
            auxiliary_channels=config.aux_channels,
            loss_ignore_index=label_set.ignore_index,
            id2label=dict(enumerate(label_set.classes)),
            label2id={name: i for i, name in enumerate(label_set.classes)},
            **{_DESCRIPTION_KEY: Description.of(model).to_dict()},
        )
    )
    theirs.load_state_dict(_KEYS[config.deep_stem].to_theirs(model.state_dict()), strict=True)
    processor = transformers.SegformerImageProcessor(
        size={"longest_edge": recipe.scale[0], "shortest_edge": recipe.scale[1]},
        image_mean=[value / 255 for value in recipe.mean],
        image_std=[value / 255 for value in recipe.std],
        do_reduce_labels=False,
    )
    return theirs.eval(), processor


def from_transformers(model: UperNetForSemanticSegmentation, processor: Any = None) -> UPerNet:
    """The same model as a native one, in eval mode; its tensors are copied.

    Palette, recipe and origin come back where `to_transformers` left them in the config; else the recipe comes from `processor`.

    Args:
        model: with timm's ResNet as its backbone.
        processor: its image processor, of which mean, std and size are used.

    Raises:
        ArgumentError: another kind of model.
        CheckpointError: another backbone, or tensors that do not fit.
    """
    transformers = _transformers()
    if not isinstance(model, transformers.UperNetForSemanticSegmentation):
        raise ArgumentError(f"from_transformers takes a UperNetForSemanticSegmentation, found {type(model).__name__}.")
    owner, theirs = f"transformers' model {model.config.name_or_path!r}", model.config
    name = getattr(theirs.backbone_config, "backbone", None) or theirs.backbone_config.model_type
    found = next((key for key, known in _BACKBONES.items() if known == name), None)
    if found is None:
        raise CheckpointError(f"{owner} has the backbone {name!r}; known are timm's {', '.join(_BACKBONES.values())}.")
    deep_stem, depth = found
    config = UPerNetConfig(
        depth=depth,
        num_classes=theirs.num_labels,
        channels=theirs.hidden_size,
        aux_channels=theirs.auxiliary_channels,
        pool_scales=tuple(theirs.pool_scales),
        in_channels=theirs.backbone_config.num_channels,
        deep_stem=deep_stem,
    )
    state = {key: value.detach().cpu().float() if value.is_floating_point() else value.cpu() for key, value in model.state_dict().items()}
    native = {key: value.clone() for key, value in _KEYS[deep_stem].to_ours(state).items()}
    return build(_describe(model, config, processor, owner), native, owner)


def _describe(model: UperNetForSemanticSegmentation, config: UPerNetConfig, processor: Any, owner: str) -> Description:
    classes = tuple(model.config.id2label[i] for i in range(config.num_classes))
    left = getattr(model.config, _DESCRIPTION_KEY, None)
    if isinstance(left, Mapping):
        description = Description.from_dict(left, owner)
        if description.config == config and description.label_set.classes == classes:
            return description
    return Description(config, _recipe(processor), labels.named(classes))


def _recipe(processor: Any) -> Recipe:
    if processor is None:
        return Recipe(scale=(2048, 512))
    size = dict(processor.size)
    long, short = size.get("longest_edge") or size.get("width"), size.get("shortest_edge") or size.get("height")
    mean, std = (tuple(value / processor.rescale_factor for value in values) for values in (processor.image_mean, processor.image_std))
    try:
        return Recipe(scale=(long, short), mean=mean, std=std)
    except ConfigError as error:
        raise CheckpointError(f"The image processor's size {size} is no (longest, shortest) edge: {error}") from None


def save_transformers(model: UPerNet, folder: str | os.PathLike) -> Path:
    """Write model and image processor into a folder: `pipeline("image-segmentation", folder)` and `from_pretrained(folder)` load them.

    Raises:
        ArgumentError: see `to_transformers`.
    """
    for part in to_transformers(model):
        part.save_pretrained(folder)
    return Path(folder)


def load_transformers(folder: str | os.PathLike) -> UPerNet:
    """`from_transformers` of a folder that transformers' `save_pretrained` wrote; nothing but safetensors is read.

    Raises:
        MissingFileError: no such folder.
        ArgumentError, CheckpointError: see `from_transformers`.
    """
    transformers = _transformers()
    folder = Path(folder).expanduser()
    if not (folder / "config.json").is_file():
        raise MissingFileError(f"{folder} has no config.json, so no model of transformers. Check the path.")
    try:
        options = dict(local_files_only=True)
        model = transformers.UperNetForSemanticSegmentation.from_pretrained(folder, use_safetensors=True, **options)
        has_processor = (folder / "preprocessor_config.json").is_file()
        processor = transformers.AutoImageProcessor.from_pretrained(folder, **options) if has_processor else None
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: transformers cannot load it: {error}") from None
    return from_transformers(model, processor)
