"""Measuring a model as its published numbers were measured: on one process or many, and to be interrupted at any time."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .. import files, label_files, memory
from .. import progress as bars
from ..distributed import default_device, exchange, process_group
from ..errors import ArgumentError, UPerNetZooError, shown
from ..files import expanded
from ..images import visualize
from ..images.save import is_own, save_picture
from ..labels import DATASET_IDS, LabelSet
from ..models.fused.model import FusedUPerNet
from ..models.upernet import UPerNet, require_labels_fit
from ..provenance import fingerprint, published_entry
from ..segmenter import Segmenter, read_ahead
from ..wording import worded
from .datasets import Sample, SegmentationDataset, open_dataset
from .metrics import SegmentationMetrics
from .result import EvaluationResult
from .state import State

__all__ = ["MULTI_SCALE", "STATE_NAME", "Evaluation", "evaluate", "pictures_digest"]

# ratios of the published multi-scale numbers, with flip (mmsegmentation 0.30, `tools/test.py --aug-test`)
MULTI_SCALE = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
STATE_NAME = "state.json"
_WORST = "worst"  # the folder of the pictures of the lowest mIoU
_PICTURES_PER_EXCHANGE = 4  # of each process, where there are several


def evaluate(
    model: UPerNet | FusedUPerNet | str | os.PathLike[str],
    dataset: str | SegmentationDataset,
    root: str | os.PathLike | None = None,
    *,
    ids: str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    sha256: str | None = None,
    mirrors: Sequence[str | os.PathLike[str]] = (),
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    dtype: torch.dtype | None = None,
    mode: str | None = None,
    crop: tuple[int, int] | None = None,
    stride: tuple[int, int] | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    batch_size: int = 1,
    amp: bool = False,
    optimize: bool = False,
    device: torch.device | str | None = None,
    limit: int | None = None,
    out: str | os.PathLike | None = None,
    save_worst: int = 0,
    progress: bool = True,
) -> EvaluationResult:
    """Measure a model on a data set. The result's numbers are fractions from 0 to 1; what it prints is in percent.

    Started by `torchrun`, or in a process group that is there already, the processes share the pictures, each picture is counted
    by one of them, and all get the same result; rank 0 alone writes. Sums are whole numbers, so it is the result of one process
    (with the same number of threads: how torch splits a sum among threads may change its last bit, and a label with it).

    With `out`, what was counted is kept there (`state.json`) and a run that was interrupted goes on from it, on any number of
    processes; so does one with a larger `limit`. A data set whose files have other sizes by then is refused.

    Of a "folder", every mask is read once before the first picture is run, and ids by which nothing can be measured are refused. A
    picture or mask that cannot be used is left out and named, in `failures` of the result and in a warning; where all fail, the first
    one's error is raised.

    Args:
        model: a `UPerNet`, or what `create_model` takes; a fused model is run as it is.
        dataset: what `open_dataset` returns, or a name that it takes; "folder" then means the classes of the model, with the ids of the
            folder's label file, or those of the model's own label set where it has none.
        root: the data set's folder, for a name.
        ids: what the masks' ids are, "dataset" or "train", for a name; see `open_dataset`.
        checkpoint, sha256, mirrors, cache_dir, local_files_only, dtype: as for `create_model`.
        mode, crop, stride, scales, flip, batch_size, amp: as for `Segmenter`; by default the single-scale numbers' way. The published
            ms+flip numbers are of `scales=MULTI_SCALE, flip=True`.
        optimize: run the fused model, see `optimize_for_inference`; by default the plain model, and a fused one that is passed as it is.
        device: as for `Segmenter`; for a name under `torchrun` by default the GPU of the process's local rank.
        limit: only so many pictures, the first by name.
        out: folder for the state, the results (`EvaluationResult.save`), and the worst pictures.
        save_worst: write so many pictures of the lowest mIoU to `out`/worst, beside prediction and labels.
        progress: show a bar with the running mIoU.

    Raises:
        ArgumentError: arguments that cannot be used or do not fit together, labels out of range, ids that can be read in two ways, no
            label in any mask, or a picture that does not fit into memory.
        ConfigError: the label set has other classes than the model.
        MissingFileError, ImageError: a root with another layout, or a file that cannot be read.
        WriteError: `out` cannot be written.
        StateError: it holds the state of another run. Nothing is overwritten then.
        ExistingFileError: it holds files of the results' names, and no state.
        UPerNetZooError: what `create_model` raises.

    Examples:
        >>> import upernet_zoo as uz
        >>> result = uz.evaluate("demo", "folder", "scenes", progress=False)
        >>> result.mIoU > 0.5
        True
    """
    if isinstance(save_worst, bool) or not isinstance(save_worst, int) or save_worst < 0:
        raise ArgumentError(f"{worded('evaluate: save_worst', '--save-worst')} must be a whole number from 0, found {save_worst!r}.")
    if save_worst and out is None:
        raise ArgumentError("evaluate: save_worst needs a folder to write to: pass out=.")
    loading = dict(checkpoint=checkpoint, sha256=sha256, mirrors=mirrors, cache_dir=cache_dir, local_files_only=local_files_only)
    views = {"mode": mode, "crop": crop, "stride": stride, "scales": scales, "flip": flip, "batch_size": batch_size, "amp": amp}
    evaluation = Evaluation(model, dataset, root, ids=ids, limit=limit, optimize=optimize, device=device, dtype=dtype, **loading, **views)
    result = evaluation.run(None if out is None else expanded(out), save_worst=save_worst, progress=progress)
    if result.failures:
        warnings.warn(result.failure_report(), stacklevel=2)
    return result


class Evaluation:
    """A model, a data set and a way to run, checked against each other. The arguments are those of `evaluate`, with its errors.

    Examples:
        >>> from upernet_zoo.evaluation import Evaluation
        >>> evaluation = Evaluation("demo", "folder", "scenes", limit=1)
        >>> evaluation.run(progress=False).mIoU > 0.5
        True
    """

    def __init__(
        self,
        model: UPerNet | FusedUPerNet | str | os.PathLike[str],
        dataset: str | SegmentationDataset,
        root: str | os.PathLike | None = None,
        *,
        ids: str | None = None,
        limit: int | None = None,
        optimize: bool = False,
        device: torch.device | str | None = None,
        **options: Any,
    ) -> None:
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise ArgumentError(f"{worded('evaluate: limit', '--limit')} must be a whole number from 1, found {limit!r}.")
        opened = _opened(dataset, root, ids)
        self.optimize = optimize or isinstance(model, FusedUPerNet)
        if isinstance(model, (str, os.PathLike)):
            self.segmenter = Segmenter(model, device=device or default_device(), optimize=self.optimize, **options)
            self.reference = shown(os.fspath(model), "text")
        else:
            self.segmenter = Segmenter(model, device=device, optimize=self.optimize, **options)
            self.reference = _weights_of(self.segmenter.model)
        dataset = opened if isinstance(opened, SegmentationDataset) else _folder_for(self.segmenter.model.label_set, opened, ids)
        require_labels_fit(self.segmenter.model.config, dataset.label_set)
        self.dataset, self.limit, self.asked = dataset, limit, ids

    def run(
        self, out: Path | None = None, *, save_worst: int = 0, progress: bool = True, say: Callable[[str], None] | None = None
    ) -> EvaluationResult:
        """Measure.

        Args:
            out, save_worst, progress: as for `evaluate`.
            say: is told in the first process what the masks of a folder hold, before a picture is run.
        """
        names = self.dataset.names[: self.limit]
        for path in _worst_pictures(out) if out is not None and save_worst else ():
            files.require_replaceable(path, is_own, None)
        with process_group(self.segmenter.device) as (rank, processes):
            ids = self._check_masks(names, rank, processes, progress, say)
            self.dataset = self.dataset.read_as(ids)
            state = State({**self._description, "ids": ids}, self.dataset, None if out is None or rank else out / STATE_NAME)
            state.read(names, processes)
            failed: dict[str, UPerNetZooError] = {}
            self._count(names, state, failed, rank, processes, progress)
        if failed and not state.pictures:
            raise next(iter(failed.values()))
        result = self._result(state, names, {name: str(failed[name]) for name in names if name in failed})
        if out is not None and rank == 0:
            result.save(out, overwrite=True)  # `State.read` has seen that they are this run's
            _save_worst(self.segmenter, self.dataset, result, save_worst, out)
        return result

    def _count(
        self, names: Sequence[str], state: State, failed: dict[str, UPerNetZooError], rank: int, processes: int, progress: bool
    ) -> None:
        """Count what is not yet counted, under a bar with the running mIoU."""
        with bars.counter(total=len(names), initial=len(state.pictures), unit="picture", show=progress and rank == 0) as bar:
            for pictures in _counted(self.segmenter, self.dataset, state, names, failed, rank, processes):
                bar.update(pictures)
                bar.set_postfix(mIoU=f"{100 * state.metrics.result().mIoU:.2f}")

    def folder_name(self) -> str:
        """A name for the folder of the results that an evaluation of another model, data set or way to run does not have."""
        what = json.dumps([self._description, self.asked, self.reference, str(self.dataset.root.absolute())])
        last = re.split(r"[/\\:]", self.reference.rstrip("/\\"))[-1]
        name = "-".join([last, self.dataset.name, hashlib.sha256(what.encode()).hexdigest()[:8]])
        return re.sub(r"[^A-Za-z0-9._-]", "_", name)

    def _check_masks(self, names: Sequence[str], rank: int, processes: int, progress: bool, say: Callable[[str], None] | None) -> str:
        """What the masks' ids are. Those of a folder are read by the first process, and what it finds wrong is raised in all."""
        if self.dataset.name != "folder":
            return self.dataset.ids
        found: str | UPerNetZooError = ""
        if rank == 0:
            part = self.dataset if len(names) == len(self.dataset) else self.dataset.subset(range(len(names)))
            try:
                survey = part.checked(progress)
                found = part.ids
                if say is not None:
                    say(survey.table(part.label_set, part.ids) + "\n")
            except UPerNetZooError as error:
                found = error
        found = exchange(found, processes)[0]
        if isinstance(found, UPerNetZooError):
            raise found
        return str(found)

    @functools.cached_property
    def _description(self) -> dict[str, Any]:
        """What makes a run the same run as another."""
        segmenter = self.segmenter
        settings = {**segmenter.settings, "optimize": self.optimize}
        pictures = pictures_digest(self.dataset)
        return {
            "model": fingerprint(segmenter.model.state_dict()),
            "data set": self.dataset.name,
            "pictures": pictures,
            "settings": settings,
        }

    def _result(self, state: State, names: Sequence[str], failures: dict[str, str]) -> EvaluationResult:
        confusion, label_set = state.metrics.confusion, self.dataset.label_set
        if not confusion.any():
            raise ArgumentError(
                f"No label in any of the {len(state.pictures)} pictures, so nothing was measured. Check the masks in {self.dataset.root}."
            )
        return EvaluationResult(
            **asdict(state.metrics.result()),
            model=self.reference,
            dataset=self.dataset.name,
            classes=label_set.classes,
            pixels=tuple(confusion.sum(1).tolist()),
            confusion=tuple(map(tuple, confusion.tolist())),
            pictures={name: state.pictures[name] for name in names if name in state.pictures},  # in the data set's order
            failures=failures,
            of=len(self.dataset),
            settings=self._description["settings"],
            published=_published(self.segmenter, self.dataset),
        )


def _opened(dataset: str | SegmentationDataset, root: str | os.PathLike | None, ids: str | None) -> SegmentationDataset | Path:
    """The data set, opened before a model is looked for; of a "folder", which needs the model, its path."""
    if isinstance(dataset, SegmentationDataset):
        if ids is not None:
            raise ArgumentError("evaluate: ids goes with a data set's name; for one that is open: open_dataset(..., ids=...).")
        return dataset
    if not isinstance(dataset, str):
        raise ArgumentError(f"evaluate: dataset must be a name or what open_dataset returns, found {type(dataset).__name__}.")
    if root is None:
        raise ArgumentError(f"evaluate: data set {dataset!r} needs its folder: evaluate(model, {dataset!r}, root).")
    return expanded(root) if dataset == "folder" else open_dataset(dataset, root, ids=ids)


def _folder_for(label_set: LabelSet, root: Path, ids: str | None) -> SegmentationDataset:
    """A folder's pictures, with the classes of a model and the ids of the folder's label file."""
    path = label_files.find(root)
    if path is None:
        return open_dataset("folder", root, label_set, ids=ids)
    return open_dataset("folder", root, label_files.in_order_of(label_set, path), ids=ids or DATASET_IDS)


def _weights_of(model: UPerNet | FusedUPerNet) -> str:
    """What there is to say of a model object: its name, if it has the published weights, or the file that they came from."""
    entry, file = published_entry(model), model.origin.get("file")
    return entry.name if entry is not None else "UPerNet" if file is None else f"UPerNet from {shown(file, 'text')}"


def _counted(
    segmenter: Segmenter,
    dataset: SegmentationDataset,
    state: State,
    names: Sequence[str],
    failed: dict[str, UPerNetZooError],
    rank: int,
    processes: int,
) -> Iterator[int]:
    """Count what is not yet counted; after every few pictures, gives how many all processes have done. Those that fail go to `failed`."""
    pending = [i for i, name in enumerate(names) if name not in state.pictures]
    samples = zip(pending[rank::processes], read_ahead(functools.partial(_loaded, dataset), pending[rank::processes]))
    at_once = 1 if processes == 1 else _PICTURES_PER_EXCHANGE
    for _ in range(0, len(pending), processes * at_once):  # as often in each process
        metrics = SegmentationMetrics(state.metrics.num_classes, state.metrics.ignore_index)
        pictures: dict[str, float] = {}
        errors: dict[str, UPerNetZooError] = {}
        for i, sample in itertools.islice(samples, at_once):
            one = sample if isinstance(sample, UPerNetZooError) else _measured(segmenter, sample, metrics)
            if isinstance(one, UPerNetZooError):
                errors[names[i]] = one
            else:
                pictures[names[i]] = one.result().mIoU
                metrics.merge(one)
        found = exchange((metrics.confusion, pictures, errors), processes)
        for confusion, added, wrong in found:
            state.add(confusion, added)
            failed.update(wrong)
        state.save_now_and_then()
        yield sum(len(added) + len(wrong) for _, added, wrong in found)
    state.save()


def _loaded(dataset: SegmentationDataset, index: int) -> Sample | UPerNetZooError:
    try:
        with memory.refused(dataset.names[index]):
            return dataset[index]
    except UPerNetZooError as error:
        return error


def _measured(segmenter: Segmenter, sample: Sample, like: SegmentationMetrics) -> SegmentationMetrics | UPerNetZooError:
    """The metrics of one picture alone, or why there are none."""
    metrics = SegmentationMetrics(like.num_classes, like.ignore_index)
    try:
        with memory.refused("the network"):
            metrics.update(segmenter(sample.image).labels, sample.target)
    except UPerNetZooError as error:
        return type(error)(f"{sample.path}: {error}")
    return metrics


def pictures_digest(dataset: SegmentationDataset) -> str:
    """SHA-256 of what a data set is made of: names and sizes of its files, and what its labels mean."""
    return hashlib.sha256(json.dumps([dataset.files_and_sizes(), dataset.label_set.to_dict()]).encode()).hexdigest()


def _published(segmenter: Segmenter, dataset: SegmentationDataset) -> float | None:
    """The mIoU (0..1) that the index has for these very weights, this data set and way to run it."""
    entry = published_entry(segmenter.model)
    if entry is None or entry.labels != dataset.name or dataset.label_set != entry.label_set or entry.recipe != segmenter.recipe:
        return None
    key = {((1.0,), False): "mIoU", (MULTI_SCALE, True): "mIoU(ms+flip)"}.get((segmenter.scales, segmenter.flip))
    value = None if key is None else entry.metrics.get(key)
    return None if value is None else value / 100


def _compared(title: str, sample: Sample, labels: np.ndarray, iou: float, label_set: LabelSet) -> Image.Image:
    """A picture beside its predicted and its true labels, over a legend of the classes in either."""
    classes, palette = label_set.classes, label_set.palette
    picture = visualize.beside(
        {
            title: sample.image,
            f"prediction, mIoU {100 * iou:.2f}": visualize.blend(sample.image, labels, palette, 0.7),
            "labels": visualize.blend(sample.image, sample.target, palette, 0.7),
        }
    )
    seen = [i for i in np.union1d(labels, sample.target) if i < len(classes)]
    return visualize.stack([picture, visualize.legend([(classes[i].strip(), palette[i]) for i in seen], picture.width)])


def _save_worst(segmenter: Segmenter, dataset: SegmentationDataset, result: EvaluationResult, count: int, out: Path) -> None:
    """Write the `count` pictures of the lowest mIoU beside prediction and labels, the worst first by name, in place of earlier ones."""
    written = set()
    scored = sorted((iou, name) for name, iou in result.pictures.items() if not math.isnan(iou))
    for rank, (iou, name) in enumerate(scored[:count], 1):
        sample = dataset[dataset.names.index(name)]
        drawn = _compared(shown(name, "text"), sample, segmenter(sample.image).labels, iou, dataset.label_set)
        path = out / _WORST / f"{rank:02d}_{re.sub(r'[^A-Za-z0-9._-]', '_', name)}.png"
        save_picture(drawn, path)
        written.add(path)
    if written:
        for path in set(_worst_pictures(out)) - written:
            path.unlink()


def _worst_pictures(out: Path) -> list[Path]:
    """What an earlier run wrote of its worst pictures."""
    return list((out / _WORST).glob("[0-9][0-9]*_*.png"))
