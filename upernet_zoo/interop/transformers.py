"""To and from transformers' `UperNetForSemanticSegmentation`: ConvNeXt, Swin, and timm's ResNets. Needs the extra `transformers`.

Both sides have the same tensors under other names. There is no `align_corners` over there, and timm's ResNets have one width: a model that
needs one of these is refused. The pipeline runs no windows: a model that is meant for them goes over, with a warning.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .. import labels
from ..checkpoints.foreign import DESCRIPTION_KEYS
from ..checkpoints.names import to_native, to_theirs
from ..config import AuxiliaryConfig, Recipe, UPerNetConfig
from ..description import Description
from ..errors import ArgumentError, CheckpointError, ConfigError, MissingFileError, MissingPackageError, WriteError, shown
from ..files import expanded, write_atomically
from ..models.backbones._base import backbone_class
from ..models.upernet import UPerNet
from ..registry import BACKBONES
from ..version import install_line
from ..written import require_replaceable_folder
from . import cards

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import SegformerImageProcessor, UperNetForSemanticSegmentation

__all__ = ["from_transformers", "load_transformers", "save_transformers", "to_transformers"]

_CARD_NAME = "README.md"
_logger = logging.getLogger("upernet_zoo")
_DESCRIPTION_KEY = DESCRIPTION_KEYS["transformers"]


def _transformers() -> ModuleType:
    try:
        import timm  # noqa: F401  transformers asks for it only when a backbone is built
        import transformers
    except ImportError as error:
        raise MissingPackageError(f"This needs the package {error.name}: {install_line('transformers')}.") from None
    return transformers


def to_transformers(model: UPerNet) -> tuple[UperNetForSemanticSegmentation, SegformerImageProcessor]:
    """The same model as transformers' `UperNetForSemanticSegmentation` in eval mode, on the CPU, and its image processor.

    `pipeline("image-segmentation", model=..., image_processor=...)` runs them. The processor resizes to the recipe's scale with
    Pillow's or torchvision's smoothing bilinear filter, and rounds sizes down: label maps agree with ours but for some pixels at borders.

    It warns of what is not the same over there, such as of sliding windows, which the pipeline does not run.

    Raises:
        ArgumentError: transformers cannot represent the model; says why. Or a package is missing.

    Examples:
        >>> import upernet_zoo as uz
        >>> from upernet_zoo.interop.transformers import to_transformers
        >>> backbone = uz.model_info("upernet_convnext_tiny_fp16_512x512_160k_ade20k").config.backbone
        >>> model, processor = to_transformers(uz.UPerNet(uz.UPerNetConfig(backbone=backbone, channels=64, num_classes=7)))
        >>> type(model).__name__
        'UperNetForSemanticSegmentation'
    """
    theirs, processor, notes = _converted(model)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return theirs, processor


def _require_representable(model: UPerNet) -> dict[str, Any]:
    """The backbone's config over there, of a model that transformers has a place for.

    Raises:
        ArgumentError: says all that it has none for.
    """
    config, recipe = model.config, model.recipe
    faults = []
    if config.align_corners:
        faults.append("it resizes with align_corners=True, and transformers always with False, which gives other logits")
    backbone: dict[str, Any] = {}
    try:
        backbone = backbone_class(config.backbone).to_transformers(config.backbone)
    except ArgumentError as error:
        faults.append(str(error))
    if config.neck is not None:
        faults.append("it has a neck, and transformers' has none")
    if config.kernel_updates is not None:
        faults.append("its head is K-Net's, and transformers has UPerNet's alone")
    if config.auxiliary is not None and config.auxiliary.feature != 2:
        faults.append("its auxiliary head is not on the third feature")
    if not recipe.fits:
        faults.append(f"its pictures are {recipe.resizing}, and the image processor makes them fit a scale")
    if config.in_channels != 3:
        faults.append(f"it takes {config.in_channels} channels, and the image processor RGB")
    if faults:
        raise ArgumentError(f"transformers cannot represent this model: {'; '.join(faults)}. Use ONNX or torch.export for it.")
    return backbone


def _converted(model: UPerNet) -> tuple[UperNetForSemanticSegmentation, SegformerImageProcessor, list[str]]:
    """As `to_transformers`, and sentences about what is not the same over there."""
    if not isinstance(model, UPerNet):
        raise ArgumentError(f"to_transformers takes a UPerNet, found {type(model).__name__}. create_model and load_checkpoint make one.")
    transformers = _transformers()
    config, recipe, label_set = model.config, model.recipe, model.label_set
    backbone = _require_representable(model)
    assert recipe.scale is not None  # as it fits
    auxiliary: dict[str, Any] = {"use_auxiliary_head": False}
    if config.auxiliary is not None:
        auxiliary = {
            "auxiliary_in_channels": config.feature_channels[config.auxiliary.feature],
            "auxiliary_channels": config.auxiliary.channels,
            "auxiliary_num_convs": config.auxiliary.convs,
        }
    theirs = _with_tensors(
        transformers.UperNetConfig(
            backbone_config=transformers.AutoConfig.for_model(**backbone),
            hidden_size=config.channels,
            pool_scales=list(config.pool_scales),
            **auxiliary,
            loss_ignore_index=label_set.ignore_index,
            id2label=dict(enumerate(label_set.classes)),
            label2id={name: i for i, name in enumerate(label_set.classes)},
            **{_DESCRIPTION_KEY: Description.of(model).to_dict()},
        ),
        to_theirs(model.state_dict(), "transformers"),
    )
    notes = [backbone_class(config.backbone).adjust_transformers(config.backbone, theirs.backbone)]
    if recipe.mode == "slide" and recipe.crop is not None:
        height, width = recipe.crop
        notes.append(
            f"This model is meant to be run in sliding windows of {height}x{width}, and transformers' pipeline runs pictures whole: labels "
            "differ, and the published numbers were measured with windows. upernet_zoo.Segmenter runs them."
        )
    processor = transformers.SegformerImageProcessor(
        size={"longest_edge": recipe.scale[0], "shortest_edge": recipe.scale[1]},
        image_mean=[value / 255 for value in recipe.mean],
        image_std=[value / 255 for value in recipe.std],
        do_reduce_labels=False,
    )
    return theirs.eval(), processor, [note for note in notes if note]


def _with_tensors(config: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The model of a config with copies of tensors named as in files: it loads them itself, as it names its modules otherwise."""
    transformers = _transformers()
    with _without_progress(transformers):
        theirs, found = transformers.UperNetForSemanticSegmentation.from_pretrained(
            None, config=config, state_dict={key: value.detach().cpu().clone() for key, value in tensors.items()}, output_loading_info=True
        )
    faults = [f"{what.removesuffix('_keys')}: {shown(sorted(map(str, keys)))}" for what, keys in found.items() if keys]
    if faults:
        raise ArgumentError(
            f"transformers {transformers.__version__} does not take the tensors of this model: {'; '.join(faults)}. Use another version, "
            "and report it."
        )
    return theirs


@contextlib.contextmanager
def _without_progress(transformers: Any) -> Iterator[None]:
    """Let transformers load without a progress bar: nothing is read."""
    settings = transformers.utils.logging
    was_enabled = settings.is_progress_bar_enabled()
    settings.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            settings.enable_progress_bar()


def from_transformers(model: UperNetForSemanticSegmentation, processor: Any = None) -> UPerNet:
    """The same model as a native one, in eval mode; its tensors are copied.

    Palette, recipe and origin come back where `to_transformers` left them in the config; else the recipe comes from `processor`.

    Args:
        model: with a ConvNeXt, a Swin Transformer or timm's ResNet as its backbone.
        processor: its image processor, of which mean, std and size are used.

    Raises:
        ArgumentError: another kind of model.
        CheckpointError: another backbone, or tensors that do not fit.

    Examples:
        >>> import upernet_zoo as uz
        >>> from upernet_zoo.interop.transformers import from_transformers, to_transformers
        >>> backbone = uz.model_info("upernet_convnext_tiny_fp16_512x512_160k_ade20k").config.backbone
        >>> theirs, processor = to_transformers(uz.UPerNet(uz.UPerNetConfig(backbone=backbone, channels=64, num_classes=7)))
        >>> from_transformers(theirs, processor).config.backbone.title
        'ConvNeXt-T'
    """
    transformers = _transformers()
    if not isinstance(model, transformers.UperNetForSemanticSegmentation):
        raise ArgumentError(f"from_transformers takes a UperNetForSemanticSegmentation, found {type(model).__name__}.")
    owner, theirs = f"transformers' model {model.config.name_or_path!r}", model.config
    settings = theirs.backbone_config.to_dict()
    try:
        backbone = next((found for cls in BACKBONES.classes() if (found := cls.from_transformers(settings)) is not None), None)
    except ConfigError as error:
        raise CheckpointError(f"{owner}: {error}") from None
    if backbone is None:
        name = settings.get("backbone") or settings.get("model_type")
        raise CheckpointError(f"{owner} has the backbone {name!r}, which this library does not know.")
    auxiliary = None
    if theirs.use_auxiliary_head:
        auxiliary = AuxiliaryConfig(channels=theirs.auxiliary_channels, convs=theirs.auxiliary_num_convs)
    config = UPerNetConfig(
        backbone=backbone,
        num_classes=theirs.num_labels,
        channels=theirs.hidden_size,
        pool_scales=tuple(theirs.pool_scales),
        auxiliary=auxiliary,
    )
    state = {key: value.detach().cpu().float() if value.is_floating_point() else value.cpu() for key, value in model.state_dict().items()}
    native = {key: value.clone() for key, value in to_native(state).items()}
    return UPerNet.from_state(_describe(model, config, processor, owner), native, owner)


def _describe(model: UperNetForSemanticSegmentation, config: UPerNetConfig, processor: Any, owner: str) -> Description:
    names: Any = model.config.id2label
    classes = tuple(names[i] for i in range(config.num_classes))
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
    edges: Any = size.get("longest_edge") or size.get("width"), size.get("shortest_edge") or size.get("height")
    mean, std = (tuple(value / processor.rescale_factor for value in values) for values in (processor.image_mean, processor.image_std))
    try:
        return Recipe(scale=edges, mean=mean, std=std)
    except ConfigError as error:
        raise CheckpointError(f"The image processor's size {size} is no (longest, shortest) edge: {error}") from None


def save_transformers(model: UPerNet, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write model and image processor into a folder: `pipeline("image-segmentation", folder)` and `from_pretrained(folder)` load them.

    A card (`README.md`) says how, and what is not the same over there; one that is there already stays as it is.

    Args:
        model: one that transformers can represent.
        folder: made if it is missing.
        overwrite: replace the files of a model that is there and was not written by this library.

    Raises:
        ArgumentError: see `to_transformers`.
        ExistingFileError: a model is there, and was not written by this library.
        WriteError: the folder cannot be written.

    Examples:
        >>> import upernet_zoo as uz
        >>> from upernet_zoo.interop.transformers import save_transformers
        >>> backbone = uz.model_info("upernet_convnext_tiny_fp16_512x512_160k_ade20k").config.backbone
        >>> model = uz.UPerNet(uz.UPerNetConfig(backbone=backbone, channels=64, num_classes=7))
        >>> sorted(path.name for path in save_transformers(model, "theirs").iterdir())
        ['README.md', 'config.json', 'model.safetensors', 'preprocessor_config.json']
    """
    folder = expanded(folder)
    require_replaceable_folder(folder, overwrite)
    theirs, processor, notes = _converted(model)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    try:
        for part in (theirs, processor):
            part.save_pretrained(folder)
    except OSError as error:
        raise WriteError(f"Cannot save a model in {folder}: {error}. Pass a folder that can be written.") from error
    card, text = folder / _CARD_NAME, _card(model, folder.resolve().name, notes)
    if not card.exists():
        write_atomically(card, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    elif card.read_bytes() != text.encode():
        _logger.warning("%s is already there and stays as it is: check that it still fits the model.", card)
    return folder


def _card(model: UPerNet, name: str, notes: list[str]) -> str:
    """The text of a card; what comes from the model's own record is escaped."""
    parts = [
        *cards.opening(model, name, "transformers"),
        '```python\nimport transformers\n\nsegments = transformers.pipeline("image-segmentation", "this folder")("picture.jpg")\n```',
    ]
    if notes:
        parts.append("## What is not the same in transformers\n\n" + "\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts) + "\n"


def load_transformers(folder: str | os.PathLike) -> UPerNet:
    """`from_transformers` of a folder that transformers' `save_pretrained` wrote; nothing but safetensors is read.

    Raises:
        MissingFileError: no such folder.
        ArgumentError, CheckpointError: see `from_transformers`.

    Examples:
        >>> import upernet_zoo as uz
        >>> from upernet_zoo.interop.transformers import load_transformers, save_transformers
        >>> backbone = uz.model_info("upernet_convnext_tiny_fp16_512x512_160k_ade20k").config.backbone
        >>> model = uz.UPerNet(uz.UPerNetConfig(backbone=backbone, channels=64, num_classes=7))
        >>> load_transformers(save_transformers(model, "theirs")).config.num_classes
        7
    """
    transformers = _transformers()
    folder = expanded(folder)
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
