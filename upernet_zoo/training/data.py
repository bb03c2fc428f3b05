"""The pictures of a training run: two splits, a check of every mask, and crops that are a function of their position alone."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .. import label_files, tables
from .. import progress as bars
from ..config import Recipe
from ..errors import ArgumentError, MissingFileError, UPerNetZooError
from ..evaluation import SegmentationDataset, open_dataset
from ..files import expanded
from ..label_files import read_classes
from ..labels import DATASET_IDS, LabelSet
from .augment import augment
from .settings import TrainingSettings
from .workers import steady

__all__ = ["CLASSES_NAME", "Crops", "Survey", "batches", "open_splits", "picture_of", "require_classes", "survey", "survey_table"]

CLASSES_NAME = "classes.txt"
_HELD_OUT = 5  # of a folder without splits, every fifth picture
_SHOWN = 10  # files in a message


def open_splits(
    name: str, root: str | os.PathLike, label_set: LabelSet | None = None, *, ids: str | None = None
) -> tuple[SegmentationDataset, SegmentationDataset]:
    """The pictures to train on and those to measure by.

    Args:
        name: as for `evaluation.open_dataset`. A "folder" has `train/` and `val/`, each with `images/` and `masks/`; or `images/` and
            `masks/` alone, of which every fifth picture, by name, is for measuring.
        root: the data set's folder.
        label_set: what the labels mean; by default the data set's own. That of a "folder" is in `classes.txt`: the name of a class in
            each line, of id 0, 1, ... (an id of 255 means no label), or an id and a name; or in `classes.json` or `classes.yaml`, see
            `label_files`.
        ids: what the masks' ids are, "dataset" or "train", as for `evaluation.open_dataset`; the same in both splits.

    Raises:
        ArgumentError: a "folder" without class names, or with fewer than two pictures; ids that can be read in two ways.
        UPerNetZooError: what `open_dataset` raises.

    Examples:
        >>> from upernet_zoo.training import open_splits
        >>> training, validation = open_splits("folder", "my_data")
        >>> len(training), len(validation)
        (3, 1)
    """
    root = expanded(root)
    if name == "folder" and label_set is None:
        label_set, ids = read_classes(label_files.find(root) or root / CLASSES_NAME), ids or DATASET_IDS
    if name != "folder" or (root / "train").is_dir():
        training, validation = (open_dataset(name, root, label_set, split=split, ids=ids) for split in ("train", "val"))
        ids = training.joined(validation).ids
        return training.read_as(ids), validation.read_as(ids)
    whole = open_dataset(name, root, label_set, ids=ids)
    whole = whole.read_as(whole.ids)  # decided by all pictures, before they are shared out
    if len(whole) < 2:
        raise ArgumentError(f"{root}: one picture cannot be both trained on and measured by. Add more to images/ and masks/.")
    held_out = set(range(_HELD_OUT - 1, len(whole), _HELD_OUT)) or {len(whole) - 1}
    return whole.subset([i for i in range(len(whole)) if i not in held_out]), whole.subset(sorted(held_out))


@dataclass(frozen=True)
class Survey:
    """What a split holds.

    Args:
        pixels: labeled pixels of each class.
        pictures: pictures in which each class occurs.
        of: pictures in all.
    """

    pixels: tuple[int, ...]
    pictures: tuple[int, ...]
    of: int


def survey(dataset: SegmentationDataset, what: str = "pictures", progress: bool = True) -> Survey:
    """Read every picture and mask once, and count.

    Args:
        what: a word for the split, for messages and the progress bar.

    Raises:
        ArgumentError: masks with ids that the label set does not have, or of which nothing is labeled; no pictures.
        ImageError: files that cannot be read, or masks of another size than their picture.
            Either message names the files, ten at most, and what is wrong with each.
    """
    if not len(dataset):
        raise MissingFileError(f"No {what} pictures: the split is empty. Add pictures and masks to it.")
    count = len(dataset.label_set)
    pixels, pictures = np.zeros(count, np.int64), np.zeros(count, np.int64)
    errors: list[UPerNetZooError] = []

    def one(index: int) -> np.ndarray | UPerNetZooError:
        try:
            target = dataset[index].target
        except UPerNetZooError as error:
            return error
        return np.bincount(target[target != dataset.label_set.ignore_index], minlength=count)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        bar = bars.bar(pool.map(one, range(len(dataset))), total=len(dataset), unit="mask", desc=f"checking {what}", show=progress)
        for found in bar:
            if isinstance(found, UPerNetZooError):
                errors.append(found)
            else:
                pixels += found
                pictures += found > 0
    if errors:
        listed = "\n".join(f"  {error}" for error in errors[:_SHOWN]) + ("\n  ..." if len(errors) > _SHOWN else "")
        raise type(errors[0])(f"{len(errors)} of {len(dataset)} {what} pictures cannot be used:\n{listed}")
    if not pixels.any():
        raise ArgumentError(f"The {len(dataset)} {what} pictures have no labeled pixel. Check that the masks hold ids of classes.")
    if dataset.name == "folder":
        dataset.checked(progress)
    return Survey(tuple(pixels.tolist()), tuple(pictures.tolist()), len(dataset))


def require_classes(label_set: LabelSet, training: Survey) -> None:
    """Refuse to learn what cannot be told apart.

    Raises:
        ArgumentError: one class only, in the label set or in the masks.
    """
    if len(label_set) == 1:
        raise ArgumentError(
            f"Label set {label_set.name!r} has the one class {label_set.classes[0]!r}: a model can only tell several apart. "
            "Add a class for the rest, such as 'background'."
        )
    found = [name for name, pixels in zip(label_set.classes, training.pixels) if pixels]
    if len(found) == 1:
        raise ArgumentError(
            f"Every labeled pixel of the {training.of} training pictures is {found[0]!r}: there is nothing to learn. Label the other "
            "classes too; what is not labeled has the id of a class in the masks, not that of 'no label'."
        )


def survey_table(label_set: LabelSet, training: Survey, validation: Survey) -> str:
    """Pixels and pictures of each class in both splits, as a table to read."""

    def share(split: Survey, i: int) -> list[str]:
        return [f"{split.pixels[i] / sum(split.pixels):.2%}", str(split.pictures[i])]

    rows = [
        [str(id), name.strip(), *share(training, i), *share(validation, i)]
        for i, (id, name) in enumerate(zip(label_set.dataset_ids, label_set.classes))
    ]
    rows.append(["", "all", str(sum(training.pixels)), str(training.of), str(sum(validation.pixels)), str(validation.of)])
    return tables.plain(("id", "class", "train: pixels", "pictures", "val: pixels", "pictures"), rows, left=2)


class Crops(Dataset):
    """Augmented crops, without end. The crop at a position follows from the settings' seed and the position, and from nothing else.

    Pictures come in an order that is shuffled again for each pass over all of them.
    """

    def __init__(self, dataset: SegmentationDataset, recipe: Recipe, settings: TrainingSettings) -> None:
        self.dataset, self.recipe, self.settings = dataset, recipe, settings
        self.crop = settings.crop_for(recipe)
        self._order: tuple[int, np.ndarray] | None = None

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        """Normalized picture (3, h, w) float32 and train ids (h, w) int64."""
        sample = self.dataset[self._picture(position)]
        rng = np.random.default_rng((self.settings.seed, 1, position))
        return augment(sample.image, sample.target, rng, self.recipe, self.crop, self.dataset.label_set.ignore_index)

    def _picture(self, position: int) -> int:
        number, place = divmod(position, len(self.dataset))
        if self._order is None or self._order[0] != number:
            self._order = number, np.random.default_rng((self.settings.seed, 0, number)).permutation(len(self.dataset))
        return int(self._order[1][place])


def batches(
    crops: Crops, start: int, rank: int, processes: int, workers: int, pin_memory: bool
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """This process's share of the batch of each step, from step `start` to the last.

    Args:
        workers: processes that make the crops; 0: this one.

    Raises:
        WorkerError: one of those processes died, while batches are read; the message is the cause alone.
    """
    size = crops.settings.batch_size
    share = size // processes
    first = range(start * size + rank * share, crops.settings.steps * size, size)
    positions: Sequence[list[int]] = [list(range(i, i + share)) for i in first]
    ahead = 4 if workers else None
    return steady(DataLoader(crops, batch_sampler=positions, num_workers=workers, pin_memory=pin_memory, prefetch_factor=ahead))


def picture_of(x: Tensor, recipe: Recipe) -> np.ndarray:
    """A normalized picture (3, h, w) -> (h, w, 3) uint8 RGB."""
    mean, std = (torch.tensor(v, dtype=torch.float32, device="cpu")[:, None, None] for v in (recipe.mean, recipe.std))
    return (x * std + mean).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
