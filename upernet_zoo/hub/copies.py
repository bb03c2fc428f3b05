"""Models of UPerNet in the formats of other libraries, as folders and repositories of the Hub hold them.

A copy is a conversion of a file that the index names. Its own digest is not in the index (or not yet), so a repository is pinned to the
commit that its revision is now, and its weights are compared with the SHA-256 that the Hub states for them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, IntegrityError, MissingFileError, shown
from ..reference import Repository
from ..weights.cache import offline
from . import client
from .folder import CONFIG_NAME, WEIGHTS_NAME

__all__ = ["NAMES", "Copy", "in_folder", "in_repository", "library_of"]

NAMES = (WEIGHTS_NAME, "pytorch_model.bin")  # of weights over there; the first that is there is taken
_BY_HOST = "against its host's digest, not the index's"


@dataclass(frozen=True)
class Copy:
    """A model in another library's format, on this machine.

    Attributes:
        weights: the file.
        config: what its `config.json` says.
        library: whose names and config it has; see `library_of`.
        place: the folder, or the repository with the commit.
        sha256: that the weights must have; None for a folder, which nobody states one for.
        verified: against whose digest, in words, where it is neither the index's nor the caller's; empty for a folder.
    """

    weights: Path
    config: Mapping[str, Any]
    library: str
    place: str
    sha256: str | None = None
    verified: str = ""

    @property
    def origin(self) -> dict[str, str]:
        """What is recorded of it in a model: its file, and its repository, but no folder of this machine."""
        place = {"copy": self.place} if self.sha256 else {}
        return {**place, "file": self.weights.name, **({"verified": self.verified} if self.verified else {})}


def library_of(config: Any) -> str | None:
    """The library that wrote the config of a UPerNet: "transformers", or "smp" (segmentation_models_pytorch); None: another or none."""
    if not isinstance(config, Mapping):
        return None
    if config.get("model_type") == "upernet" and isinstance(config.get("backbone_config"), Mapping):
        return "transformers"
    if config.get("model_type") == "beit" and config.get("architectures") == ["BeitForSemanticSegmentation"]:
        return "transformers"
    return "smp" if config.get("_model_class") == "UPerNet" else None


def in_folder(folder: Path) -> Copy | None:
    """The model in a folder, if it is in a format of another library.

    Raises:
        MissingFileError: there is such a config, and no weights.
        ConfigError: `config.json` is not JSON.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        return None
    config = _read(path, str(path))
    library = library_of(config)
    if library is None:
        return None
    weights = next((folder / name for name in NAMES if (folder / name).is_file()), None)
    if weights is None:
        raise MissingFileError(f"{folder}: a model of {library} without its weights: neither {' nor '.join(NAMES)} is there.")
    return Copy(weights, config, library, str(folder))


def in_repository(
    repository: Repository,
    *,
    sha256: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
    progress: bool = True,
) -> Copy | None:
    """The model in a repository, if it is in a format of another library, brought into the Hub's cache.

    Args:
        repository: its revision is resolved to a commit.
        sha256: the digest that its weights must have, in place of the one that the Hub states.
        token, cache_dir, local_files_only, progress: as for `client.find_folder`.

    Raises:
        IntegrityError: other weights came than the Hub states (they are kept aside), or it states no digest and none is given.
        UPerNetZooError: as `client.find_folder`.
    """
    where: dict[str, Any] = dict(token=token, cache_dir=cache_dir, local_files_only=local_files_only, progress=progress)
    config_path = client.bring(repository, CONFIG_NAME, **where)
    config = _read(config_path, f"{repository}: {CONFIG_NAME}")
    library = library_of(config)
    if library is None:
        return None
    pinned = Repository(repository.id, config_path.parent.name)
    name = next((name for name in NAMES if (config_path.parent / name).exists()), None)
    kept = None if name is None else _kept_digest(config_path.parent / name)
    if name is None or (kept is None and sha256 is None):
        there = {} if offline(local_files_only) else client.list_files(pinned, token=token)[1]
        right = (one for one in NAMES if one in there and (sha256 is None or (there[one].sha256 or sha256).startswith(sha256)))
        name = name or next(right, None) or next((one for one in NAMES if one in there), NAMES[0])
        kept = there[name].sha256 if name in there else None
    if sha256 is not None and kept is not None and not kept.startswith(sha256):
        raise IntegrityError(f"{pinned}: the SHA-256 of {name} is {kept}, and not {sha256}.")
    path = config_path.parent / name
    expected = sha256 or kept
    if expected is None and (path.exists() or not offline(local_files_only)):
        raise IntegrityError(
            f"{pinned}: its host states no SHA-256 of {name}, and the index has none: it is used only with one that somebody you trust "
            f"gives you. Download it, and name the file: load_checkpoint(path, sha256=...)."
        )
    is_new = not path.exists()
    path = client.bring(pinned, name, **where)
    if is_new and expected is not None:  # which is None only where nothing comes over the network
        client.check_arrived(path, expected, pinned, "and its host states" if sha256 is None else "and expected is", "Try again")
    return Copy(path, config, library, str(pinned), expected, _BY_HOST if sha256 is None else "")


def _kept_digest(path: Path) -> str | None:
    """The SHA-256 that the Hub stated when a file came, by which its cache names large files; None where it does not (no links)."""
    name = path.resolve().name
    return name if re.fullmatch("[0-9a-f]{64}", name) else None


def _read(path: Path, owner: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{owner}: not valid JSON: {shown(str(error), 'text')}.") from None
