"""To segmentation_models_pytorch's `UPerNet`: ConvNeXt and Swin. Needs the extra `smp`.

Both sides have the same tensors under other names. The head over there begins with a layer norm for each feature, which ConvNeXt and Swin
have here too, and other backbones do not; it has no `align_corners`, one set of pooling scales, and no auxiliary head. What it cannot
represent is refused. Back comes a folder of it through `create_model` and `load_checkpoint`, as any other.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ..checkpoints.foreign import DESCRIPTION_KEYS
from ..checkpoints.names import to_theirs
from ..description import Description
from ..errors import ArgumentError, MissingPackageError, WriteError, shown
from ..files import expanded, write_atomically
from ..models.backbones._base import backbone_class
from ..models.upernet import UPerNet
from ..version import install_line
from ..written import require_replaceable_folder
from . import cards

if TYPE_CHECKING:
    import segmentation_models_pytorch

__all__ = ["save_smp", "to_smp"]

_CARD_NAME = "README.md"
_POOL_SCALES = (1, 2, 3, 6)  # the only ones over there
_AUXILIARY = "auxiliary_head."


def _smp() -> Any:
    try:
        import segmentation_models_pytorch
    except ImportError as error:
        raise MissingPackageError(f"This needs the package {error.name}: {install_line('smp')}.") from None
    return segmentation_models_pytorch


def to_smp(model: UPerNet) -> segmentation_models_pytorch.UPerNet:
    """The same model as segmentation_models_pytorch's `UPerNet` in eval mode, on the CPU.

    It takes normalized pictures (N, C, H, W) float32 whose sides are multiples of 32, and gives the logits of `UPerNet.logits`, at a
    quarter of the sides: smp enlarges with `align_corners=True`, which would give others, so that is left to you:
    `F.interpolate(logits, size, mode="bilinear", align_corners=False)`.

    It warns of what is not the same over there: the auxiliary head, epsilons, sliding windows, and sizes at which timm's Swin computes
    something else.

    Raises:
        ArgumentError: smp cannot represent the model; says why. Or a package is missing.

    Examples:
        >>> import upernet_zoo as uz
        >>> from upernet_zoo.interop.smp import to_smp
        >>> backbone = uz.model_info("upernet_convnext_tiny_fp16_512x512_160k_ade20k").config.backbone
        >>> model = uz.UPerNet(uz.UPerNetConfig(backbone=backbone, channels=64, num_classes=7))
        >>> type(to_smp(model)).__name__
        'UPerNet'
    """
    theirs, notes = _converted(model)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return theirs


def save_smp(model: UPerNet, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write `config.json` and `model.safetensors` into a folder: `segmentation_models_pytorch.from_pretrained(folder)` loads it.

    A card (`README.md`) says how, and what is not the same over there; one that is there already stays as it is. `create_model(folder)`
    gives the model back, with recipe and classes, and without an auxiliary head.

    Args:
        model: one that smp can represent.
        folder: made if it is missing.
        overwrite: replace the files of a model that is there and was not written by this library.

    Raises:
        ArgumentError: see `to_smp`.
        ExistingFileError: a model is there, and was not written by this library.
        WriteError: the folder cannot be written.

    Examples:
        >>> import upernet_zoo as uz
        >>> from upernet_zoo.interop.smp import save_smp
        >>> backbone = uz.model_info("upernet_convnext_tiny_fp16_512x512_160k_ade20k").config.backbone
        >>> model = uz.UPerNet(uz.UPerNetConfig(backbone=backbone, channels=64, num_classes=7))
        >>> sorted(path.name for path in save_smp(model, "theirs").iterdir())
        ['README.md', 'config.json', 'model.safetensors']
    """
    folder = expanded(folder)
    require_replaceable_folder(folder, overwrite)
    theirs, notes = _converted(model)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    config = dataclasses.replace(model.config, auxiliary=None)
    description = Description(config, model.recipe, model.label_set, model.origin)
    text, card = _card(model, folder.resolve().name, notes), folder / _CARD_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not card.exists():  # smp's own says that the weights are under the license of its code
            write_atomically(card, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        theirs.config[DESCRIPTION_KEYS["smp"]] = description.to_dict()
        theirs.save_pretrained(folder)
    except OSError as error:
        raise WriteError(f"Cannot save a model in {folder}: {error}. Pass a folder that can be written.") from error
    return folder


def _require_representable(model: UPerNet) -> dict[str, Any]:
    """The options of the encoder over there, of a model that smp has a place for.

    Raises:
        ArgumentError: says all that it has none for.
    """
    config, faults = model.config, []
    if config.align_corners:
        faults.append("it resizes with align_corners=True, and smp's head always with False, which gives other logits")
    if config.pool_scales != _POOL_SCALES:
        faults.append(f"its pooling scales are {config.pool_scales}, and smp's {_POOL_SCALES}")
    if config.neck is not None:
        faults.append("it has a neck, and smp's has none")
    if config.kernel_updates is not None:
        faults.append("its head is K-Net's, and smp has UPerNet's alone")
    encoder: dict[str, Any] = {}
    try:
        encoder = backbone_class(config.backbone).to_smp(config.backbone)
    except ArgumentError as error:
        faults.append(str(error))
    if faults:
        raise ArgumentError(
            f"segmentation_models_pytorch cannot represent this model: {'; '.join(faults)}. Use ONNX or torch.export for it."
        )
    return encoder


def _converted(model: UPerNet) -> tuple[segmentation_models_pytorch.UPerNet, list[str]]:
    """As `to_smp`, and sentences about what is not the same over there."""
    if not isinstance(model, UPerNet):
        raise ArgumentError(f"to_smp takes a UPerNet, found {type(model).__name__}. create_model and load_checkpoint make one.")
    smp = _smp()
    config, recipe = model.config, model.recipe
    encoder = _require_representable(model)
    theirs = smp.UPerNet(
        encoder_weights=None,
        decoder_channels=config.channels,
        in_channels=config.in_channels,
        classes=config.num_classes,
        upsampling=1,
        **encoder,
    ).eval()
    ours = {key: value.detach().cpu().float() for key, value in model.state_dict().items() if not key.startswith(_AUXILIARY)}
    tensors = to_theirs(ours, "smp")
    try:
        theirs.load_state_dict(dict(tensors), strict=True)
    except RuntimeError as error:
        raise ArgumentError(
            f"segmentation_models_pytorch {smp.__version__} does not take the tensors of this model: {shown(str(error), 'message')}. Use "
            "another version, and report it."
        ) from None
    notes = [_with_epsilons(model, theirs, dict(zip(ours, tensors))), backbone_class(config.backbone).note_of(config.backbone, "smp")]
    if recipe.mode == "slide" and recipe.crop is not None:
        height, width = recipe.crop
        notes.append(
            f"This model is meant to be run in sliding windows of {height}x{width}, and smp runs pictures whole: labels differ, and the "
            "published numbers were measured with windows. upernet_zoo.Segmenter runs them."
        )
    if config.auxiliary is not None:
        notes.append("smp has no auxiliary head: the model goes without it. No picture is computed with it, training may want one.")
    return theirs, [note for note in notes if note]


def _with_epsilons(model: UPerNet, theirs: nn.Module, keys: dict[str, str]) -> str | None:
    """Give their layer norms the epsilons of ours; returns a sentence about those that differ, as their config cannot say so.

    Args:
        keys: our names of tensors -> theirs, of the same.
    """
    changed = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            norm: Any = theirs.get_submodule(keys[f"{name}.weight"].removesuffix(".weight"))
            if norm.eps != module.eps:
                changed.add((module.eps, norm.eps))
                norm.eps = module.eps
    if not changed:
        return None
    what = " and ".join(f"{own:g} where a model that smp loads from files has {other:g}" for own, other in sorted(changed))
    return f"Its config cannot say that layer norms have an epsilon of {what}: logits there differ by up to 1e-4 of the largest."


def _card(model: UPerNet, name: str, notes: list[str]) -> str:
    """The text of a card; what comes from the model's own record is escaped."""
    recipe = model.recipe
    parts = [
        *cards.opening(model, name, "segmentation-models-pytorch"),
        "```python\nimport segmentation_models_pytorch as smp\nimport torch.nn.functional as F\n\n"
        'model = smp.from_pretrained("this folder").eval()\n'
        'logits = F.interpolate(model(x), x.shape[2:], mode="bilinear", align_corners=False)\n```',
        f"`x` is (N, {len(recipe.mean)}, H, W) with sides that are multiples of 32, of values from 0 to 255, less the mean "
        f"{_list(recipe.mean)}, over the deviation {_list(recipe.std)}, in the order R, G, B.",
        "## What is not the same in segmentation_models_pytorch\n\n"
        "- Its own enlarging aligns the corners, which the original does not, so the config has `upsampling` 1, and the last line above "
        "enlarges.\n" + "\n".join(f"- {note}" for note in notes),
    ]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _list(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
