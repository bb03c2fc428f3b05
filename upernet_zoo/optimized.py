"""Fused twins on disk: that of a model by name is made once, then mapped from the cache; any other is saved and loaded."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from . import checkpoint as checkpoints
from . import index, sources
from .checkpoint import Description
from .errors import ArgumentError, CacheError, CheckpointError, ConfigError, MissingFileError
from .factory import create_model, model_entry
from .hub import FOLDER_PREFIX, HUB_PREFIX
from .models.fused import FusedUPerNet, optimize_for_inference

# of the tensors in the cache; another number whenever models/fused.py changes their names, shapes or meaning
_FORM = "fused 1"


def load(ref: str, *, checkpoint: str | os.PathLike | None = None) -> FusedUPerNet:
    """`optimize_for_inference(create_model(ref))` for the CPU in float32, without doing it again each time.

    The twin of a name of the index is kept in the cache, beside the converted checkpoint and bound to the checkpoint's digest, and
    mapped from there. Where the cache cannot be written, the twin is made anew.

    Args:
        ref, checkpoint: as for `create_model`.

    Raises:
        UPerNetZooError: as `create_model`.
    """
    if not isinstance(ref, str):
        raise ArgumentError(f"optimized.load takes a model's name, found {type(ref).__name__}.")
    if ref.startswith((HUB_PREFIX, FOLDER_PREFIX)):
        return optimize_for_inference(create_model(ref, checkpoint=checkpoint))
    entry = model_entry(ref)
    model = _cached(entry, entry.sha256) if checkpoint is None else None
    if model is not None:
        return model
    plain = create_model(ref, checkpoint=checkpoint)
    digest = plain.origin["sha256"]
    target = _path(entry, digest)
    try:
        with sources.lock(target):  # many processes: one optimises, the others find it done
            model = _cached(entry, digest)
            if model is not None:
                return model
            model = optimize_for_inference(plain)
            save(model, target)
            sources.write_receipt(target, sources.file_digest(target)[0], f"made from {plain.origin['file']}")
    except CacheError:
        return model or optimize_for_inference(plain)
    return _cached(entry, digest) or model


def _path(entry: index.ModelEntry, digest: str) -> Path:
    return sources.cache_root() / "converted" / f"{entry.name}-{digest[:8]}-fused.safetensors"


def _cached(entry: index.ModelEntry, digest: str) -> FusedUPerNet | None:
    """The twin in the cache; None if there is none, or it is of another checkpoint or form, or was changed."""
    path = _path(entry, digest)
    if sources.trusted(path) is None:
        return None
    try:
        tensors, description = _read(path)
        if not description.origin.get("sha256", "").startswith(digest):
            return None
        return FusedUPerNet.from_state(entry.config, entry.recipe, entry.label_set, tensors, description.origin)
    except (CheckpointError, ConfigError):  # it was made here, and can be made again
        return None


def save(model: FusedUPerNet, path: str | os.PathLike) -> Path:
    """Write a fused model as one safetensors file, with its architecture, recipe and classes inside.

    Raises:
        ArgumentError: a model that is not fused, or a folder in place of a file.
        CacheError: the file cannot be written.
    """
    if not isinstance(model, FusedUPerNet):
        raise ArgumentError(f"optimized.save takes what optimize_for_inference returns, found {type(model).__name__}.")
    path = Path(path).expanduser()
    if path.is_dir():
        raise ArgumentError(f"{path} is a folder. Give the name of a file in it.")
    description = Description(model.config, model.recipe, model.label_set, {**model.origin, checkpoints.FORM_KEY: _FORM})
    sources.write_atomically(path, lambda temporary: checkpoints.write_safetensors(temporary, description, model.state_dict()))
    return path


def read(path: str | os.PathLike) -> FusedUPerNet:
    """The fused model that `save` wrote, mapped from the file.

    Raises:
        MissingFileError: no such file.
        CheckpointError: something else, or written by a version whose fused models had another form.
        ConfigError: a description that cannot be used.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise MissingFileError(f"No fused model at {path}. Check the path.")
    tensors, description = _read(path)
    return FusedUPerNet.from_state(description.config, description.recipe, description.label_set, tensors, description.origin)


def _read(path: Path) -> tuple[dict[str, Tensor], Description]:
    tensors, description = checkpoints.read_safetensors(path)
    origin = {} if description is None else dict(description.origin)
    if origin.pop(checkpoints.FORM_KEY, None) != _FORM:
        raise CheckpointError(f"{path}: not a fused model of this version. Make it anew: optimize_for_inference, optimized.save.")
    return tensors, replace(description, origin=origin)
