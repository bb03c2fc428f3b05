"""A mirror of checkpoints: a folder that any web server can serve, or a repository on the Hugging Face Hub for each model.

A folder gets the original files under their plain names, and works as a mirror (`UPERNET_ZOO_MIRRORS`) at once, before and after it
is served. A repository `ORG/NAME` gets the original file beside `config.json`, `model.safetensors` and a card, in one commit: it is a
source of original files (`UPERNET_ZOO_HUB_ORG`), and a model of its own (`create_model("hf-hub:ORG/NAME")`).

What is there already, whole and right, is left; so a run that was interrupted is resumed by running it again. A file in a folder
that has the name and is not right is kept aside, with its digest in its name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import files
from .errors import ArgumentError, ConfigError, IntegrityError, ModelNotFoundError
from .factory import load_entry
from .hub import client, folder
from .index import ModelEntry
from .reference import HUB_PREFIX, Repository
from .weights import cache, sources
from .wording import worded

__all__ = ["Mirrored", "mirror"]


@dataclass(frozen=True)
class Mirrored:
    """What became of one model.

    Attributes:
        name: of the model.
        target: the file's path, or "hf-hub:org/name".
        state: "there already", "copied", "uploaded", "would be copied" or "would be uploaded".
        source: where the file came from, or would be looked for; "-" where nothing had to come.
        size: of the original file in bytes, None if it is not known yet.
    """

    name: str
    target: str
    state: str
    source: str
    size: int | None


def mirror(
    entry: ModelEntry,
    target: str | os.PathLike,
    *,
    dry_run: bool = False,
    private: bool | None = None,
    token: str | bool | None = None,
    mirrors: Sequence[str | os.PathLike] = (),
    cache_dir: str | os.PathLike | None = None,
    progress: bool = True,
) -> Mirrored:
    """Bring one model's checkpoint to a folder or to the Hub, from whatever source has it.

    Args:
        entry: the model.
        target: a folder, made if it is missing; or "hf-hub:ORG".
        dry_run: only say what would be done. A folder is read; the Hub is asked.
        private: of new repositories; None: as the organization's default.
        token: of the Hub, one that may write; None: `HF_TOKEN` or that of `hf auth login`.
        mirrors: further places to look for the file: URLs or folders.
        cache_dir: in place of `UPERNET_ZOO_CACHE` and `~/.cache/upernet_zoo`.
        progress: show a progress bar while downloading.

    Raises:
        UPerNetZooError: as `sources.fetch`, `factory.create_model` and `hub.push_to_hub`.
    """
    options = dict(mirrors=mirrors, cache_dir=cache_dir, progress=progress)
    if str(target).startswith(HUB_PREFIX):
        organization = str(target).removeprefix(HUB_PREFIX)
        if not organization or "/" in organization or "@" in organization:
            raise ArgumentError(f"{target}: expected a folder, or {HUB_PREFIX}ORGANIZATION alone; a repository is made for each model.")
        return _to_hub(entry, Repository(f"{organization}/{entry.name}"), dry_run, private, token, options)
    return _to_folder(entry, files.expanded(target), dry_run, options)


def _source(entry: ModelEntry, options: dict) -> str:
    """The first place that has the file, or may have it."""
    plan = sources.plan(entry, mirrors=options["mirrors"], cache_dir=options["cache_dir"])
    return next((str(source) for source in plan if source.may_have_it), "-")


def _to_folder(entry: ModelEntry, folder: Path, dry_run: bool, options: dict) -> Mirrored:
    path = folder / entry.file_name
    expected = cache.expected_digest(entry, cache_dir=options["cache_dir"])
    wrong = None
    if path.exists():
        with files.write_errors(path):
            digest, size = files.file_digest(path)
        if digest.startswith(expected):
            return Mirrored(entry.name, str(path), "there already", "-", size)
        wrong = cache.aside_path(path, digest)
    if dry_run:
        return Mirrored(entry.name, str(path), "would be copied", _source(entry, options), None)
    found = sources.fetch(entry, **options)

    def write(temporary: Path) -> None:
        if files.copy(found.path, temporary)[0] != found.sha256:
            raise IntegrityError(
                f"{entry.name}: {found.path} changed while it was copied. "
                f"{worded('Try again', 'Run upernet-zoo verify --deep, and try again')}."
            )

    if wrong is not None:
        with files.write_errors(path):
            path.replace(wrong)
    files.write_atomically(path, write)
    return Mirrored(entry.name, str(path), "copied", found.source, found.size)


def _to_hub(
    entry: ModelEntry, repository: Repository, dry_run: bool, private: bool | None, token: str | bool | None, options: dict
) -> Mirrored:
    size = _size_in(repository, entry, token, options)
    if size is not None:
        return Mirrored(entry.name, str(repository), "there already", "-", size)
    if dry_run:
        return Mirrored(entry.name, str(repository), "would be uploaded", _source(entry, options), None)
    found = sources.fetch(entry, **options)
    model = load_entry(entry, **options)
    client.push_to_hub(
        model,
        repository.id,
        private=private,
        token=token,
        commit_message=f"Mirror {entry.name} with upernet_zoo",
        extra_files=(found.path,),
    )
    return Mirrored(entry.name, str(repository), "uploaded", found.source, found.size)


def _size_in(repository: Repository, entry: ModelEntry, token: str | bool | None, options: dict) -> int | None:
    """Size of the original file in a repository that is complete and right; None if it is not.

    Right: the Hub's digest of the original is the expected one, `config.json` names it as its origin, and has the Hub's digest of
    `model.safetensors`.
    """
    try:
        commit, files = client.list_files(repository, token=token)
    except ModelNotFoundError:
        return None
    original, weights = files.get(entry.file_name), files.get(folder.WEIGHTS_NAME)
    if original is None or weights is None or folder.CONFIG_NAME not in files or folder.CARD_NAME not in files:
        return None
    expected = cache.expected_digest(entry, cache_dir=options["cache_dir"])
    if original.sha256 is None or not original.sha256.startswith(expected):
        return None
    try:
        config = client.read_remote_config(repository, commit, token=token)
    except ConfigError:
        return None
    origin = config.get("origin") if isinstance(config, dict) else None
    same = isinstance(origin, dict) and origin.get("sha256") == original.sha256 and config.get("weights_sha256") == weights.sha256
    return original.size if same else None
