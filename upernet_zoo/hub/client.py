"""Folders and Hugging Face Hub repositories that hold one model: `config.json`, `model.safetensors` and a card, `README.md`.

What goes to the Hub and comes from it goes through huggingface_hub's own client: tokens (`HF_TOKEN`, `hf auth login`), private and
gated repositories, revisions, `HF_ENDPOINT`, the Hub's cache and `HF_HUB_OFFLINE` are as everywhere else. Its mixin is not used: it
builds a model before it knows the config, does not load strictly unless told so, and falls back to a pickle.

Tested over plain HTTP and LFS, with `HF_HUB_DISABLE_XET=1`. Xet, which the client prefers where the hf_xet package is installed and
the Hub offers it, is the client's own business and is not tested here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .. import files
from ..description import Described
from ..errors import (
    ArgumentError,
    CacheError,
    DownloadError,
    IntegrityError,
    MissingFileError,
    ModelNotFoundError,
    OfflineError,
    UPerNetZooError,
    shown,
    without_secrets,
)
from ..reference import FOLDER_PREFIX, HUB_PREFIX, Repository
from ..version import __version__
from ..weights.cache import offline
from ..wording import option, worded
from .folder import CARD_NAME, CONFIG_NAME, WEIGHTS_NAME, read_config, require_file, write_folder
from .patience import an_end

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["RemoteFile", "client", "find_folder", "list_files", "push_to_hub", "read_remote_config"]

_logger = logging.getLogger("upernet_zoo")


def find_folder(
    place: Path | Repository,
    *,
    weights: bool = True,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
    progress: bool = True,
) -> Path:
    """The folder that holds a saved model: the folder itself, or a snapshot of a repository in the Hub's cache.

    Args:
        place: the folder, or the repository.
        weights: bring `model.safetensors` too, not only `config.json`.
        token: of the Hub; None: `HF_TOKEN` or that of `hf auth login`, False: none.
        cache_dir: in place of the Hub's cache (`HF_HUB_CACHE`).
        local_files_only: open no socket.
        progress: show the client's bars.

    Raises:
        MissingFileError: the folder or repository lacks one of the two files.
        ModelNotFoundError: no such repository or revision, or none that the token may see.
        OfflineError: not in the Hub's cache, and the network may not be used.
        DownloadError: the Hub could not be reached, or refuses (gated, a bad token).
        IntegrityError: the weights that came are not those of `config.json`; they are kept aside.
        ConfigError: `config.json` is not valid, or another library's.
    """
    if isinstance(place, Path):
        for name in (CONFIG_NAME, WEIGHTS_NAME) if weights else (CONFIG_NAME,):
            require_file(place / name)
        return place
    repository = place
    where: dict[str, Any] = dict(token=token, cache_dir=cache_dir, local_files_only=local_files_only, progress=progress)
    config_path = bring(repository, CONFIG_NAME, **where)
    config = read_config(config_path, f"{repository}: {CONFIG_NAME}")  # refuse before the weights come
    folder = config_path.parent
    if weights:
        is_new = not (folder / WEIGHTS_NAME).exists()
        # the commit of the config, so that both are of one revision though somebody pushes in between
        path = bring(repository, WEIGHTS_NAME, commit=folder.name, **where)
        expected = config.get("weights_sha256") if isinstance(config, dict) else None  # older folders have none
        if is_new and isinstance(expected, str):
            push = worded("push_to_hub", "upernet-zoo push")
            again = f"Try again; if it stays so, the files in the repository are not of one push: push the model again with {push}"
            check_arrived(path, expected, repository, f"and {CONFIG_NAME} says", again)
    return folder


def bring(
    repository: Repository,
    name: str,
    *,
    commit: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
    progress: bool = True,
) -> Path:
    """A file of a repository, in a snapshot in the Hub's cache, whose folder has the commit's name.

    Args:
        repository: named in messages.
        name: of the file.
        commit: in place of what the repository's revision is now.
        token, cache_dir, local_files_only, progress: as for `find_folder`.

    Raises:
        MissingFileError: the repository has no such file. Else as `find_folder`.
    """
    cache = None if cache_dir is None else files.expanded(cache_dir)
    pinned = Repository(repository.id, commit or repository.revision)
    with _client_errors(repository), _bars(progress):
        return _from_cache(pinned, name, cache) if offline(local_files_only) else _from_hub(pinned, name, cache, token)


def _from_hub(repository: Repository, name: str, cache: Path | None, token: str | bool | None) -> Path:
    import huggingface_hub

    root = Path(cache or huggingface_hub.constants.HF_HUB_CACHE)
    with an_end(root / f"models--{repository.id.replace('/', '--')}", str(repository)):
        path = huggingface_hub.hf_hub_download(
            repository.id,
            name,
            revision=repository.revision,
            cache_dir=cache,
            token=token,
            library_name="upernet_zoo",
            library_version=__version__,
        )
    return Path(path)


def _from_cache(repository: Repository, name: str, cache: Path | None) -> Path:
    """A file that the Hub's cache has; `hf_hub_download(local_files_only=True)` opens a socket, for what it says of the user."""
    from huggingface_hub import constants, try_to_load_from_cache

    path = try_to_load_from_cache(repository.id, name, cache_dir=cache, revision=repository.revision)
    if not isinstance(path, str):
        raise OfflineError(
            f"{repository}: {name} is not in the Hub's cache on this machine ({cache or constants.HF_HUB_CACHE}), and the network is "
            f"not used ({option('local_files_only')}, UPERNET_ZOO_OFFLINE or HF_HUB_OFFLINE). Load the model once with the network allowed."
        )
    return Path(path)


def check_arrived(path: Path, expected: str, repository: Repository, stated: str, again: str) -> None:
    """Compare weights that have just come with a digest.

    Args:
        path: in a snapshot.
        expected: 64 hex digits, or the first of them.
        repository: named in the message.
        stated: who says so, and
        again: what to do next, in words.

    Raises:
        IntegrityError: another digest; the weights are kept aside.
    """
    found = files.file_digest(path)[0]
    if not found.startswith(expected):
        stored = path.resolve()
        aside = stored.with_name(f"{stored.name}.bad-{found[:8]}")
        stored.replace(aside)
        path.unlink(missing_ok=True)  # the link to it
        raise IntegrityError(f"{repository}: {path.name} has the SHA-256 {found}, {stated} {expected}; kept aside as {aside}. {again}.")


@dataclass(frozen=True)
class RemoteFile:
    """A file in a repository: size in bytes, and SHA-256 where it is stored by LFS (None: a small text file)."""

    size: int
    sha256: str | None


def client(token: str | bool | None = None) -> HfApi:
    """huggingface_hub's client, under this library's name."""
    import huggingface_hub

    return huggingface_hub.HfApi(token=token, library_name="upernet_zoo", library_version=__version__)


def list_files(repository: Repository, *, token: str | bool | None = None) -> tuple[str, dict[str, RemoteFile]]:
    """Commit of a repository's revision and the files there.

    Raises:
        ModelNotFoundError, DownloadError, OfflineError: as `find_folder`.
    """
    _require_network(repository)
    with _client_errors(repository):
        info = client(token).model_info(repository.id, revision=repository.revision, files_metadata=True)
    if info.sha is None:
        raise DownloadError(f"{repository}: the Hub does not say which commit this is. Try again.")
    return info.sha, {s.rfilename: RemoteFile(s.size or 0, s.lfs.sha256 if s.lfs else None) for s in info.siblings or ()}


def read_remote_config(repository: Repository, commit: str, *, token: str | bool | None = None) -> Any:
    """The JSON in a repository's `config.json`.

    Raises:
        ConfigError: not one of ours. Else as `find_folder`.
    """
    import huggingface_hub

    with _client_errors(repository), _bars(False):
        path = huggingface_hub.hf_hub_download(repository.id, CONFIG_NAME, revision=commit, token=token)
    return read_config(Path(path), f"{repository}: {CONFIG_NAME}")


def push_to_hub(
    model: Described,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    extra_files: Sequence[Path] = (),
) -> str:
    """See `HubMixin.push_to_hub`; `extra_files` go along under their plain names, in the same commit."""
    import huggingface_hub

    if not isinstance(repo_id, str) or not repo_id or "@" in repo_id or repo_id.startswith((HUB_PREFIX, FOLDER_PREFIX)):
        raise ArgumentError(f"repo_id={repo_id!r}: expected 'organization/name', or 'name' for your own account.")
    repository = Repository(repo_id, revision)
    _require_network(repository)
    api = client(token)
    with _client_errors(repository, writing=True):
        repository = Repository(api.create_repo(repo_id, private=private, exist_ok=True).repo_id, revision)
        if revision and not create_pr and not revision.startswith("refs/"):
            api.create_branch(repository.id, branch=revision, exist_ok=True)
        info = api.model_info(repository.id, revision=revision)
        has_card = CARD_NAME in {sibling.rfilename for sibling in info.siblings or ()}
        with tempfile.TemporaryDirectory(prefix="upernet_zoo_push_") as name:
            folder = Path(name)
            write_folder(model, folder, str(repository), repository.id.split("/")[-1], keep_card=False)
            names = (CONFIG_NAME, WEIGHTS_NAME) if has_card else (CONFIG_NAME, WEIGHTS_NAME, CARD_NAME)
            if has_card:
                _logger.warning("%s has a %s, which stays as it is: check that it still fits the model.", repository, CARD_NAME)
            commit = api.create_commit(
                repository.id,
                [huggingface_hub.CommitOperationAdd(path.name, path) for path in (*(folder / n for n in names), *extra_files)],
                commit_message=commit_message or "Push a model with upernet_zoo",
                revision=revision,
                create_pr=create_pr,
                parent_commit=info.sha,  # refused if somebody else has pushed, such as a card, since it was looked at
            )
    return commit.pr_url or commit.commit_url


def _require_network(repository: Repository) -> None:
    if offline():
        raise OfflineError(f"{repository}: the network is not used (UPERNET_ZOO_OFFLINE or HF_HUB_OFFLINE). Unset it and try again.")


@contextlib.contextmanager
def _bars(progress: bool) -> Iterator[None]:
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    silence = not progress and not are_progress_bars_disabled()
    if silence:
        disable_progress_bars()
    try:
        yield
    finally:
        if silence:
            enable_progress_bars()


@contextlib.contextmanager
def _client_errors(repository: Repository, *, writing: bool = False) -> Iterator[None]:
    """Turn what the client, its HTTP library and the system raise into this library's errors; programming errors pass through.

    Args:
        repository: named in the message.
        writing: something was to be pushed.
    """
    try:
        yield
    except (UPerNetZooError, AssertionError, AttributeError, NameError, TypeError, MemoryError):
        raise
    except Exception as error:
        _raise(error, repository, writing)


def _raise(error: Exception, repository: Repository, writing: bool) -> NoReturn:
    from huggingface_hub import constants, errors

    log_in = f"log in (hf auth login, or HF_TOKEN{worded(', or token=', '')}) with an account that may"
    # a traceback would show the client's own text, and in it a password in HF_ENDPOINT or in a proxy's URL
    cause = error if without_secrets(str(error)) == str(error) else None
    page = f"{constants.ENDPOINT}/{repository.id}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.HFValidationError):
        raise ArgumentError(f"{repository}: no name of a Hub repository: {error}") from None
    if isinstance(error, errors.GatedRepoError):
        raise DownloadError(f"{repository} is gated: its owner says who may have it. Ask for access at {page}, then {log_in}.") from cause
    if isinstance(error, errors.RevisionNotFoundError):
        raise ModelNotFoundError(
            f"{repository}: the repository is there, and has no revision {repository.revision!r}. Its branches and tags: {page}/tree/main"
        ) from cause
    if isinstance(error, errors.RepositoryNotFoundError):
        raise ModelNotFoundError(f"{repository}: no such repository at {page}, or a private one. Check the name, or {log_in}.") from cause
    if isinstance(error, errors.LocalTokenNotFoundError):
        raise DownloadError(f"{repository}: token=True, and there is no saved token. Run hf auth login, or set HF_TOKEN.") from cause
    if isinstance(error, errors.LocalEntryNotFoundError):
        raise DownloadError(
            f"{repository}: {constants.ENDPOINT} could not be reached ({_first_line(error.__cause__ or error)}), and the "
            "model is not in the Hub's cache. "
            "Check the connection, HF_ENDPOINT and the proxy, and try again."
        ) from cause
    if isinstance(error, errors.EntryNotFoundError):
        response = getattr(error, "response", None)
        name = "such file" if response is None else str(response.url).split("?")[0].rsplit("/", 1)[-1]
        raise MissingFileError(
            f"{repository} has no {name}, so no model of upernet_zoo. One comes there by {worded('push_to_hub', 'upernet-zoo push')}."
        ) from cause
    if status == 412:
        raise DownloadError(f"{repository}: somebody else has pushed in the meantime; nothing was changed. Push again.") from cause
    if status in (401, 403):
        raise DownloadError(f"{repository}: refused by {constants.ENDPOINT} ({_first_line(error)}). Check the token: {log_in}.") from cause
    if isinstance(error, OSError) and files.no_space(error):
        elsewhere = f"set HF_HOME, HF_HUB_CACHE or {option('cache_dir')} to another folder"
        raise CacheError(files.write_problem(error, Path(error.filename or constants.HF_HUB_CACHE), elsewhere)) from None
    if isinstance(error, PermissionError) or (isinstance(error, OSError) and error.filename and status is None):
        raise CacheError(
            f"{repository}: {error}. Set HF_HOME, HF_HUB_CACHE or {option('cache_dir')} to a folder that can be written."
        ) from cause
    what = "nothing was committed" if writing else "nothing was loaded"
    inner = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error  # "Error while uploading ..."
    raise DownloadError(
        f"{repository}: {type(inner).__name__} from {constants.ENDPOINT} ({_first_line(inner)}); {what}. Try again."
    ) from cause


def _first_line(error: BaseException) -> str:
    """What the server says, else the first line of what the client says."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    lines = [headers.get("X-Error-Message", ""), *str(error).splitlines(), type(error).__name__]
    return shown(next(line.strip() for line in lines if line.strip()), "text")
