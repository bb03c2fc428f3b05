"""Fused models on disk: that of a model by name is made once, then mapped from the cache; any other is saved and loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from . import files
from .checkpoints import native
from .description import Description
from .errors import ArgumentError, CheckpointError, ConfigError, MissingFileError, WriteError
from .factory import create_model
from .index import ModelEntry
from .models import UPerNet
from .models.fused.model import FusedUPerNet, optimize_for_inference
from .provenance import note_converted
from .reference import Reference
from .weights import cache
from .written import require_replaceable

__all__ = ["load", "read", "save"]

# of the tensors in the cache; another number whenever models/fused changes their names, shapes or meaning
_FORM = "fused 2"


def load(
    ref: str | os.PathLike[str] | UPerNet | FusedUPerNet,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    sha256: str | None = None,
    mirrors: Sequence[str | os.PathLike[str]] = (),
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    progress: bool = True,
) -> FusedUPerNet:
    """`optimize_for_inference(create_model(ref))` for the CPU in float32, without doing it again each time.

    The fused model of a name of the index is kept in the cache, beside the converted checkpoint and bound to the checkpoint's digest,
    and mapped from there. Where the cache cannot be written, the model is fused again each time. A fused model is given back itself. All
    arguments are as for `create_model`.

    Raises:
        UPerNetZooError: as `create_model`.

    Examples:
        >>> from upernet_zoo import optimized
        >>> optimized.load("demo").label_set.classes[0]
        'road'
    """
    reference = Reference.parse(ref)
    reference.require_options(checkpoint=checkpoint, sha256=sha256, mirrors=mirrors)
    if isinstance(ref, FusedUPerNet):
        return ref
    entry = reference.entry
    if entry is not None and checkpoint is None:
        wanted = entry.sha256 if sha256 is None else files.check_digest(sha256)
        if model := _cached(entry, wanted, cache_dir):
            return model
    plain = create_model(
        ref,
        checkpoint=checkpoint,
        sha256=sha256,
        mirrors=mirrors,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        progress=progress,
    )
    return optimize_for_inference(plain) if entry is None else _made(entry, plain, cache_dir)


def _made(entry: ModelEntry, plain: UPerNet, cache_dir: str | os.PathLike[str] | None) -> FusedUPerNet:
    """The fused model of an entry's model, mapped from the cache where that can be written."""
    digest = plain.origin["sha256"]
    target = _path(entry, digest, cache_dir)
    model = None
    try:
        cache.make_folder(target.parent)
        with cache.lock(target, cache_dir=cache_dir):  # many processes: one fuses, the others find it done
            if model := _cached(entry, digest, cache_dir):
                return model
            model = optimize_for_inference(plain)
            cache.write_receipt(target, _write(model, target), f"made from {plain.origin['file']}")
    except WriteError:
        return model or optimize_for_inference(plain)
    return _cached(entry, digest, cache_dir) or model


def _path(entry: ModelEntry, digest: str, cache_dir: str | os.PathLike[str] | None) -> Path:
    return cache.cache_root(cache_dir) / "converted" / f"{entry.name}-{digest[:8]}-fused.safetensors"


def _cached(entry: ModelEntry, digest: str, cache_dir: str | os.PathLike[str] | None) -> FusedUPerNet | None:
    """The fused model in the cache; None if there is none, or it is of another checkpoint or form, or was changed."""
    path = _path(entry, digest, cache_dir)
    try:
        found = cache.read_trusted(path, _read)
        if found is None or not found[1].origin.get("sha256", "").startswith(digest):
            return None
        note_converted(found[1].origin, path.parent)
        return FusedUPerNet.from_state(entry.config, entry.recipe, entry.label_set, found[0], found[1].origin)
    except (CheckpointError, ConfigError):  # it was made here, and can be made again
        return None


def save(model: FusedUPerNet, path: str | os.PathLike, *, overwrite: bool = False) -> Path:
    """Write a fused model as one safetensors file, with its architecture, recipe and classes inside.

    Args:
        model: what `optimize_for_inference` returns.
        path: of the file.
        overwrite: replace a file that is there and was not written by this library.

    Raises:
        ArgumentError: a model that is not fused, or a folder in place of a file.
        ExistingFileError: a file of that name is there, and was not written by this library.
        WriteError: the file cannot be written.

    Examples:
        >>> from upernet_zoo import optimized
        >>> optimized.save(optimized.load("demo"), "fused.safetensors").name
        'fused.safetensors'
    """
    if not isinstance(model, FusedUPerNet):
        raise ArgumentError(f"optimized.save takes what optimize_for_inference returns, found {type(model).__name__}.")
    path = files.expanded(path)
    require_replaceable(path, overwrite)
    _write(model, path)
    return path


def _write(model: FusedUPerNet, path: Path) -> files.Hashed:
    """Write a fused model; returns what was written."""
    description = Description(model.config, model.recipe, model.label_set, {**model.origin, native.FORM_KEY: _FORM})
    return files.write_hashed(path, lambda temporary: native.write_safetensors(temporary, description, model.state_dict()))


def read(path: str | os.PathLike) -> FusedUPerNet:
    """The fused model that `save` wrote, mapped from the file.

    Raises:
        MissingFileError: no such file.
        CheckpointError: something else, or written by a version whose fused models had another form.
        ConfigError: a description that cannot be used.

    Examples:
        >>> from upernet_zoo import optimized
        >>> path = optimized.save(optimized.load("demo"), "fused.safetensors")
        >>> optimized.read(path).label_set.classes[0]
        'road'
    """
    path = files.expanded(path)
    if not path.is_file():
        raise MissingFileError(f"No fused model at {path}. Check the path.")
    tensors, description = _read(path)
    return FusedUPerNet.from_state(description.config, description.recipe, description.label_set, tensors, description.origin)


def _read(path: Path) -> tuple[dict[str, Tensor], Description]:
    tensors, description = native.read_safetensors(path)
    origin = {} if description is None else dict(description.origin)
    if description is None or origin.pop(native.FORM_KEY, None) != _FORM:
        raise CheckpointError(f"{path}: not a fused model of this version. Make it again: optimize_for_inference, optimized.save.")
    return tensors, replace(description, origin=origin)
