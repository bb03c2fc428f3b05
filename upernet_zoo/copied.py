"""Models of copies: conversions, in other libraries' formats, of files that the index names; and others in these formats.

A copy that the index knows has the index's recipe and classes, and the architecture with the epsilons of the original. Of another file
that is known which its config says; the rest is assumed, and said.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import index
from .checkpoints import foreign, native, safe_load
from .checkpoints import read as checkpoints
from .checkpoints.infer import Report, infer
from .description import Description
from .errors import CheckpointError, ConfigError, UPerNetZooError
from .hub.copies import NAMES, in_repository
from .hub.copies import Copy as Copy
from .hub.copies import in_folder as in_folder
from .index import ModelEntry
from .models.backbones._base import backbone_class
from .models.upernet import UPerNet, check_keys
from .provenance import fingerprint, note_verified
from .reference import Kind, Reference, Repository
from .weights import cache

__all__ = [
    "NO_AUXILIARY",
    "Copy",
    "beside",
    "describe",
    "fetch",
    "find",
    "in_folder",
    "known",
    "load",
    "of_content",
    "understand",
    "warn_of",
]

NO_AUXILIARY = "the auxiliary head, which the copy does not have; no picture is computed with it"


def find(reference: Reference, **where: Any) -> Copy | None:
    """The copy that a reference names, brought and verified; None if it names something else.

    Args:
        reference: of a folder or a repository.
        where: `cache_dir`, `local_files_only` and `progress`, as for `create_model`.

    Raises:
        UPerNetZooError: as `hub.copies.in_folder` and `in_repository`.
    """
    if reference.kind is Kind.FOLDER and reference.path is not None:
        return in_folder(reference.path)
    if reference.repository is None:
        return None
    entry = known(reference.repository)
    published = () if entry is None else entry.copies
    digest = next((one.sha256 for one in published if one.reference == str(reference.repository)), None)
    return in_repository(reference.repository, sha256=digest, **where)


def beside(path: Path) -> Copy | None:
    """The copy whose weights a file is, by its name and the `config.json` beside it."""
    copy = in_folder(path.parent) if path.name in NAMES else None
    return None if copy is None else dataclasses.replace(copy, weights=path)


def known(repository: Repository | None) -> ModelEntry | None:
    """The entry of the index that names a repository as a copy of its file."""
    names = None if repository is None else repository.id
    return next((entry for entry in index.default().values() if any(copy.repository == names for copy in entry.copies)), None)


def load(copy: Copy, entry: ModelEntry | None) -> tuple[UPerNet, Report]:
    """The model of a copy, and what was read, assumed and dropped.

    Args:
        entry: of the index that it is known to be a copy of.

    Raises:
        IntegrityError: it has another digest.
        UnsafeCheckpointError, CheckpointError: it cannot be read, or is of another model.
    """
    description, tensors, report = _read(copy, entry)
    return UPerNet.from_state(description, tensors, copy.place), report


def describe(entry: ModelEntry, tensors: Mapping[str, Tensor], origin: Mapping[str, str]) -> Description:
    """The description of an entry's tensors; of some copies they lack the auxiliary head."""
    config = entry.config
    if not any(name.startswith("auxiliary_head.") for name in tensors):
        config = dataclasses.replace(config, auxiliary=None)
    return Description(config, entry.recipe, entry.label_set, origin)


def fetch(entry: ModelEntry, problem: UPerNetZooError, *, sha256: str | None, **where: Any) -> tuple[Copy, Description, dict[str, Tensor]]:
    """The first copy of an entry that can be had, brought and verified.

    Args:
        problem: why its own file was not had; raised again, with what each of the copies said, where none can be had.
        sha256: the digest that a copy must have, in place of the index's and the host's.
        where: as for `find`.

    Raises:
        UPerNetZooError: of the kind of `problem`.
    """
    said = []
    for published in entry.copies:
        try:
            copy = in_repository(Repository.parse(published.reference), sha256=sha256 or published.sha256, **where)
            if copy is None:
                raise CheckpointError(f"{published.reference}: in no format that is known.")
            description, tensors, _ = _read(copy, entry)
            return copy, description, tensors
        except UPerNetZooError as error:
            said.append(f"  - copy {published.reference}: {error}")
    raise type(problem)("\n".join((str(problem), "No copy of it could be had either:", *said))) from None


def warn_of(entry: ModelEntry, model: UPerNet) -> None:
    """Say that a model is of a copy, and of which."""
    origin, lost = model.origin, ""
    if model.auxiliary_head is None and entry.architecture.get("auxiliary", True) is not None:
        lost = f" The model went without {NO_AUXILIARY}."
    claimed = f", verified {origin['verified']}: no published number is claimed for it" if "verified" in origin else ""
    warnings.warn(
        f"{entry.name}: its own file is not to be had here. Taken was a copy, {origin['copy']} ({origin['file']}){claimed}.{lost}",
        stacklevel=7,
    )


def _read(copy: Copy, entry: ModelEntry | None) -> tuple[Description, dict[str, Tensor], Report]:
    content = safe_load.read_content(copy.weights)
    if copy.sha256 is not None:
        cache.verify_content(content, copy.sha256, what=copy.place)
    checkpoint = checkpoints.read(content)
    tensors = checkpoint.state_dict
    native.check_finite(tensors, copy.place)
    origin = {**copy.origin, "sha256": content.hashed.sha256}
    return understand(copy, checkpoint, origin, entry)


def of_content(checkpoint: checkpoints.Checkpoint, sha256: str) -> ModelEntry | None:
    """The entry of the index that knows a file's digest as that of a copy, or its tensors by their fingerprint."""
    entries = index.default().entries.values()
    for entry in entries:
        if any(copy.sha256 == sha256 for copy in entry.copies):
            return entry
    marked: dict[str, ModelEntry] = {entry.fingerprint: entry for entry in entries if entry.fingerprint}
    return marked.get(fingerprint(checkpoint.state_dict)) if marked else None


def understand(
    copy: Copy, checkpoint: checkpoints.Checkpoint, origin: Mapping[str, str], entry: ModelEntry | None = None
) -> tuple[Description, dict[str, Tensor], Report]:
    """What a copy holds.

    Args:
        copy: whose weights were read.
        checkpoint: as they were read.
        origin: with the SHA-256 of the bytes that were read.
        entry: of the index that it is known to be a copy of; by default the one that knows the digest or the tensors.

    Raises:
        CheckpointError: a variant that this library does not compute, or something else than the entry's model.
    """
    entry, tensors = entry or of_content(checkpoint, origin["sha256"]), checkpoint.state_dict
    if entry is None:
        try:
            left = _as_left(copy, tensors)
            if left is not None:
                report = Report(read=["everything: this library wrote the model for another"])
                return dataclasses.replace(left, origin=left.origin or origin), tensors, report
            found, tensors, report = infer(checkpoint, origin, foreign.settings(copy.config, copy.library, copy.place))
            report.assumed += foreign.assumptions(copy.config, copy.place)
            if copy.library == "smp" and (note := backbone_class(found.config.backbone).note_of(found.config.backbone, "smp")):
                report.assumed.append(f"that it computes what mmsegmentation does ({note.rstrip('.')})")
            return found, tensors, report
        except ConfigError as error:
            raise CheckpointError(f"{copy.place}: {error}") from None
    description = describe(entry, tensors, {"model": entry.name, **origin, "tensors": fingerprint(tensors)})
    with torch.device("meta"):
        check_keys(tensors, UPerNet(description.config), copy.place)
    if entry.has_digest(origin["sha256"]):
        note_verified(description.origin)
    report = Report(read=[f"a copy of {entry.name}, by the index: its architecture, recipe and classes"])
    if description.config != entry.config:
        report.lost.append(NO_AUXILIARY)
    return description, tensors, report


def _as_left(copy: Copy, tensors: Mapping[str, Tensor]) -> Description | None:
    """What this library left in the config of a model that it wrote for another one; None where the model was made another since.

    Raises:
        ConfigError: what is left is no description.
    """
    left = foreign.description(copy.config, copy.library, copy.place)
    if left is None:
        return None
    classes = foreign.settings(copy.config, copy.library).get("metainfo", {}).get("classes", list(left.label_set.classes))
    try:
        with torch.device("meta"):
            check_keys(tensors, UPerNet(left.config), copy.place)
    except CheckpointError:
        return None
    return left if classes == list(left.label_set.classes) else None
