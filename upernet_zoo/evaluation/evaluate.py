"""Measuring a model as its published numbers were measured: on one process or many, and to be interrupted at any time."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import itertools
import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from .. import index, sources, tables, visualize
from ..errors import ArgumentError, CacheError, UPerNetZooError
from ..models import UPerNet
from ..models.fused import FusedUPerNet
from ..models.upernet import require_labels_fit
from ..segmenter import Segmenter, read_ahead, save_picture
from .datasets import Sample, SegmentationDataset, open_dataset
from .metrics import MetricsResult, SegmentationMetrics

# ratios of the published multi-scale numbers, with flip (mmsegmentation 0.30, `tools/test.py --aug-test`)
MULTI_SCALE = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
STATE_NAME = "state.json"
_PICTURES_PER_EXCHANGE = 4  # of each process, where there are several


@dataclass(frozen=True)
class EvaluationResult(MetricsResult):
    """What a model scored on a data set. Fractions are from 0 to 1, as in `MetricsResult`.

    Args:
        model: name of the model.
        dataset: name of the data set.
        classes: a name for each train id.
        pixels: labelled pixels of each class.
        pictures: picture name -> mIoU of that picture alone (NaN if nothing is labelled in it), all that were counted.
        of: pictures that the data set has.
        settings: how the model was run.
        published: the mIoU that was published for this model, data set and settings; None if there is none.
    """

    model: str
    dataset: str
    classes: tuple[str, ...]
    pixels: tuple[int, ...]
    pictures: Mapping[str, float] = field(repr=False)
    of: int
    settings: Mapping[str, Any]
    published: float | None

    def table(self) -> str:
        """The numbers per class and overall, in percent, as a table to read."""

        def percent(value: float) -> str:
            return "-" if math.isnan(value) else f"{100 * value:.2f}"

        rows = [[name, percent(iou), percent(acc)] for name, iou, acc in zip(self.classes, self.IoU, self.Acc)]
        counted = f"{len(self.pictures)} pictures" if len(self.pictures) == self.of else f"{len(self.pictures)} of {self.of} pictures"
        lines = [
            tables.plain(("class", "IoU", "Acc"), rows, left=1),
            "",
            f"{self.model} on {self.dataset}, {counted}",
            f"mIoU {percent(self.mIoU)}   mAcc {percent(self.mAcc)}   aAcc {percent(self.aAcc)}",
        ]
        if self.published is not None:
            difference = 100 * (self.mIoU - self.published)
            lines.append(f"published mIoU {percent(self.published)}, measured {percent(self.mIoU)} ({difference:+.2f})")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; NaN is None."""
        return _without_nan(asdict(self))

    def plot(self, path: str | os.PathLike) -> Path:
        """Write a bar plot of the IoU of each class, in the format of the name (.png, .svg, .pdf); needs matplotlib.

        Raises:
            ArgumentError: matplotlib is not installed, or has no format of that suffix.
            CacheError: the file cannot be written.
        """
        named = [(name.strip(), iou) for name, iou in zip(self.classes, self.IoU) if not math.isnan(iou)]
        title = f"{self.model} on {self.dataset}, {len(self.pictures)} pictures: mIoU {100 * self.mIoU:.2f} %"
        return visualize.save_bars(Path(path).expanduser(), named, self.mIoU, title)

    def save(self, folder: str | os.PathLike) -> list[Path]:
        """Write `metrics.json`, `classes.csv` and `pictures.csv`, each whole or not at all; gives back their paths.

        Raises:
            CacheError: the folder cannot be written.
        """
        folder = Path(folder).expanduser()
        classes = [("class", "IoU", "Acc", "pixels"), *zip(self.classes, self.IoU, self.Acc, self.pixels)]
        contents = {
            "metrics.json": json.dumps(self.to_dict(), indent=2) + "\n",
            "classes.csv": _csv(classes),
            "pictures.csv": _csv([("picture", "mIoU"), *self.pictures.items()]),
        }
        for name, text in contents.items():
            _write(folder / name, text)
        return [folder / name for name in contents]


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(_without_nan(rows))
    return out.getvalue()


def _write(path: Path, text: str) -> None:
    sources.write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def evaluate(
    model: UPerNet | str,
    dataset: str | SegmentationDataset,
    root: str | os.PathLike | None = None,
    *,
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
    """Measure a model on a data set.

    Started by `torchrun`, or in a process group that is there already, the processes share the pictures, each picture is counted
    by one of them, and all get the same result; rank 0 alone writes. Sums are whole numbers, so it is the result of one process
    (with the same number of threads: how torch splits a sum among threads may change its last bit, and a label with it).

    With `out`, what was counted is kept there (`state.json`) and a run that was interrupted goes on from it, on any number of
    processes; so does one with a larger `limit`. Files of the data set that change in between are not noticed.

    Args:
        model: a `UPerNet`, or what `create_model` takes.
        dataset: what `open_dataset` returns, or a name that it takes; "folder" then means the model's own label set.
        root: the data set's folder, for a name.
        mode, crop, stride, scales, flip, batch_size, amp: as for `Segmenter`; by default the single-scale numbers' way. The published
            ms+flip numbers are of `scales=MULTI_SCALE, flip=True`.
        optimize: run the fused twin, see `optimize_for_inference`; by default the plain model, and a fused one that is passed as it is.
        device: as for `Segmenter`; for a name under `torchrun` by default the GPU of the process's local rank.
        limit: only so many pictures, the first by name.
        out: folder for the state, the results (`EvaluationResult.save`), and the worst pictures.
        save_worst: write so many pictures of the lowest mIoU to `out`/worst, beside prediction and labels.
        progress: show a bar with the running mIoU.

    Raises:
        ArgumentError: arguments that cannot be used or do not fit together, labels out of range, or a picture that does not fit into
            memory.
        ConfigError: the label set has another number of classes than the model.
        MissingFileError, ImageError: a root with another layout, or a file that cannot be read.
        CacheError: `out` cannot be written, or holds the state of another run. Nothing is overwritten then.
        UPerNetZooError: what `create_model` raises.
    """
    for name, value, least in (("limit", limit, 1), ("save_worst", save_worst, 0)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ArgumentError(f"evaluate: {name} must be a whole number from {least}, found {value!r}.")
    if save_worst and out is None:
        raise ArgumentError("evaluate: save_worst needs a folder to write to: pass out=.")
    if isinstance(dataset, str):
        if root is None:
            raise ArgumentError(f"evaluate: data set {dataset!r} needs its folder: evaluate(model, {dataset!r}, root).")
        if dataset != "folder":  # which needs the model
            dataset = open_dataset(dataset, root)
    elif not isinstance(dataset, SegmentationDataset):
        raise ArgumentError(f"evaluate: dataset must be a name or what open_dataset returns, found {type(dataset).__name__}.")
    if isinstance(model, str):
        device = device or default_device()
    views = {"mode": mode, "crop": crop, "stride": stride, "scales": scales, "flip": flip, "batch_size": batch_size, "amp": amp}
    optimize = optimize or isinstance(model, FusedUPerNet)
    segmenter = Segmenter(model, device=device, optimize=optimize, **views)
    model = segmenter.model
    if isinstance(dataset, str):
        dataset = open_dataset(dataset, root, model.label_set)
    require_labels_fit(model.config, dataset.label_set)
    names = dataset.names[:limit]
    settings = {
        "recipe": segmenter.recipe.to_dict(),
        "scales": list(segmenter.scales),
        "flip": segmenter.flip,
        "amp": segmenter.amp,
        "optimize": optimize,
        "dtype": str(model.decode_head.classifier.weight.dtype).removeprefix("torch."),
        "device": segmenter.device.type,
    }
    run = {"model": _digest(model), "data set": dataset.name, "pictures": names_digest(dataset), "settings": settings}
    out = None if out is None else Path(out).expanduser()

    with process_group(segmenter.device) as (rank, processes):
        state = _State(run, dataset, None if out is None or rank else out / STATE_NAME)
        state.read(names, processes)
        bar = tqdm(total=len(names), initial=len(state.pictures), unit="picture", disable=rank > 0 or not progress)
        with bar:
            for pictures in _counted(segmenter, dataset, state, names, rank, processes):
                bar.update(pictures)
                bar.set_postfix(mIoU=f"{100 * state.metrics.result().mIoU:.2f}")

    metrics = state.metrics.result()
    result = EvaluationResult(
        **asdict(metrics),
        model=model.origin.get("model") or model.origin.get("file", "UPerNet"),
        dataset=dataset.name,
        classes=dataset.label_set.classes,
        pixels=tuple(state.metrics.confusion.sum(1).tolist()),
        pictures={name: state.pictures[name] for name in names},  # in the data set's order
        of=len(dataset),
        settings=settings,
        published=_published(segmenter, dataset),
    )
    if out is not None and rank == 0:
        result.save(out)
        _save_worst(segmenter, dataset, result, save_worst, out / "worst")
    return result


def default_device() -> str:
    """CUDA if there is one, under `torchrun` that of this process's local rank; else the CPU."""
    if not torch.cuda.is_available():
        return "cpu"
    launched = torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()
    return f"cuda:{os.environ['LOCAL_RANK']}" if launched else "cuda"


def is_first_process() -> bool:
    """Whether this process is the one that writes and prints."""
    launched = torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()
    return not launched or os.environ["RANK"] == "0"


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[tuple[int, int]]:
    """(rank, number of processes): of the process group if there is one, else of a group that `torchrun` set the scene for."""
    dist = torch.distributed
    if not dist.is_available() or not (dist.is_initialized() or dist.is_torchelastic_launched()):
        yield 0, 1
    elif dist.is_initialized():
        yield dist.get_rank(), dist.get_world_size()
    else:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        try:
            yield dist.get_rank(), dist.get_world_size()
        finally:
            dist.destroy_process_group()


def exchange(mine: Any, processes: int) -> list[Any]:
    """What each process has, by rank."""
    if processes == 1:
        return [mine]
    everyone = [None] * processes
    torch.distributed.all_gather_object(everyone, mine)
    return everyone


class _State:
    """What was counted so far, of which run; kept in a file if there is a path."""

    def __init__(self, run: Mapping[str, Any], dataset: SegmentationDataset, path: Path | None):
        self.run, self.path = run, path
        self.metrics = SegmentationMetrics(len(dataset.label_set), dataset.label_set.ignore_index)
        self.pictures: dict[str, float] = {}
        self._saving = 0.0  # seconds that the last time took
        self._saved = -math.inf  # when

    def add(self, confusion: torch.Tensor, pictures: Mapping[str, float]) -> None:
        self.metrics.confusion += confusion
        self.pictures.update(pictures)

    def save(self) -> None:
        """Write the file, whole or not at all."""
        if self.path is not None:
            start = time.monotonic()
            content = {"run": self.run, "confusion": self.metrics.confusion.tolist(), "pictures": _without_nan(self.pictures)}
            _write(self.path, json.dumps(content))
            self._saved = time.monotonic()
            self._saving = self._saved - start

    def save_now_and_then(self) -> None:
        """Write the file unless that would take more than a twentieth of the time."""
        if time.monotonic() - self._saved > 20 * self._saving:
            self.save()

    def read(self, names: Sequence[str], processes: int) -> None:
        """Go on from the file, if there is one; what the first process reads, or why it cannot, reaches all.

        Raises:
            CacheError: the file is of another run, or damaged.
            ArgumentError: the processes have other models, pictures or settings than the first one.
        """
        try:
            mine = self._content(names)
        except UPerNetZooError as error:
            mine = error
        everyone = exchange((mine, self.run, names), processes)
        found = everyone[0][0]
        for rank, one in enumerate(everyone):
            if one[1:] != everyone[0][1:]:
                raise ArgumentError(f"evaluate: process {rank} has another model, other pictures or other settings than process 0.")
        if isinstance(found, UPerNetZooError):
            raise found
        if found is not None:
            pictures = {name: math.nan if iou is None else iou for name, iou in found["pictures"].items()}
            self.add(torch.tensor(found["confusion"], dtype=torch.int64), pictures)

    def _content(self, names: Sequence[str]) -> dict[str, Any] | None:
        if self.path is None or not self.path.exists():
            return None
        other = "Choose another folder, or remove that file to start anew."
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            run, pictures, confusion = content["run"], content["pictures"], content["confusion"]
            shape = torch.tensor(confusion, dtype=torch.int64).shape
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CacheError(f"{self.path}: not a state of an evaluation ({error!r}). {other}") from None
        if run != json.loads(json.dumps(self.run)):
            different = [key for key in self.run if run.get(key) != self.run[key]] if isinstance(run, dict) else list(self.run)
            raise CacheError(f"{self.path}: the state of another run: not the same {', '.join(different)}. {other}")
        if shape != self.metrics.confusion.shape or not isinstance(pictures, dict):
            raise CacheError(f"{self.path}: not a state of an evaluation (a matrix of {tuple(shape)}). {other}")
        more = set(pictures) - set(names)
        if more:
            raise CacheError(
                f"{self.path}: {len(pictures)} pictures are counted there already, more than limit={len(names)}. Raise the limit. {other}"
            )
        return content


def _counted(
    segmenter: Segmenter, dataset: SegmentationDataset, state: _State, names: Sequence[str], rank: int, processes: int
) -> Iterator[int]:
    """Count what is not yet counted; after every few pictures, gives how many were added by all processes."""
    pending = [i for i, name in enumerate(names) if name not in state.pictures]
    samples = read_ahead(dataset.__getitem__, pending[rank::processes])
    at_once = 1 if processes == 1 else _PICTURES_PER_EXCHANGE
    for _ in range(0, len(pending), processes * at_once):  # as often in each process
        metrics = SegmentationMetrics(state.metrics.num_classes, state.metrics.ignore_index)
        pictures = {}
        for sample in itertools.islice(samples, at_once):
            one = _measured(segmenter, sample, metrics)
            pictures[sample.name] = one.result().mIoU
            metrics.merge(one)
        found = exchange((metrics.confusion, pictures), processes)
        for confusion, added in found:
            state.add(confusion, added)
        state.save_now_and_then()
        yield sum(len(added) for _, added in found)
    state.save()


def _measured(segmenter: Segmenter, sample: Sample, like: SegmentationMetrics) -> SegmentationMetrics:
    """The metrics of one picture alone."""
    metrics = SegmentationMetrics(like.num_classes, like.ignore_index)
    try:
        metrics.update(segmenter(sample.image).labels, sample.target)
    except UPerNetZooError as error:
        raise type(error)(f"{sample.path}: {error}") from None
    return metrics


def _digest(model: UPerNet) -> str:
    """SHA-256 of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def names_digest(dataset: SegmentationDataset) -> str:
    """SHA-256 of the names of a data set's pictures and classes."""
    return hashlib.sha256(json.dumps([dataset.names, dataset.label_set.classes]).encode()).hexdigest()


def _published(segmenter: Segmenter, dataset: SegmentationDataset) -> float | None:
    """The mIoU (0..1) that the index has for this model, data set and way to run it."""
    entry = index.default().entries.get(segmenter.model.origin.get("model", ""))
    if entry is None or entry.labels != dataset.name or dataset.label_set != entry.label_set or entry.recipe != segmenter.recipe:
        return None
    key = {((1.0,), False): "mIoU", (MULTI_SCALE, True): "mIoU(ms+flip)"}.get((segmenter.scales, segmenter.flip))
    value = entry.metrics.get(key)
    return None if value is None else value / 100


def _save_worst(segmenter: Segmenter, dataset: SegmentationDataset, result: EvaluationResult, count: int, folder: Path) -> None:
    """Write the `count` pictures of the lowest mIoU beside prediction and labels, the worst first by name, in place of earlier ones."""
    written = set()
    scored = sorted((iou, name) for name, iou in result.pictures.items() if not math.isnan(iou))
    for rank, (iou, name) in enumerate(scored[:count], 1):
        sample = dataset[dataset.names.index(name)]
        segmentation = segmenter(sample.image)
        classes, palette = dataset.label_set.classes, dataset.label_set.palette
        picture = visualize.beside(
            {
                name: sample.image,
                f"prediction, mIoU {100 * iou:.2f}": visualize.blend(sample.image, segmentation.labels, palette, 0.7),
                "labels": visualize.blend(sample.image, sample.target, palette, 0.7),
            }
        )
        seen = [i for i in np.union1d(segmentation.labels, sample.target) if i < len(classes)]
        legend = visualize.legend([(classes[i].strip(), palette[i]) for i in seen], picture.width)
        path = folder / f"{rank:02d}_{re.sub(r'[^A-Za-z0-9._-]', '_', name)}.png"
        save_picture(visualize.stack([picture, legend]), path)
        written.add(path)
    if written:
        for path in set(folder.glob("[0-9][0-9]*_*.png")) - written:
            path.unlink()
