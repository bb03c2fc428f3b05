"""A model as a folder: `config.json`, `model.safetensors` and a card."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import files
from ..checkpoints import safe_load
from ..checkpoints.native import check_finite, write_safetensors
from ..description import Described, Description
from ..errors import ConfigError, MissingFileError, WriteError, shown
from ..provenance import claim_of
from ..provenance import fingerprint as fingerprint
from ..reference import FOLDER_PREFIX
from ..version import __version__
from ..wording import worded
from ..written import require_replaceable_folder
from . import card

__all__ = [
    "CARD_NAME",
    "CONFIG_NAME",
    "WEIGHTS_NAME",
    "read_config",
    "read_description",
    "read_folder",
    "require_file",
    "save_pretrained",
    "write_folder",
]

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
CARD_NAME = "README.md"

_logger = logging.getLogger("upernet_zoo")


# folders


def save_pretrained(model: Described, folder: str | os.PathLike[str], *, keep_card: bool = True, overwrite: bool = False) -> Path:
    """Write `config.json`, `model.safetensors` and a card, each whole or not at all; `create_model("local-dir:...")` loads them.

    Args:
        keep_card: a card (`README.md`) that is already there stays as it is.
        overwrite: replace the files of a model that is there and was not written by this library.

    Raises:
        ExistingFileError: a model is there, and was not written by this library.
        WriteError: the folder cannot be written.
    """
    folder = files.expanded(folder)
    require_replaceable_folder(folder, overwrite)
    try:
        write_folder(model, folder, f"{FOLDER_PREFIX}{folder}", folder.resolve().name, keep_card=keep_card)
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(f"Cannot save a model in {folder}: {error}. Pass a folder that can be written.") from error
    return folder


def write_folder(model: Described, folder: Path, reference: str, name: str, *, keep_card: bool) -> None:
    """Write config, weights and card; `reference` is what the card loads the model by, `name` its title.

    Raises:
        WriteError: as `files.write_together`.
    """
    description = Description.of(model)
    tensors = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    digest = ""

    def write_weights(path: Path) -> None:
        nonlocal digest
        write_safetensors(path, description, tensors)
        digest = files.file_digest(path)[0]

    def write_config(path: Path) -> None:
        config = {"library_name": "upernet_zoo", "library_version": __version__, **description.to_dict(), "weights_sha256": digest}
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def card_text() -> str:
        return card.render(description, reference=reference, name=name, weights_sha256=digest, claim=claim_of(model))

    path = folder / CARD_NAME
    keep_card = keep_card and path.exists()
    writers: list[tuple[Path, Callable[[Path], object]]] = [(folder / WEIGHTS_NAME, write_weights), (folder / CONFIG_NAME, write_config)]
    if not keep_card:
        writers.append((path, lambda temporary: temporary.write_text(card_text(), encoding="utf-8")))
    files.write_together(writers)
    if keep_card and path.read_bytes() != card_text().encode():
        _logger.warning("%s is already there and stays as it is: check that it still fits the model.", path)


def read_config(path: Path, owner: str) -> Any:
    """The JSON in a `config.json`, if it is not another library's; `owner` names it in errors."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{owner}: not valid JSON: {shown(str(error), 'text')}. {_save_it()}") from None
    if isinstance(data, dict) and data.get("library_name", "upernet_zoo") != "upernet_zoo":
        raise ConfigError(f"{owner}: written by {shown(data['library_name'])}, not by upernet_zoo. Load it with that library.")
    if isinstance(data, dict) and "architecture" not in data and {"model_type", "transformers_version"} & data.keys():
        raise ConfigError(
            f"{owner}: a model of transformers, not of upernet_zoo. Load it with transformers' from_pretrained, or bring it here with "
            "upernet-zoo convert."
        )
    if isinstance(data, dict) and isinstance(data.get("architecture"), str):
        raise ConfigError(f"{owner}: a model of timm or another library ({shown(data['architecture'])}), not of upernet_zoo.")
    return data


def read_description(folder: str | os.PathLike) -> Description:
    """What `config.json` in a saved folder says about its model.

    Raises:
        MissingFileError: the folder, or `config.json` in it, is not there.
        ConfigError: `config.json` is not valid, or another library's.
    """
    path = files.expanded(folder) / CONFIG_NAME
    require_file(path)
    return Description.from_dict(read_config(path, str(path)), str(path))


def _save_it() -> str:
    return f"Save a model there with {worded('save_pretrained', 'upernet-zoo convert')}."


def require_file(path: Path) -> None:
    """Raise a MissingFileError where a saved model's file is not there."""
    if not path.is_file():
        what = "has no" if path.parent.is_dir() else "is not a folder; expected one with"
        raise MissingFileError(f"{path.parent} {what} {path.name}. {_save_it()}")


def read_folder(folder: str | os.PathLike) -> tuple[Description, dict[str, Tensor], str]:
    """What `save_pretrained` wrote into a folder, as `UPerNet.from_state` takes it.

    Returns:
        The description, the tensors, mapped into memory, and the path of their file.

    Raises:
        MissingFileError, ConfigError: see `read_description`.
        CheckpointError: the weights cannot be read, or are NaN.
    """
    folder = files.expanded(folder)
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        require_file(folder / name)
    description = read_description(folder)
    weights = folder / WEIGHTS_NAME
    tensors = safe_load.read_safetensors(weights)[0]
    check_finite(tensors, str(weights))
    return description, tensors, str(weights)
