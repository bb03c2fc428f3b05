"""The training loop: on one process or many, and to be stopped at any time.

Nothing random is kept between steps. The crops of a step follow from the seed and the step (`data.Crops`), so do dropout and the
learning rate; so weights, batch norm statistics, optimizer state and the number of the step are all there is to save.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import files
from .. import progress as bars
from ..distributed import default_device, exchange, process_group
from ..errors import ArgumentError, ConfigError, TrainingDivergedError, WorkerError
from ..evaluation import SegmentationDataset, evaluate, plots
from ..evaluation.runner import pictures_digest
from ..files import expanded
from ..hub import folder
from ..models.upernet import UPerNet, require_labels_fit
from ..wording import worded
from ..written import is_own, require_replaceable_folder
from . import state
from .data import Crops, batches, require_classes, survey
from .settings import TrainingSettings
from .state import Progress

__all__ = ["BEST", "LAST", "TrainingResult", "train"]

BEST, LAST = "best", "last"
_ROWS = 200  # of the log, about, beside those of evaluations


@dataclass(frozen=True)
class TrainingResult:
    """What a training run has come to.

    Args:
        best: folder of the model with the highest mIoU.
        last: folder of the model after the last step.
        best_mIoU: on the validation pictures, from 0 to 1.
        best_step: steps after which it was measured.
        rows: of the log: step, lr, loss (mean since the row before), mIoU (None where not evaluated), seconds.

    Examples:
        >>> from pathlib import Path
        >>> from upernet_zoo.training import TrainingResult
        >>> row = {"step": 500, "lr": 1e-3, "loss": 0.8, "mIoU": 0.42, "seconds": 60.0}
        >>> TrainingResult(Path("run/best"), Path("run/last"), best_mIoU=0.42, best_step=500, rows=(row,)).plot("curves.svg").name
        'curves.svg'
    """

    best: Path
    last: Path
    best_mIoU: float
    best_step: int
    rows: tuple[Mapping[str, Any], ...] = field(repr=False)

    def plot(self, path: str | os.PathLike, *, overwrite: bool = False) -> Path:
        """Write a plot of loss and mIoU over the steps, in the format of the name (.png, .svg, .pdf); needs matplotlib.

        Raises:
            ArgumentError: matplotlib is not installed, or has no format of that suffix.
            ExistingFileError: a file of that name is there, not written by this library, and `overwrite` is not set.
            WriteError: the file cannot be written.
        """
        losses = [(row["step"], row["loss"]) for row in self.rows]
        scores = [(row["step"], row["mIoU"]) for row in self.rows if row["mIoU"] is not None]
        return plots.save_curves(expanded(path), losses, scores, overwrite)


def train(
    model: UPerNet,
    training: SegmentationDataset,
    validation: SegmentationDataset,
    out: str | os.PathLike,
    settings: TrainingSettings | None = None,
    *,
    device: torch.device | str | None = None,
    workers: int | None = None,
    save_every: float = 60.0,
    progress: bool = True,
) -> TrainingResult:
    """Train a model, and keep the best and the last one as folders that `create_model("local-dir:...")` loads.

    Every picture and mask is read once before the first step. Called again with the same settings and the same `out`, a run that was
    stopped, at whatever moment, goes on from its last state; on the CPU it comes to the weights of an uninterrupted run bit for bit
    (with as many threads and processes; on a GPU some of torch's gradients are not reproducible).

    Started by `torchrun`, or in a process group that is there already, the processes share each batch: gloo on the CPU; NCCL and
    SyncBatchNorm on GPUs. Rank 0 alone writes.

    Args:
        model: is trained in place, as float32, and is in eval mode with its last weights afterwards.
        training, validation: what to learn from, and to measure by; see `open_splits`.
        out: folder for `best`, `last`, `state.pt` and `log.csv`.
        settings: see `TrainingSettings`.
        device: where to train; by default CUDA if there is one, under `torchrun` the GPU of the process's local rank.
        workers: processes that read and augment; by default none on the CPU, whose cores are busy, and up to 8 for a GPU.
        save_every: seconds after which the state is written again; it is also written at every evaluation.
        progress: show bars.

    Returns:
        The best and the last model's folders and the log.

    Raises:
        ArgumentError: settings that do not fit together; masks or classes that cannot be learned from; a loss or weights that are no
            longer finite (the message has the step; the last good state and the best model are kept).
        ConfigError: the label set is not the model's, or its recipe has steps that this library does not do.
        MissingFileError, ImageError: no pictures, or files that cannot be used; the message names them.
        WriteError: `out` cannot be written, the disk is full, or another run's state is there. Nothing is overwritten then.
        ExistingFileError: `out` holds files of the names that a run writes, and no run wrote them.

    Examples:
        >>> import upernet_zoo as uz
        >>> from upernet_zoo.training import TrainingSettings, open_splits, train
        >>> training, validation = open_splits("folder", "my_data")
        >>> model = uz.create_model("demo", labels=training.label_set)
        >>> settings = TrainingSettings(steps=2, batch_size=2, crop=(64, 64))
        >>> result = train(model, training, validation, "run", settings, progress=False)
        >>> uz.create_model(f"local-dir:{result.best}").config.num_classes
        4
    """
    settings = settings or TrainingSettings()
    _require_fit(model, training, validation, settings)
    model.recipe.require_supported()  # the evaluations would refuse it later
    device, out = torch.device(device or default_device()), expanded(out)
    require_own_folder(out)
    if workers is None:
        workers = 0 if device.type == "cpu" else min(8, os.cpu_count() or 1)
    with process_group(device) as (rank, processes):
        if settings.batch_size % processes:
            raise ArgumentError(f"A batch of {settings.batch_size} cannot be shared by {processes} processes. Make it a multiple.")
        run = _Run(
            model,
            training,
            validation,
            out,
            settings,
            device=device,
            rank=rank,
            processes=processes,
            save_every=save_every,
            progress=progress and rank == 0,
        )
        run.start()
        return run.finish(workers)


def _require_fit(model: UPerNet, training: SegmentationDataset, validation: SegmentationDataset, settings: TrainingSettings) -> None:
    if not isinstance(model, UPerNet):
        raise ArgumentError(f"train: expected a UPerNet, such as create_model returns, found {type(model).__name__}.")
    if model.config.in_channels != 3:
        raise ArgumentError(
            f"train: takes RGB pictures, and the model has {model.config.in_channels} input channels. Write a loop of your own with "
            "model.loss and model.parameter_groups."
        )
    crop, fixed = settings.crop_for(model.recipe), model.config.backbone.input_size
    if fixed not in (None, crop):
        raise ArgumentError(
            f"{model.config.backbone.title} takes pictures of {fixed[0]}x{fixed[1]} pixels only, and the crops are {crop[0]}x{crop[1]}: "
            f"{worded(f'crop={fixed}', f'--crop {fixed[0]}x{fixed[1]}')}."
        )
    for dataset in (training, validation):
        require_labels_fit(model.config, dataset.label_set)
        if dataset.label_set.classes != model.label_set.classes:
            raise ConfigError(
                f"The pictures are labeled with the classes of {dataset.label_set.name!r}, and the model was made for those of "
                f"{model.label_set.name!r}. Give it new classifiers: model.reset_classifier(dataset.label_set)."
            )


def require_own_folder(out: Path) -> None:
    """Refuse a folder in which a run would replace what none wrote.

    Raises:
        ExistingFileError: names it.
    """
    state.require_own_log(out)
    for name in (BEST, LAST):
        require_replaceable_folder(out / name, None)
        files.require_replaceable(out / name / folder.CARD_NAME, lambda path: is_own(path.with_name(folder.CONFIG_NAME)), None)


class _Loss(nn.Module):
    """`model.loss` as a forward pass, for DistributedDataParallel looks at no other method."""

    def __init__(self, model: UPerNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, target: Tensor, labeled: Tensor) -> Tensor:
        """Mean over all labeled pixels of the batch, a scalar."""
        return self.model.loss(x, target, labeled)


class _Run:
    """A training run in one process."""

    def __init__(
        self,
        model: UPerNet,
        training: SegmentationDataset,
        validation: SegmentationDataset,
        out: Path,
        settings: TrainingSettings,
        *,
        device: torch.device,
        rank: int,
        processes: int,
        save_every: float,
        progress: bool,
    ) -> None:
        self.model, self.training, self.validation = model, training, validation
        self.out, self.settings, self.device, self.save_every = out, settings, device, save_every
        self.rank, self.processes, self.show = rank, processes, progress
        self.memory_format = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        self.half = torch.bfloat16 if device.type != "cuda" or torch.cuda.is_bf16_supported() else torch.float16
        self.progress = Progress()
        self.description = {
            "settings": settings.to_dict(),
            "architecture": model.config.to_dict(),
            "recipe": model.recipe.to_dict(),
            "weights from": dict(model.origin),
            "training pictures": f"{pictures_digest(training)} {training.ids}",
            "validation pictures": f"{pictures_digest(validation)} {validation.ids}",
        }

    # before the first step

    def start(self) -> None:
        """Check the pictures, prepare the model, and go on from the state on disk if there is one."""
        found = survey(self.training, "training", self.show)
        survey(self.validation, "validation", self.show)
        require_classes(self.training.label_set, found)
        self._prepare_model()
        self.optimizer = self._new_optimizer()
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.settings.amp and self.half == torch.float16)
        self._take_up()

    def _prepare_model(self) -> None:
        """As float32, on the device, with what is not trained frozen."""
        model, settings = self.model, self.settings
        model.float()
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()  # not mapped from a file: in torch's own memory, so that a run resumed computes alike
        model.to(self.device).to(memory_format=self.memory_format)
        if settings.freeze_stages is not None:
            model.freeze_stages(settings.freeze_stages)
        if settings.freeze_batch_norm:
            model.freeze_batch_norm()
        if self.device.type == "cuda" and self.processes > 1:
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
        model.set_grad_checkpointing(settings.grad_checkpointing)

    def _new_optimizer(self) -> torch.optim.Optimizer:
        settings = self.settings
        groups = self.model.parameter_groups(settings.lr, settings.head_multiplier, layer_decay=settings.layer_decay)
        if settings.optimizer == "sgd":
            return torch.optim.SGD(groups, momentum=0.9, weight_decay=settings.weight_decay)
        return torch.optim.AdamW(groups, weight_decay=settings.weight_decay)

    def _take_up(self) -> None:
        """Go on from the state on disk; where there is none, write the first."""
        found = exchange(state.read(self.out, self.description) if self.rank == 0 else None, self.processes)[0]
        if found is None:
            self._save()  # so that whatever stops the run from here on, it goes on from these very weights
        else:
            self.progress, parts = found
            state.restore(self.out, self._parts(), parts)
        self.saved, self.saved_step = time.monotonic(), self.progress.step

    def _parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "scaler": self.scaler}

    # steps

    def finish(self, workers: int) -> TrainingResult:
        """Take the steps that are left."""
        model, on_gpu, start = self.model.train(), self.device.type == "cuda", self.progress.step
        loss_of: nn.Module = _Loss(model)
        if self.processes > 1:
            loss_of = nn.parallel.DistributedDataParallel(loss_of, device_ids=[self.device.index] if on_gpu else None)
        left = batches(Crops(self.training, model.recipe, self.settings), start, self.rank, self.processes, workers, on_gpu)
        bar = bars.bar(left, total=self.settings.steps, initial=start, unit="step", show=self.show)
        with contextlib.closing(left), bar, self._workers_alive(workers):
            for step, (x, target) in enumerate(bar, start):
                began = time.monotonic()
                loss = self._step(step, loss_of, x, target)
                self.progress.step = step + 1
                self.progress.losses.append(loss)
                self.progress.seconds += time.monotonic() - began
                bar.set_postfix(loss=f"{loss:.3f}", best=f"{100 * max(0, self.progress.best_mIoU):.2f}", refresh=False)
                self._keep()
        model.eval()
        done = self.progress
        return TrainingResult(self.out / BEST, self.out / LAST, done.best_mIoU, done.best_step, tuple(done.rows))

    def _step(self, step: int, loss_of: nn.Module, x: Tensor, target: Tensor) -> float:
        """Update the weights once; gives the loss of the whole batch."""
        for group, rate in zip(self.optimizer.param_groups, self.rates):
            group["lr"] = rate * self.settings.lr_factor(step)
        torch.manual_seed(int(np.random.SeedSequence((self.settings.seed, step, self.rank)).generate_state(1)[0]))  # for dropout
        x = x.to(self.device, memory_format=self.memory_format, non_blocking=True)
        target = target.to(self.device, non_blocking=True)
        # each process's loss is divided by the mean of their pixels: then the mean of losses is the whole batch's
        labeled = self._mean((target != self.training.label_set.ignore_index).sum().double())
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, dtype=self.half, enabled=self.settings.amp):
            loss = loss_of(x, target, labeled)
        value = float(self._mean(loss.detach().double()))
        if not math.isfinite(value):
            raise self._diverged(f"the loss is {value} in step {step + 1}")
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return value

    def _mean(self, number: Tensor) -> Tensor:
        """The mean of a number over all processes."""
        if self.processes > 1:
            torch.distributed.all_reduce(number)
            number /= self.processes
        return number

    @contextlib.contextmanager
    def _workers_alive(self, workers: int) -> Iterator[None]:
        """Keep the state where a process that reads pictures died, and say so."""
        try:
            yield
        except WorkerError as error:
            self._save()
            raise WorkerError(
                f"Training stopped: a process that reads pictures died ({error}). The state, of step {self.saved_step}, is kept in "
                f"{self.out / state.STATE_NAME}: the same call goes on from it. Most often memory ran out: take fewer than {workers} "
                "workers (workers=0, --workers 0: none), or give the container more shared memory (docker run --shm-size=8g)."
            ) from error

    def _diverged(self, what: str) -> TrainingDivergedError:
        best = f"; the best model, of step {self.progress.best_step}, is in {self.out / BEST}" if self.progress.best_step else ""
        return TrainingDivergedError(
            f"Training stopped: {what}, at a learning rate of {self.optimizer.param_groups[0]['lr']:.3g}. The last good state, of step "
            f"{self.saved_step}, is kept in {self.out / state.STATE_NAME}{best}. Train again into another folder with a lower learning "
            f"rate than {self.settings.lr:g} or a longer warm-up."
        )

    # between steps

    def _keep(self) -> None:
        """Evaluate, log and save when it is time."""
        done, settings = self.progress, self.settings
        evaluated = settings.is_evaluated(done.step)
        if evaluated:
            self._evaluate()
        elif done.step % max(1, settings.steps // _ROWS) == 0:
            done.add_row(self.optimizer.param_groups[0]["lr"], None)
        if evaluated or time.monotonic() - self.saved >= self.save_every:
            self._save()

    def _evaluate(self) -> None:
        done, began = self.progress, time.monotonic()
        self._require_finite()
        if self.processes > 1:
            for buffer in self.model.buffers():  # each process has statistics of its own; those of the first are kept
                torch.distributed.broadcast(buffer, 0)
        mIoU = evaluate(self.model, self.validation, amp=self.settings.amp, progress=False).mIoU
        self.model.train()
        done.seconds += time.monotonic() - began
        done.add_row(self.optimizer.param_groups[0]["lr"], mIoU)
        if self.rank == 0:
            folder.save_pretrained(self.model, self.out / LAST, keep_card=False)
            if mIoU > done.best_mIoU:
                folder.save_pretrained(self.model, self.out / BEST, keep_card=False)
        if mIoU > done.best_mIoU:
            done.best_mIoU, done.best_step = mIoU, done.step

    def _save(self) -> None:
        if self.rank == 0:
            self._require_finite()
            parts = {name: part.state_dict() for name, part in self._parts().items()}
            state.write(self.out, self.description, self.progress, parts)
        self.saved, self.saved_step = time.monotonic(), self.progress.step

    def _require_finite(self) -> None:
        for name, tensor in self.model.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise self._diverged(f"after step {self.progress.step} the weights are not finite ({name})")
