"""Folders and Hugging Face Hub repositories that hold one model: `config.json` and `model.safetensors`."""

from __future__ import annotations

import json
import os
from pathlib import Path

from . import safe_load, sources
from .checkpoint import Description, build, check_finite, write_safetensors
from .errors import CacheError, ConfigError, MissingFileError
from .models import UPerNet
from .version import __version__

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"


def save_pretrained(model: UPerNet, folder: str | os.PathLike) -> Path:
    """Write `config.json` and `model.safetensors`, each whole or not at all; `create_model("local-dir:...")` loads them.

    Raises:
        CacheError: the folder cannot be written.
    """
    folder = Path(folder).expanduser()
    description = Description.of(model)
    config = {"library_name": "upernet_zoo", "library_version": __version__, **description.to_dict()}
    text = json.dumps(config, indent=2) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {key: value.detach().cpu() for key, value in model.state_dict().items()}
        sources.write_atomically(folder / WEIGHTS_NAME, lambda path: write_safetensors(path, description, tensors))
        sources.write_atomically(folder / CONFIG_NAME, lambda path: path.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise CacheError(f"Cannot save a model in {folder}: {error}. Pass a folder that can be written.") from error
    return folder


def read_description(folder: str | os.PathLike) -> Description:
    """What `config.json` in a saved folder says about its model.

    Raises:
        MissingFileError: the folder, or one of the two files, is not there.
        ConfigError: `config.json` is not valid.
    """
    folder = Path(folder).expanduser()
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            what = "has no" if folder.is_dir() else "is not a folder; expected one with"
            raise MissingFileError(f"{folder} {what} {name}. Save a model there with save_pretrained.")
    path = folder / CONFIG_NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid JSON: {error}. Save the model anew with save_pretrained.") from None
    if isinstance(data, dict) and data.get("library_name", "upernet_zoo") != "upernet_zoo":
        raise ConfigError(f"{path}: written by {data['library_name']!r}, not by upernet_zoo.")
    return Description.from_dict(data, str(path))


def load_folder(folder: str | os.PathLike) -> UPerNet:
    """The model that `save_pretrained` wrote into a folder, in eval mode, its weights mapped into memory.

    Raises:
        MissingFileError, ConfigError: see `read_description`.
        CheckpointError: the weights do not fit the config, or are NaN.
    """
    description = read_description(folder)
    weights = Path(folder).expanduser() / WEIGHTS_NAME
    tensors = safe_load.read_safetensors(weights)[0]
    check_finite(tensors, str(weights))
    return build(description, tensors, str(weights))
