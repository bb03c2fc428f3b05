"""`from_pretrained`, `save_pretrained` and `push_to_hub` of a model: the hub knows no model class, and a model class inherits these."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from ..description import Described, Description
from ..reference import saved_place
from . import client
from .folder import read_folder, save_pretrained

__all__ = ["HubMixin"]


class HubMixin:
    """For a model class with `from_state`, `state_dict`, and the attributes of a `Description`."""

    @classmethod
    def from_state(cls, description: Description, tensors: Mapping[str, Tensor], owner: str) -> Self:
        """A model in eval mode with these tensors; `owner` names where they are from in errors."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(
        cls,
        ref: str | os.PathLike,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """The model of a folder that `save_pretrained` wrote, or of a Hub repository that `push_to_hub` wrote, in eval mode.

        Names and shapes must fit strictly, and nothing but safetensors is read.

        Args:
            ref: a folder; else "org/name" or "org/name@revision", with or without "hf-hub:".
            revision: branch, tag or commit; by default the main branch.
            token: of the Hub; None: `HF_TOKEN` or that of `hf auth login`, False: none.
            cache_dir: in place of the Hub's cache (`HF_HUB_CACHE`).
            local_files_only: open no socket.

        Raises:
            UPerNetZooError: see `upernet_zoo.hub.client.find_folder` and `upernet_zoo.hub.folder.read_folder`.
        """
        options: dict[str, Any] = dict(token=token, cache_dir=cache_dir, local_files_only=local_files_only)
        return cls.from_state(*read_folder(client.find_folder(saved_place(ref, revision), **options)))

    def save_pretrained(self: Described, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write `config.json`, `model.safetensors` and a card; see `upernet_zoo.hub.folder.save_pretrained`."""
        return save_pretrained(self, folder, overwrite=overwrite)

    def push_to_hub(
        self: Described,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Write what `save_pretrained` writes into a Hub repository, in one commit; the repository is made if there is none.

        A card (`README.md`) that is already there stays as it is.

        Args:
            repo_id: "org/name", or "name" for one's own account.
            private: of a new repository; None: as the account's or organization's default.
            token: of the Hub, one that may write; None: `HF_TOKEN` or that of `hf auth login`.
            revision: branch, made from the main branch if there is none.
            commit_message: first line of the commit.
            create_pr: propose the commit as a pull request.

        Returns:
            URL of the commit or the pull request.

        Raises:
            ArgumentError: no name of a repository.
            DownloadError: the Hub could not be reached, or refuses.
            OfflineError: the network may not be used.
        """
        return client.push_to_hub(
            self, repo_id, private=private, token=token, revision=revision, commit_message=commit_message, create_pr=create_pr
        )
