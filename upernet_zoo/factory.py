"""From a reference to a ready model: see `reference`."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import inspect
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch

from . import copied, files, index
from . import labels as label_sets
from .checkpoints import mmseg_config, native, safe_load
from .checkpoints import read as checkpoints
from .checkpoints.infer import Report, infer
from .description import Description
from .errors import (
    ArgumentError,
    CacheError,
    CheckpointError,
    ConfigError,
    DownloadError,
    IntegrityError,
    MissingFileError,
    UnknownKeywordError,
    shown,
)
from .hub import client
from .hub.folder import read_description, read_folder
from .models.backbones._base import Backbone
from .models.upernet import UPerNet, adapted_input, check_keys, require_labels_fit, require_memory
from .provenance import fingerprint, note_converted
from .reference import DEMO_FOLDER, Kind, Reference, Repository
from .weights import cache, sources
from .wording import option

__all__ = ["check_device", "create_backbone", "create_model", "load_checkpoint", "load_entry", "load_with_report"]

_P = ParamSpec("_P")
_T = TypeVar("_T")
# The form of a published file's name, of mmsegmentation 0.x or 1.x: crop, schedule and data set, a time stamp, and the first 8 hex digits
# of the file's SHA-256. What mmengine writes for `published_keys` (`best_mIoU_iter_4000-1a2b3c4d.pth`) ends in digits too: of a pickle
# that it never writes to a file.
_PUBLISHED_NAME = re.compile(r"(?:_\d+x\d+_(?:\w+_)?\d+[ke]_[\w-]+|[_-]\d+[ke]_\w+-\d+x\d+)_\d{8}_\d{6}-([0-9a-f]{8})\.pth$")


def _known_keywords(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Refuse a keyword that a function does not have with the nearest one that it has."""
    known = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def checked(*args: _P.args, **keywords: _P.kwargs) -> _T:
        for name in keywords:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"Did you mean {near[0]!r}?" if near else f"It takes {', '.join(known)}."
                raise UnknownKeywordError(f"{function.__name__} has no argument {name!r}. {hint}")
        return function(*args, **keywords)

    return checked


@_known_keywords
def create_model(
    ref: str | os.PathLike[str] | UPerNet,
    pretrained: bool = True,
    *,
    num_classes: int | None = None,
    labels: label_sets.LabelSet | str | Sequence[str] | None = None,
    in_channels: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    sha256: str | None = None,
    mirrors: Sequence[str | os.PathLike[str]] = (),
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    progress: bool = True,
) -> UPerNet:
    """A UPerNet in eval mode.

    The checkpoint file of an index name is looked for in this order: `checkpoint`, the project's cache, torch's hub directory, the
    mirrors, the network; where none has it, a copy of it in another library's format is taken, with a warning (brought into the Hub's
    cache, verified against its host's digest). It is verified before use and converted once to safetensors in the cache; from then on
    that is mapped into memory and nothing else is read.

    Args:
        ref: a name of the index (`list_models()`); "demo", the small model in the package; a checkpoint file, read as
            `load_checkpoint` does; a folder written by `save_pretrained`, also as "local-dir:FOLDER"; "hf-hub:org/name" or
            "hf-hub:org/name@revision", a repository written by `push_to_hub`. Folders and repositories with a UPerNet of transformers
            or segmentation_models_pytorch load too, with the index's recipe and classes where it knows them as copies. Private and gated
            ones with `HF_TOKEN` or after `hf auth login`. A name comes before a file or folder of the same spelling; a `Path` is never
            a name. A `UPerNet` is given back itself, in eval mode, on `device` and in `dtype`.
        pretrained: False gives freshly initialized weights, and downloads no checkpoint. (A checkpoint file is read for what it is of.)
        num_classes: replaces exactly the two classifiers (`decode_head.classifier`, `auxiliary_head.classifier`) by new, untrained
            ones, and warns that it did.
        labels: a `LabelSet`, the name of a known one, or a list of class names. As many as the model has classes: they are
            renamed; another number: as with `num_classes`.
        in_channels: channels of the pictures, where a model of three is to take others: the first convolution's weights are adapted as
            timm does (`UPerNet.adapt_input`).
        checkpoint: a checkpoint file to use for an index name; its digest must be the index's, or `sha256`.
        sha256: the digest (8 to 64 hex digits) that the checkpoint file must have, in place of the index's or that in a file's name.
        mirrors: further places to look for the file of an index name: URLs or folders.
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

    Examples:
        >>> import upernet_zoo as uz
        >>> model = uz.create_model("demo")
        >>> model.label_set.classes[0], model.recipe.scale
        ('road', (512, 256))
        >>> uz.create_model("upernet_r50_512x512_160k_ade20k", pretrained=False).config.num_classes
        150
    """
    label_set = _as_label_set(labels)
    reference = Reference.parse(ref)
    reference.require_options(checkpoint=checkpoint, sha256=sha256, mirrors=mirrors, pretrained=pretrained)
    check_device(device, dtype)
    if reference.kind is Kind.MODEL and pretrained:
        return _itself(reference, num_classes, labels, in_channels).eval().to(device=device, dtype=dtype)
    source: dict[str, Any] = dict(checkpoint=checkpoint, sha256=sha256, mirrors=mirrors)
    where: dict[str, Any] = dict(cache_dir=cache_dir, local_files_only=local_files_only, progress=progress)
    published, load = _look_up(reference, pretrained, source, where)
    wanted, has_new_classes = _changed(published, num_classes, label_set, in_channels)
    model = _change(load(), wanted, has_new_classes, reference.text) if pretrained else _untrained(wanted)
    return model.to(device=device, dtype=dtype)


def _look_up(
    reference: Reference, pretrained: bool, source: dict[str, Any], where: dict[str, Any]
) -> tuple[Description, Callable[[], UPerNet]]:
    """What model a reference is, known before weights of the index or of a repository are read, and how they are loaded."""
    if entry := reference.entry:
        if reference.kind is Kind.DEMO:
            source = {**source, "checkpoint": DEMO_FOLDER / entry.file_name}
        return Description(entry.config, entry.recipe, entry.label_set), lambda: load_entry(entry, **source, **where)
    if (copy := copied.find(reference, **where)) is not None:
        model = _of_copy(copy, reference.repository)
        return Description.of(model), lambda: model
    if place := reference.path if reference.kind is Kind.FOLDER else reference.repository:
        folder = client.find_folder(place, weights=pretrained, **where)
        return read_description(folder), lambda: UPerNet.from_state(*read_folder(folder))
    other = _itself(reference) if reference.path is None else _load_file(reference.path, source["sha256"])
    return Description.of(other), lambda: other


def _changed(
    published: Description, num_classes: int | None, label_set: label_sets.LabelSet | None, in_channels: int | None
) -> tuple[Description, bool]:
    """What a model is to be, with other classes and channels where these are asked for; and whether its classifiers are to be new.

    Raises:
        ConfigError: classes or channels that cannot be.
    """
    config, recipe = published.config, published.recipe
    if num_classes is None and label_set is not None and len(label_set) != config.num_classes:
        num_classes = len(label_set)
    if num_classes is not None:
        config = dataclasses.replace(config, num_classes=num_classes)
        label_set = label_set or label_sets.generic(num_classes)
        require_labels_fit(config, label_set)
    if in_channels is not None and in_channels != config.in_channels:
        config, recipe = adapted_input(config, recipe, in_channels)
    return Description(config, recipe, label_set or published.label_set), num_classes is not None


def _untrained(wanted: Description) -> UPerNet:
    """A freshly initialized model in eval mode."""
    require_memory(wanted.config)
    with _float32():
        return UPerNet(wanted.config, wanted.recipe, wanted.label_set).eval()


def _change(model: UPerNet, wanted: Description, has_new_classes: bool, name: str) -> UPerNet:
    """Make of a pretrained model what is wanted; that classifiers are new is warned of."""
    if has_new_classes:
        model.reset_classifier(wanted.label_set)
        new = "decode_head.classifier is" if model.auxiliary_head is None else "decode_head.classifier and auxiliary_head.classifier are"
        warnings.warn(
            f"{name}: {new} new and untrained, for {wanted.config.num_classes} classes; all other weights are the pretrained ones.",
            stacklevel=4,
        )
    model.label_set = wanted.label_set
    if wanted.config.in_channels != model.config.in_channels:
        model.adapt_input(wanted.config.in_channels)
    return model


def _itself(reference: Reference, *changes: object) -> UPerNet:
    """The model object that a reference is; what would change it in its owner's hands is refused."""
    model = reference.model
    if not isinstance(model, UPerNet):
        raise ArgumentError(f"create_model: expected a UPerNet, a name or a path, found {reference.text}.")
    if any(change is not None for change in changes):
        raise ArgumentError(
            "create_model: num_classes=, labels= and in_channels= go with a model that is loaded. To change the one that you have: "
            "model.reset_classifier(label_set), model.label_set = ..., model.adapt_input(channels)."
        )
    return model


def _load_file(path: Path, sha256: str | None) -> UPerNet:
    """The model of a checkpoint file, with a warning of what was assumed."""
    model, report = load_with_report(path, sha256=sha256)
    _warn_of(path, report, 6)
    return model


def _of_copy(copy: copied.Copy, repository: Repository | None) -> UPerNet:
    """The model of a copy, with a warning of what was assumed."""
    model, report = copied.load(copy, copied.known(repository))
    _warn_of(copy.place, report, 6)
    return model


def _warn_of(path: str | os.PathLike[str], report: Report, level: int) -> None:
    if report.assumed:
        warnings.warn(shown(f"{path}: the file does not say all; assumed {', '.join(report.assumed)}.", "message"), stacklevel=level)
    if report.lost:
        warnings.warn(shown(f"{path}: the model went without {', '.join(report.lost)}.", "message"), stacklevel=level)


@_known_keywords
def create_backbone(
    ref: str | os.PathLike[str] | UPerNet,
    pretrained: bool = True,
    *,
    in_channels: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    sha256: str | None = None,
    mirrors: Sequence[str | os.PathLike[str]] = (),
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    progress: bool = True,
) -> Backbone:
    """The backbone of a model alone, in eval mode: a picture in, four features out.

    `backbone.feature_info.channels()` and `.reduction()` say what they are, as of timm's `features_only` models:
    [256, 512, 1024, 2048] at strides [4, 8, 16, 32] for R-50 and R-101.

    All arguments are as for `create_model`.

    Raises:
        UPerNetZooError: as `create_model`.

    Examples:
        >>> import upernet_zoo as uz
        >>> uz.create_backbone("demo").feature_info.channels()
        [12, 24, 48, 96]
    """
    return create_model(
        ref,
        pretrained,
        in_channels=in_channels,
        checkpoint=checkpoint,
        sha256=sha256,
        mirrors=mirrors,
        device=device,
        dtype=dtype,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        progress=progress,
    ).backbone


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
    parsed, never executed. What nothing says is assumed, with a warning that lists it; a config that prepares pictures in a way of which
    this library does not do all is said too, and gives a recipe with which nothing is predicted (`Recipe.unsupported`).

    Args:
        path: `.pth` or `.bin` in either format of `torch.save`, or `.safetensors`; the names of mmsegmentation, transformers,
            segmentation_models_pytorch, or native ones. With `config.json` of one of the latter two beside it, or their folder.
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

    Examples:
        >>> import upernet_zoo as uz
        >>> model = uz.load_checkpoint("my_upernet.pth")
        >>> model.config.backbone.title, model.config.num_classes
        ('ResNet-V1c-18', 19)
    """
    check_device(device, dtype)
    model, report = load_with_report(path, config=config, ema=ema, sha256=sha256)
    _warn_of(path, report, 3)
    return model.to(device=device, dtype=dtype)


def load_with_report(
    path: str | os.PathLike, *, config: str | os.PathLike | None = None, ema: bool = False, sha256: str | None = None
) -> tuple[UPerNet, Report]:
    """`load_checkpoint`, and in place of the warning a report of what was read, assumed and dropped.

    Raises:
        UPerNetZooError: as `load_checkpoint`.
    """
    path = files.expanded(path)
    if path.is_dir():
        folder = copied.in_folder(path)
        if folder is None:
            raise MissingFileError(f"{path} is a folder. If save_pretrained wrote it: create_model({shown(str(path))}).")
        path = folder.weights
    if not path.is_file():
        raise MissingFileError(f"No checkpoint file at {path}. Check the path.")
    values = None if config is None else mmseg_config.read_file(config)
    published = _PUBLISHED_NAME.search(path.name)
    digest = sha256 if sha256 is not None or published is None else published[1]
    origin = {"file": path.name}
    copy = copied.beside(path) if values is None else None
    source: Path | files.Content = path
    if digest is not None or copy is not None:
        source = safe_load.read_content(path)
        if digest is not None:
            cache.verify_content(source, digest, what=path.name)
        origin["sha256"] = source.hashed.sha256
    content = checkpoints.read(source, ema=ema)
    native.check_finite(content.state_dict, str(path))
    if copy is None:
        description, state_dict, report = infer(content, origin, values)
    else:
        description, state_dict, report = copied.understand(copy, content, origin)
    return UPerNet.from_state(description, state_dict, str(path)), report


def _as_label_set(labels: label_sets.LabelSet | str | Sequence[str] | None) -> label_sets.LabelSet | None:
    if labels is None or isinstance(labels, label_sets.LabelSet):
        return labels
    if isinstance(labels, str):
        return label_sets.get(labels)
    if not isinstance(labels, Sequence):
        raise ArgumentError(f"labels= takes a LabelSet, the name of one, or a list of class names, found {shown(labels)}.")
    return label_sets.LabelSet(name="custom", classes=tuple(labels))


@contextlib.contextmanager
def _float32() -> Iterator[None]:
    """Weights are made in float32, whatever torch's default is set to."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def check_device(device: torch.device | str | None, dtype: torch.dtype | None = None) -> None:
    """Refuse a device that is not there, and a dtype that no model runs in, before anything is loaded.

    Raises:
        ArgumentError: names it.
    """
    if dtype not in (None, torch.float32, torch.float16, torch.bfloat16):
        raise ArgumentError(f"{option('dtype')}{dtype}: a model runs in torch.float32, torch.float16 or torch.bfloat16.")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ArgumentError(f"Device {device!r} is not usable here ({str(error).splitlines()[0]}). Try 'cpu'.") from None


def load_entry(
    entry: index.ModelEntry,
    *,
    checkpoint: str | os.PathLike | None = None,
    sha256: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    **options: Any,
) -> UPerNet:
    """The pretrained model of an entry of any index: mapped from the converted cache, or found, verified and converted first.

    All arguments but the entry are as for `create_model`, `mirrors`, `local_files_only` and `progress` among them.

    Raises:
        UPerNetZooError: as `create_model`.
    """
    options |= {"checkpoint": checkpoint, "sha256": sha256, "cache_dir": cache_dir}
    wanted = entry.sha256 if sha256 is None else files.check_digest(sha256)
    target = cache.cache_root(cache_dir) / "converted" / f"{entry.name}-{wanted[:8]}.safetensors"
    if checkpoint is not None:
        wanted = sources.fetch(entry, **options).sha256
    if (model := _converted(entry, target, wanted)) is not None:
        return model
    if checkpoint is None and entry.copies:
        return _own_or_copy(entry, target, wanted, options)
    return _own(entry, target, wanted, options)


def _own(entry: index.ModelEntry, target: Path, wanted: str, options: dict[str, Any]) -> UPerNet:
    """The model of the very file that an entry names, found or brought, and converted."""
    try:
        # one lock from the fetch to the conversion: many processes may want one file, or several files under its name
        with cache.lock(cache.cached_path(entry, options["cache_dir"]), cache_dir=options["cache_dir"]):
            model = _converted(entry, target, wanted)  # another process may have made it while this one waited
            return model or _convert(entry, target, options)
    except CacheError:
        found = sources.fetch(entry, **options)
        if found.source != "cache" and found.path.parent != DEMO_FOLDER:
            raise
        return UPerNet.from_state(*_verified(entry, found), str(found.path))  # unconverted: a cache that cannot be written has it


def _converted(entry: index.ModelEntry, target: Path, sha256: str) -> UPerNet | None:
    """The entry's model from a converted file of a checkpoint with that digest; None if there is no such file, or it was changed."""
    try:
        found = cache.read_trusted(target, native.read_safetensors)
    except (CheckpointError, ConfigError):  # it was made here, and can be made again
        return None
    if found is None:
        return None
    tensors, description = found
    if description is None or not description.origin.get("sha256", "").startswith(sha256):
        return None
    note_converted(description.origin, target.parent)
    return UPerNet.from_state(copied.describe(entry, tensors, description.origin), tensors, str(target))


def _convert(entry: index.ModelEntry, target: Path, options: dict[str, Any]) -> UPerNet:
    """Find or bring a checkpoint, write what it holds to the converted file, and give the model. The lock is held."""
    found = sources.fetch(entry, **options)
    try:
        description, tensors = _verified(entry, found)
    except IntegrityError:
        if found.source != "cache":
            raise
        cache.distrust(found.path)  # it is not what its receipt says: let `fetch` read it, and bring another
        found = sources.fetch(entry, **options)
        description, tensors = _verified(entry, found)
    _keep(target, description, tensors, str(found.path))
    return _converted(entry, target, found.sha256) or UPerNet.from_state(description, tensors, str(found.path))


def _keep(target: Path, description: Description, tensors: dict[str, torch.Tensor], source: str) -> None:
    """Write a converted file and its receipt."""
    cache.make_folder(target.parent)
    with cache.cache_errors(target.parent):
        hashed = files.write_hashed(target, lambda path: native.write_safetensors(path, description, tensors))
    cache.write_receipt(target, hashed, source)


def _own_or_copy(entry: index.ModelEntry, target: Path, wanted: str, options: dict[str, Any]) -> UPerNet:
    """The model of an entry's own file, or where that cannot be had, of the first copy of it that can, with a warning of which.

    A copy that was converted before is taken where the own file is not on this machine: hosts that were gone are not asked each time.
    """
    sha256, cache_dir = options["sha256"], options["cache_dir"]
    kept = sorted(target.parent.glob(f"{entry.name}-*.safetensors"))
    plan = sources.plan(entry, **{key: options[key] for key in options if key not in ("progress", "checkpoint")})
    if not any(source.may_have_it and not source.on_network for source in plan) and not options.get("mirrors"):
        for path in kept:
            model = _converted(entry, path, sha256 or "")
            if model is not None and "copy" in model.origin:
                copied.warn_of(entry, model)
                return model
    try:
        return _own(entry, target, wanted, options)
    except (DownloadError, IntegrityError) as error:
        where = {key: options[key] for key in ("local_files_only", "progress") if key in options}
        copy, description, tensors = copied.fetch(entry, error, sha256=sha256, **where)
    digest = description.origin["sha256"]
    target = target.with_name(f"{entry.name}-{digest[:8]}.safetensors")
    with contextlib.suppress(CacheError), cache.lock(target, cache_dir=cache_dir):
        _keep(target, description, tensors, f"{copy.place} {copy.weights.name}, SHA-256 {digest} {copy.verified}".strip())
    model = _converted(entry, target, digest) or UPerNet.from_state(description, tensors, copy.place)
    copied.warn_of(entry, model)
    return model


def _verified(entry: index.ModelEntry, found: cache.Found) -> tuple[Description, dict[str, torch.Tensor]]:
    """What a checkpoint holds, from the very bytes that have the digest.

    Raises:
        IntegrityError: the file is not the one that was found any more.
        CheckpointError: it holds something else than this model.
    """
    content, owner = safe_load.read_content(found.path), f"{entry.name}: {found.path}"
    cache.verify_content(content, found.sha256, what=entry.name)
    state = checkpoints.read(content).state_dict
    with torch.device("meta"):
        check_keys(state, UPerNet(entry.config), owner)
    native.check_finite(state, owner)
    origin = {"model": entry.name, "file": entry.file_name, "sha256": found.sha256, "url": entry.weights}
    origin["tensors"] = fingerprint(state)
    return Description(entry.config, entry.recipe, entry.label_set, origin), state
