"""From a reference to a ready model: an index name, a saved folder, or a checkpoint file."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from . import checkpoint as checkpoints
from . import config_text, hub, index, sources
from . import labels as label_sets
from .checkpoint import Description
from .errors import ArgumentError, CacheError, CheckpointError, ConfigError, MissingFileError, ModelNotFoundError, UnknownKeywordError
from .hub import FOLDER_PREFIX, HUB_PREFIX
from .infer import Report, infer
from .models import UPerNet
from .models.backbones import ResNet
from .models.upernet import adapted_input, require_labels_fit

# the form of a published file's name: a time stamp, and the first 8 hex digits of the file's SHA-256
_PUBLISHED_NAME = re.compile(r"_\d{8}_\d{6}-([0-9a-f]{8})\.pth$")


def create_model(
    ref: str,
    pretrained: bool = True,
    *,
    num_classes: int | None = None,
    labels: label_sets.LabelSet | str | Sequence[str] | None = None,
    in_channels: int | None = None,
    checkpoint: str | os.PathLike | None = None,
    sha256: str | None = None,
    mirrors: Sequence[str] = (),
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
    progress: bool = True,
    **unknown,
) -> UPerNet:
    """A UPerNet in eval mode.

    The checkpoint file of an index name is looked for in this order: `checkpoint`, the project's cache, torch's hub directory, the
    mirrors, the network. It is verified before use and converted once to safetensors in the cache; from then on that is mapped into
    memory and nothing else is read.

    Args:
        ref: a name of the index (`list_models()`), "local-dir:" and a folder written by `save_pretrained`, or "hf-hub:org/name" or
            "hf-hub:org/name@revision", a repository written by `push_to_hub`; private and gated ones with `HF_TOKEN` or after
            `hf auth login`.
        pretrained: False gives freshly initialised weights, and reads and downloads no checkpoint.
        num_classes: replaces exactly the two classifiers (`decode_head.classifier`, `auxiliary_head.classifier`) by new, untrained
            ones, and warns that it did.
        labels: a `LabelSet`, the name of a known one, or a list of class names. As many as the model has classes: they are
            renamed; another number: as with `num_classes`.
        in_channels: channels of the pictures, where a model of three is to take others: the first convolution's weights are adapted as
            timm does (`UPerNet.adapt_input`).
        checkpoint: a checkpoint file to use for an index name; its digest must be the index's, or `sha256`.
        sha256: the digest (8 to 64 hex digits) that the checkpoint file must have, in place of the index's.
        mirrors: further places to look for the file: URLs or folders.
        device: moves the model there.
        dtype: float32 (as published), float16 or bfloat16.
        cache_dir: in place of `UPERNET_ZOO_CACHE` and `~/.cache/upernet_zoo`; for "hf-hub:", of the Hub's cache (`HF_HUB_CACHE`).
        local_files_only: use no network.
        progress: show a progress bar while downloading.

    Raises:
        ModelNotFoundError: no such name; the message has the nearest ones. Or no such repository or revision.
        UnknownKeywordError: a keyword that does not exist (also a TypeError).
        ArgumentError: arguments that do not fit together, or a device that is not there.
        ConfigError: `num_classes` or `labels` that cannot be, or that do not fit each other.
        MissingFileError, IntegrityError, DownloadError, OfflineError, CacheError, CheckpointError: no good checkpoint was found.
    """
    _refuse_unknown(create_model, unknown)
    label_set = _as_label_set(labels)
    if not isinstance(ref, str) or not ref:
        raise ArgumentError(f"create_model: expected a name such as 'upernet_r50_512x512_160k_ade20k', found {ref!r}.")
    is_name = not ref.startswith((HUB_PREFIX, FOLDER_PREFIX))
    has_source = checkpoint is not None or sha256 is not None or mirrors
    if has_source and not is_name:
        raise ArgumentError(f"create_model: checkpoint=, sha256= and mirrors= go with a name of the index, not with {ref!r}.")
    if has_source and not pretrained:
        raise ArgumentError("create_model: checkpoint=, sha256= and mirrors= go with pretrained=True.")
    if checkpoint is not None and not isinstance(checkpoint, (str, os.PathLike)):
        raise ArgumentError(f"create_model: checkpoint= takes the path of a file, found {checkpoint!r}.")
    check_device(device, dtype)
    if is_name:
        entry = model_entry(ref)
        description = Description(entry.config, entry.recipe, entry.label_set)
    else:
        folder = hub.find_folder(ref, weights=pretrained, cache_dir=cache_dir, local_files_only=local_files_only, progress=progress)
        description = hub.read_description(folder)
    config = description.config
    if num_classes is None and label_set is not None and len(label_set) != config.num_classes:
        num_classes = len(label_set)
    if num_classes is not None:
        config = dataclasses.replace(config, num_classes=num_classes)
        label_set = label_set or label_sets.generic(num_classes)
        require_labels_fit(config, label_set)
    recipe = description.recipe
    if in_channels is not None and in_channels != config.in_channels:
        config, recipe = adapted_input(config, recipe, in_channels)
    if not pretrained:
        return UPerNet(config, recipe, label_set or description.label_set).eval().to(device=device, dtype=dtype)
    if is_name:
        model = load_entry(
            entry,
            checkpoint=checkpoint,
            sha256=sha256,
            mirrors=mirrors,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            progress=progress,
        )
    else:
        model = hub.load_folder(folder)
    if num_classes is not None:
        model.reset_classifier(label_set)
        warnings.warn(
            f"{ref}: decode_head.classifier and auxiliary_head.classifier are new and untrained, for {num_classes} classes; "
            "all other weights are the pretrained ones.",
            stacklevel=2,
        )
    elif label_set is not None:
        model.label_set = label_set
    if config.in_channels != model.config.in_channels:
        model.adapt_input(config.in_channels)
    return model.to(device=device, dtype=dtype)


def create_backbone(ref: str, pretrained: bool = True, **options) -> ResNet:
    """The backbone of a model alone, in eval mode: a picture in, four features out.

    `backbone.feature_info.channels()` and `.reduction()` say what they are, as of timm's `features_only` models:
    [256, 512, 1024, 2048] at strides [4, 8, 16, 32] for R-50 and R-101.

    Args:
        ref, pretrained, options: as for `create_model`.

    Raises:
        UPerNetZooError: as `create_model`.
    """
    return create_model(ref, pretrained, **options).backbone


def load_checkpoint(
    path: str | os.PathLike,
    *,
    config: str | os.PathLike | None = None,
    ema: bool = False,
    sha256: str | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> UPerNet:
    """A UPerNet in eval mode from any checkpoint file of one, its architecture inferred from the file.

    Published files and those that mmsegmentation 0.x and 1.x write while training. Depth, widths and class count come from the
    tensors; `align_corners`, test mode, scale, classes and palette from the config text and other `meta` in the file. The text is
    parsed, never executed. What nothing says is assumed, with a warning that lists it.

    Args:
        path: `.pth` in either format of `torch.save`, or `.safetensors`; published or native tensor names.
        config: an mmsegmentation config file, in place of the text in the checkpoint; parsed with its `_base_` files, never executed.
        ema: take the averaged (EMA) weights. mmengine saves these as the model's own anyway.
        sha256: the digest (8 to 64 hex digits) that the file must have. A file with a published name
            (`..._20200614_144127-ecc8377b.pth`) must have the digest in its name if none is given.
        device: moves the model there.
        dtype: float32, float16 or bfloat16.

    Raises:
        MissingFileError: no such file.
        IntegrityError: another digest.
        UnsafeCheckpointError: something executable is in it; nothing of it was run.
        CheckpointError: it cannot be read, holds something other than a UPerNet with a ResNet or ResNet-V1c backbone, or no averaged
            weights when they are asked for.
        ConfigError: the config file cannot be read.
    """
    check_device(device, dtype)
    model, report = load_with_report(path, config=config, ema=ema, sha256=sha256)
    if report.assumed:
        warnings.warn(f"{path}: the file does not say all; assumed {', '.join(report.assumed)}.", stacklevel=2)
    return model.to(device=device, dtype=dtype)


def load_with_report(
    path: str | os.PathLike, *, config: str | os.PathLike | None = None, ema: bool = False, sha256: str | None = None
) -> tuple[UPerNet, Report]:
    """`load_checkpoint`, and in place of the warning a report of what was read, assumed and dropped.

    Raises:
        UPerNetZooError: as `load_checkpoint`.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise MissingFileError(f"{path} is a folder. If save_pretrained wrote it: create_model('{FOLDER_PREFIX}{path}').")
    if not path.is_file():
        raise MissingFileError(f"No checkpoint file at {path}. Check the path.")
    values = None if config is None else config_text.read_file(config)
    published = _PUBLISHED_NAME.search(path.name)
    digest = sha256 if sha256 is not None or published is None else published[1]
    origin = {"file": path.name}
    if digest is not None:
        origin["sha256"] = sources.verify_file(path, digest, what=path.name)
    content = checkpoints.read(path, ema=ema)
    checkpoints.check_finite(content.state_dict, str(path))
    description, state_dict, report = infer(content, origin, values)
    return checkpoints.build(description, state_dict, str(path)), report


def _refuse_unknown(function, unknown: dict) -> None:
    if not unknown:
        return
    known = [n for n, p in inspect.signature(function).parameters.items() if p.kind != p.VAR_KEYWORD]
    name = next(iter(unknown))
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"It takes {', '.join(known)}."
    raise UnknownKeywordError(f"{function.__name__} has no argument {name!r}. {hint}")


def _as_label_set(labels: label_sets.LabelSet | str | Sequence[str] | None) -> label_sets.LabelSet | None:
    if labels is None or isinstance(labels, label_sets.LabelSet):
        return labels
    if isinstance(labels, str):
        return label_sets.get(labels)
    if not isinstance(labels, Sequence):
        raise ArgumentError(f"labels= takes a LabelSet, the name of one, or a list of class names, found {labels!r}.")
    return label_sets.LabelSet(name="custom", classes=tuple(labels))


def check_device(device: torch.device | str | None, dtype: torch.dtype | None = None) -> None:
    """Refuse a device that is not there, and a dtype that no model runs in, before anything is loaded.

    Raises:
        ArgumentError: names it.
    """
    if dtype not in (None, torch.float32, torch.float16, torch.bfloat16):
        raise ArgumentError(f"dtype={dtype!r}: a model runs in torch.float32, torch.float16 or torch.bfloat16.")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ArgumentError(f"Device {device!r} is not usable here ({str(error).splitlines()[0]}). Try 'cpu'.") from None


def model_entry(name: str) -> index.ModelEntry:
    """The entry of a name of the index.

    Raises:
        ModelNotFoundError: there is none; the message has the nearest ones, and what to call for a file or folder of that name.
    """
    try:
        return index.model_info(name)
    except ModelNotFoundError as error:
        if Path(name).expanduser().is_file():
            raise ModelNotFoundError(f"{name!r} is a file, not a name of the index: use load_checkpoint({name!r}).") from None
        if Path(name).expanduser().is_dir():
            raise ModelNotFoundError(f"{name!r} is a folder: use create_model('{FOLDER_PREFIX}{name}').") from None
        raise error


def load_entry(
    entry: index.ModelEntry,
    *,
    checkpoint: str | os.PathLike | None = None,
    sha256: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    **options,
) -> UPerNet:
    """The pretrained model of an entry: mapped from the converted cache, or found, verified and converted first.

    Args:
        entry: of any index.
        checkpoint, sha256, cache_dir: as for `create_model`.
        options: `mirrors`, `local_files_only` and `progress`, as for `create_model`.

    Raises:
        UPerNetZooError: as `create_model`.
    """
    wanted = entry.sha256 if sha256 is None else sources.check_digest(sha256)
    target = sources.cache_root(cache_dir) / "converted" / f"{entry.name}-{wanted[:8]}.safetensors"
    model = _converted(entry, target, wanted) if checkpoint is None else None
    if model is not None:
        return model
    found = sources.fetch(entry, checkpoint=checkpoint, sha256=sha256, cache_dir=cache_dir, **options)
    with sources.lock(target, cache_dir=cache_dir):  # many processes: one converts, the others find it done
        model = _converted(entry, target, found.sha256)
        if model is None:
            _convert(entry, found, target)
            model = _converted(entry, target, found.sha256)
    if model is None:
        raise CacheError(f"{entry.name}: the receipt of {target} could not be written. Free some space, or name another cache_dir=.")
    return model


def _converted(entry: index.ModelEntry, target: Path, sha256: str) -> UPerNet | None:
    """The entry's model from a converted file of a checkpoint with that digest; None if there is no such file, or it was changed."""
    if sources.trusted(target) is None:
        return None
    try:
        tensors, description = checkpoints.read_safetensors(target)
    except (CheckpointError, ConfigError):  # it was made here, and can be made again
        return None
    if description is None or not description.origin.get("sha256", "").startswith(sha256):
        return None
    return checkpoints.build(Description(entry.config, entry.recipe, entry.label_set, description.origin), tensors, str(target))


def _convert(entry: index.ModelEntry, found: sources.Found, target: Path) -> None:
    content = checkpoints.read(found.path)
    with torch.device("meta"):
        checkpoints.check_keys(content.state_dict, UPerNet(entry.config), f"{entry.name}: {found.path}")
    checkpoints.check_finite(content.state_dict, f"{entry.name}: {found.path}")
    origin = {"model": entry.name, "file": entry.file_name, "sha256": found.sha256, "url": entry.weights}
    origin["tensors"] = hub.fingerprint(content.state_dict)
    description = Description(entry.config, entry.recipe, entry.label_set, origin)
    sources.write_atomically(target, lambda path: checkpoints.write_safetensors(path, description, content.state_dict))
    sources.write_receipt(target, sources.file_digest(target)[0], str(found.path))
