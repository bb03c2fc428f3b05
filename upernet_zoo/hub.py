"""Folders and Hugging Face Hub repositories that hold one model: `config.json`, `model.safetensors` and a card, `README.md`.

What goes to the Hub and comes from it goes through huggingface_hub's own client: tokens (`HF_TOKEN`, `hf auth login`), private and
gated repositories, revisions, `HF_ENDPOINT`, the Hub's cache and `HF_HUB_OFFLINE` are as everywhere else. Its mixin is not used: it
builds a model before it knows the config, does not load strictly unless told so, and falls back to a pickle.

Tested over plain HTTP and LFS, with `HF_HUB_DISABLE_XET=1`. Xet, which the client prefers where the hf_xet package is installed and
the Hub offers it, is the client's own business and is not tested here.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from . import model_card, safe_load, sources, transfer
from .checkpoint import Description, build, check_finite, write_safetensors
from .errors import (
    ArgumentError,
    CacheError,
    ConfigError,
    DownloadError,
    IntegrityError,
    MissingFileError,
    ModelNotFoundError,
    OfflineError,
    UPerNetZooError,
)
from .models import UPerNet
from .version import __version__

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
CARD_NAME = "README.md"
HUB_PREFIX = "hf-hub:"
FOLDER_PREFIX = "local-dir:"

_logger = logging.getLogger("upernet_zoo")


# folders


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 in hex over names, types, shapes and bytes of tensors, whatever file they are in.

    `origin["tensors"]` of a converted model has that of its checkpoint; a model whose tensors still have it is that checkpoint.
    """
    hasher = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        hasher.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return hasher.hexdigest()


def save_pretrained(model: UPerNet, folder: str | os.PathLike, *, keep_card: bool = True) -> Path:
    """Write `config.json`, `model.safetensors` and a card, each whole or not at all; `create_model("local-dir:...")` loads them.

    Args:
        keep_card: a card (`README.md`) that is already there stays as it is.

    Raises:
        CacheError: the folder cannot be written.
    """
    folder = Path(folder).expanduser()
    try:
        _write(model, folder, f"{FOLDER_PREFIX}{folder}", folder.resolve().name, keep_card=keep_card)
    except CacheError:
        raise
    except OSError as error:
        raise CacheError(f"Cannot save a model in {folder}: {error}. Pass a folder that can be written.") from error
    return folder


def _write(model: UPerNet, folder: Path, reference: str, name: str, *, keep_card: bool) -> None:
    description = Description.of(model)
    tensors = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / WEIGHTS_NAME
    sources.write_atomically(weights, lambda path: write_safetensors(path, description, tensors))
    digest = sources.file_digest(weights)[0]
    config = {"library_name": "upernet_zoo", "library_version": __version__, **description.to_dict(), "weights_sha256": digest}
    _write_text(folder / CONFIG_NAME, json.dumps(config, indent=2) + "\n")
    published = description.origin.get("tensors") == fingerprint(tensors)
    card = model_card.render(description, reference=reference, name=name, weights_sha256=digest, published=published)
    path = folder / CARD_NAME
    if keep_card and path.exists():
        if path.read_bytes() != card.encode():
            _logger.warning("%s is already there and stays as it is: check that it still fits the model.", path)
    else:
        _write_text(path, card)


def _write_text(path: Path, text: str) -> None:
    sources.write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8") and None)


def _read_config(path: Path, owner: str) -> Any:
    """The JSON in a `config.json`, if it is not another library's; `owner` names it in errors."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{owner}: not valid JSON: {error}. Save the model anew with save_pretrained.") from None
    if isinstance(data, dict) and data.get("library_name", "upernet_zoo") != "upernet_zoo":
        raise ConfigError(f"{owner}: written by {data['library_name']!r}, not by upernet_zoo. Load it with that library.")
    if isinstance(data, dict) and "architecture" not in data and {"model_type", "transformers_version"} & data.keys():
        raise ConfigError(
            f"{owner}: a model of transformers, not of upernet_zoo. Load it with transformers' from_pretrained, or bring it here with "
            "upernet-zoo convert."
        )
    if isinstance(data, dict) and isinstance(data.get("architecture"), str):
        raise ConfigError(f"{owner}: a model of timm or another library ({data['architecture']!r}), not of upernet_zoo.")
    return data


def read_description(folder: str | os.PathLike) -> Description:
    """What `config.json` in a saved folder says about its model.

    Raises:
        MissingFileError: the folder, or `config.json` in it, is not there.
        ConfigError: `config.json` is not valid, or another library's.
    """
    path = Path(folder).expanduser() / CONFIG_NAME
    _require(path)
    return Description.from_dict(_read_config(path, str(path)), str(path))


def _require(path: Path) -> None:
    if not path.is_file():
        what = "has no" if path.parent.is_dir() else "is not a folder; expected one with"
        raise MissingFileError(f"{path.parent} {what} {path.name}. Save a model there with save_pretrained.")


def load_folder(folder: str | os.PathLike) -> UPerNet:
    """The model that `save_pretrained` wrote into a folder, in eval mode, its weights mapped into memory.

    Raises:
        MissingFileError, ConfigError: see `read_description`.
        CheckpointError: the weights do not fit the config, or are NaN.
    """
    folder = Path(folder).expanduser()
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        _require(folder / name)
    description = read_description(folder)
    weights = folder / WEIGHTS_NAME
    tensors = safe_load.read_safetensors(weights)[0]
    check_finite(tensors, str(weights))
    return build(description, tensors, str(weights))


# the Hub


@dataclass(frozen=True)
class Repository:
    """A repository on the Hub: "organisation/name", and a branch, tag, `refs/pr/1` or commit (None: the main branch)."""

    id: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str, revision: str | None = None) -> Repository:
        """From "org/name" or "org/name@revision", with or without "hf-hub:".

        Raises:
            ArgumentError: not of that form, or two revisions.
        """
        name, _, named = text.removeprefix(HUB_PREFIX).partition("@")
        if name.count("/") != 1 or not all(name.split("/")) or ("@" in text and not named):
            raise ArgumentError(f"{text!r}: expected a Hub repository as '{HUB_PREFIX}organisation/name' or '...@revision'.")
        if revision is not None and named and named != revision:
            raise ArgumentError(f"{text!r} names revision {named!r}, and revision= is {revision!r}: give one of them.")
        return cls(name, revision or named or None)

    def __str__(self) -> str:
        return HUB_PREFIX + self.id + (f"@{self.revision}" if self.revision else "")


def find_folder(
    ref: str,
    *,
    weights: bool = True,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
    progress: bool = True,
) -> Path:
    """The folder that holds a saved model: the folder itself, or a snapshot of a repository in the Hub's cache.

    Args:
        ref: "local-dir:FOLDER", or "hf-hub:org/name", "hf-hub:org/name@revision".
        weights: bring `model.safetensors` too, not only `config.json`.
        revision: of a repository: branch, tag or commit; by default that in `ref`, or the main branch.
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
    if ref.startswith(FOLDER_PREFIX):
        folder = Path(ref.removeprefix(FOLDER_PREFIX)).expanduser()
        for name in (CONFIG_NAME, WEIGHTS_NAME) if weights else (CONFIG_NAME,):
            _require(folder / name)
        return folder
    repository = Repository.parse(ref, revision)
    cache = None if cache_dir is None else Path(cache_dir).expanduser()
    bring = _from_cache if sources.offline(local_files_only) else functools.partial(_from_hub, token=token)
    with _client_errors(repository), _bars(progress):
        config_path = bring(repository, CONFIG_NAME, cache)
        config = _read_config(config_path, f"{repository}: {CONFIG_NAME}")  # refuse before the weights come
        folder = config_path.parent
        if weights:
            is_new = not (folder / WEIGHTS_NAME).exists()
            # the commit of the config, so that both are of one revision though somebody pushes in between
            path = bring(Repository(repository.id, folder.name), WEIGHTS_NAME, cache)
            if is_new:
                _check_arrived(path, config, repository)
    return folder


def _from_hub(repository: Repository, name: str, cache: Path | None, token: str | bool | None) -> Path:
    import huggingface_hub

    about = dict(library_name="upernet_zoo", library_version=__version__)
    return Path(huggingface_hub.hf_hub_download(repository.id, name, revision=repository.revision, cache_dir=cache, token=token, **about))


def _from_cache(repository: Repository, name: str, cache: Path | None) -> Path:
    """A file that the Hub's cache has. (`hf_hub_download(local_files_only=True)` opens a socket, for what it says of the user.)"""
    from huggingface_hub import constants, try_to_load_from_cache

    path = try_to_load_from_cache(repository.id, name, cache_dir=cache, revision=repository.revision)
    if not isinstance(path, str):
        raise OfflineError(
            f"{repository}: {name} is not in the Hub's cache on this machine ({cache or constants.HF_HUB_CACHE}), and the network is "
            "not used (local_files_only, UPERNET_ZOO_OFFLINE or HF_HUB_OFFLINE). Load the model once with the network allowed."
        )
    return Path(path)


def _check_arrived(path: Path, config: Any, repository: Repository) -> None:
    """Compare weights that have just come with the digest in `config.json`; older folders have none."""
    expected = config.get("weights_sha256") if isinstance(config, dict) else None
    if not isinstance(expected, str):
        return
    found = sources.file_digest(path)[0]
    if found != expected:
        stored = path.resolve()
        aside = stored.with_name(f"{stored.name}.bad-{found[:8]}")
        os.replace(stored, aside)
        path.unlink(missing_ok=True)  # the link to it
        raise IntegrityError(
            f"{repository}: {WEIGHTS_NAME} has the SHA-256 {found}, and {CONFIG_NAME} says {expected}; kept aside as {aside}. Try "
            "again; if it stays so, the files in the repository are not of one push: push the model anew with push_to_hub."
        )


def from_pretrained(ref: str | os.PathLike, **options: Any) -> UPerNet:
    """See `UPerNet.from_pretrained`."""
    if Path(ref).expanduser().is_dir():
        ref = f"{FOLDER_PREFIX}{os.fspath(ref)}"
    elif not isinstance(ref, str) or not ref.startswith((HUB_PREFIX, FOLDER_PREFIX)):
        if os.fspath(ref).count("/") != 1:
            raise ModelNotFoundError(
                f"{os.fspath(ref)!r} is neither a folder nor a Hub repository 'organisation/name'. "
                "A name of the index is loaded by create_model(name)."
            )
        ref = f"{HUB_PREFIX}{os.fspath(ref)}"
    return load_folder(find_folder(ref, **options))


@dataclass(frozen=True)
class RemoteFile:
    """A file in a repository: size in bytes, and SHA-256 where it is stored by LFS (None: a small text file)."""

    size: int
    sha256: str | None


def client(token: str | bool | None = None):
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
    return info.sha, {s.rfilename: RemoteFile(s.size or 0, s.lfs.sha256 if s.lfs else None) for s in info.siblings or ()}


def read_remote_config(repository: Repository, commit: str, *, token: str | bool | None = None) -> Any:
    """The JSON in a repository's `config.json`.

    Raises:
        ConfigError: not one of ours. Else as `find_folder`.
    """
    import huggingface_hub

    with _client_errors(repository), _bars(False):
        path = huggingface_hub.hf_hub_download(repository.id, CONFIG_NAME, revision=commit, token=token)
    return _read_config(Path(path), f"{repository}: {CONFIG_NAME}")


def push_to_hub(
    model: UPerNet,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    extra_files: Sequence[Path] = (),
) -> str:
    """See `UPerNet.push_to_hub`; `extra_files` go along under their plain names, in the same commit."""
    import huggingface_hub

    if not isinstance(repo_id, str) or not repo_id or "@" in repo_id or repo_id.startswith((HUB_PREFIX, FOLDER_PREFIX)):
        raise ArgumentError(f"repo_id={repo_id!r}: expected 'organisation/name', or 'name' for your own account.")
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
            _write(model, folder, str(repository), repository.id.split("/")[-1], keep_card=False)
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
    if sources.offline():
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

    log_in = "log in (hf auth login, or HF_TOKEN, or token=) with an account that may"
    page = f"{constants.ENDPOINT}/{repository.id}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.HFValidationError):
        raise ArgumentError(f"{repository}: no name of a Hub repository: {error}") from None
    if isinstance(error, errors.GatedRepoError):
        raise DownloadError(f"{repository} is gated: its owner says who may have it. Ask for access at {page}, then {log_in}.") from error
    if isinstance(error, errors.RevisionNotFoundError):
        raise ModelNotFoundError(
            f"{repository}: the repository is there, and has no revision {repository.revision!r}. Its branches and tags: {page}/tree/main"
        ) from error
    if isinstance(error, errors.RepositoryNotFoundError):
        raise ModelNotFoundError(f"{repository}: no such repository at {page}, or a private one. Check the name, or {log_in}.") from error
    if isinstance(error, errors.LocalTokenNotFoundError):
        raise DownloadError(f"{repository}: token=True, and there is no saved token. Run hf auth login, or set HF_TOKEN.") from error
    if isinstance(error, errors.LocalEntryNotFoundError):
        cause = error.__cause__ or error
        raise DownloadError(
            f"{repository}: {constants.ENDPOINT} could not be reached ({_first_line(cause)}), and the model is not in the Hub's cache. "
            "Check the connection, HF_ENDPOINT and the proxy, and try again."
        ) from error
    if isinstance(error, errors.EntryNotFoundError):
        name = str(error.response.url).split("?")[0].rsplit("/", 1)[-1] if status else "such file"
        raise MissingFileError(f"{repository} has no {name}, so no model of upernet_zoo. One comes there by push_to_hub.") from error
    if status == 412:
        raise DownloadError(f"{repository}: somebody else has pushed in the meantime; nothing was changed. Push again.") from error
    if status in (401, 403):
        raise DownloadError(f"{repository}: refused by {constants.ENDPOINT} ({_first_line(error)}). Check the token: {log_in}.") from error
    if isinstance(error, OSError) and (full := transfer.no_space(error, Path(error.filename or constants.HF_HUB_CACHE))):
        raise full from None
    if isinstance(error, PermissionError) or (isinstance(error, OSError) and error.filename and status is None):
        raise CacheError(f"{repository}: {error}. Set HF_HOME, HF_HUB_CACHE or cache_dir= to a folder that can be written.") from error
    what = "nothing was committed" if writing else "nothing was loaded"
    cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error  # "Error while uploading ..."
    raise DownloadError(
        f"{repository}: {type(cause).__name__} from {constants.ENDPOINT} ({_first_line(cause)}); {what}. Try again."
    ) from error


def _first_line(error: BaseException) -> str:
    """What the server says, else the first line of what the client says."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    lines = [headers.get("X-Error-Message", ""), *str(error).splitlines(), type(error).__name__]
    return next(line.strip() for line in lines if line.strip())
