"""Whose tensors a model has: what a card, `info` and `evaluate` may say of it.

A model carries a record of its origin, and so does every file it is saved in; anybody can write one. So a record alone claims nothing.
Published numbers are shown beside tensors that were converted here from a file with the index's digest (of the checkpoint, or of a copy
of it), or that have the fingerprint that the index holds. That is computed when it is to be shown, never while a model is loaded.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from . import index
from .checkpoints import native
from .description import Described
from .errors import UPerNetZooError
from .index import ModelEntry
from .weights import cache

__all__ = ["Claim", "Derived", "Evidence", "claim_of", "fingerprint", "note_converted", "note_verified", "published_entry"]

# what this process has converted or found converted: (model, SHA-256 of its checkpoint) -> fingerprint of its tensors; and where
_CONVERTED: dict[tuple[str, str], str] = {}
_FOLDERS: set[Path] = set()


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 in hex over names, types, shapes and bytes of tensors, whatever file they are in.

    `origin["tensors"]` of a converted model has that of its checkpoint; a model whose tensors still have it is that checkpoint.
    """
    hasher = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def note_converted(origin: Mapping[str, str], folder: Path) -> None:
    """Remember the origin that a conversion recorded in a cache's file, which its receipt vouches for."""
    if {"model", "sha256", "tensors"} <= origin.keys():
        note_verified(origin)
        _FOLDERS.add(folder)


def note_verified(origin: Mapping[str, str]) -> None:
    """Remember the fingerprint of the tensors in a file whose bytes have the digest, both as `origin` has them."""
    _CONVERTED[origin["model"], origin["sha256"]] = origin["tensors"]


class Evidence(enum.Enum):
    """What is known of a record that names an entry of the index."""

    PUBLISHED = "these are the tensors of the published checkpoint"
    CHANGED = "they are not those that the record speaks of, as after further training"
    UNCONFIRMED = "nothing on this machine says whether the record is true"


@runtime_checkable
class Derived(Described, Protocol):
    """A model of tensors that are made from those of a checkpoint, such as a fused one."""

    def derived_state(self, tensors: Mapping[str, torch.Tensor], owner: str) -> dict[str, torch.Tensor]:
        """The tensors that such a model has of a checkpoint's."""


@dataclass(frozen=True)
class Claim:
    """The entry that a model's record names, and what that is worth."""

    entry: ModelEntry
    evidence: Evidence


def claim_of(model: Described) -> Claim | None:
    """What may be said of a model's origin; None where its record names no entry of the index with its digest.

    Reads all tensors: 0.2 s for R-50. A fused model is compared with what fusing the converted checkpoint in the cache gives.
    """
    entry = index.default().get(model.origin.get("model", ""))
    sha256 = model.origin.get("sha256", "")
    if entry is None:
        return None
    if not entry.has_digest(sha256):  # such as of a copy, whose tensors may be known nonetheless
        known = entry.fingerprint is not None and not isinstance(model, Derived) and fingerprint(model.state_dict()) == entry.fingerprint
        return Claim(entry, Evidence.PUBLISHED) if known else None
    if isinstance(model, Derived):
        path = _converted_file(entry, sha256)
        known = path is not None and _is_derived_from(path, model)
        return Claim(entry, Evidence.PUBLISHED if known else Evidence.UNCONFIRMED)
    found = fingerprint(model.state_dict())
    if (entry.name, sha256) not in _CONVERTED:
        _converted_file(entry, sha256)
    if found in (entry.fingerprint, _CONVERTED.get((entry.name, sha256))):
        return Claim(entry, Evidence.PUBLISHED)
    return Claim(entry, Evidence.UNCONFIRMED if found == model.origin.get("tensors", found) else Evidence.CHANGED)


def published_entry(model: Described) -> ModelEntry | None:
    """The entry of the index whose published tensors a model has, every one of them; None if that is not so or not known here."""
    claim = claim_of(model)
    return claim.entry if claim is not None and claim.evidence is Evidence.PUBLISHED else None


def _converted_file(entry: ModelEntry, sha256: str) -> Path | None:
    """The file that a checkpoint was converted to, in a cache of this machine, whole by its receipt."""
    for folder in {*_FOLDERS, cache.cache_root() / "converted"}:
        for path in sorted(folder.glob(f"{entry.name}-{sha256[:8]}*.safetensors")):
            try:
                description = native.read_safetensors(path)[1] if cache.trusted(path) else None
            except UPerNetZooError:  # it can be made again, and is no evidence until then
                continue
            origin = {} if description is None else description.origin
            if (origin.get("model"), origin.get("sha256")) == (entry.name, sha256) and native.FORM_KEY not in origin:
                note_converted(origin, folder)
                return path
    return None


def _is_derived_from(path: Path, model: Derived) -> bool:
    """Whether a model has the tensors that are made from those of a converted file."""
    tensors, _ = native.read_safetensors(path)
    again = model.derived_state(tensors, str(path))
    found = model.state_dict()
    return found.keys() == again.keys() and all(torch.equal(found[key].cpu(), again[key]) for key in again)
